"""A service in processes of its own, what they hold in memory, and a client that costs next to nothing."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
START_S = 240.0
GRID = 16  # voxels an axis of the small cases
# the third: on a busy machine Serve's proxy needs longer to start than the 5 s that it is given
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
PROCESSES = {"API and runner": b"ray::ServeReplica:ldseg:Ingress", "proxy": b"ray::ProxyActor"}
TINY = {
    "data": {"shape": [GRID] * 3, "label_values": [0, 1, 2], "structures": ["organ", "nodule"]},
    "model": {
        "downsampling": [4] * 3,
        "patch": [2] * 3,
        "latent_channels": 2,
        "embedding_channels": 8,
        "autoencoder_widths": [8, 8],
        "image_widths": [8, 8, 16],
        "denoiser_widths": [8, 16],
    },
    "sampler": {"num_sample_steps": 3},
}


class Process:
    """A service as an operator starts it, or with simulated samplers.

    Args:
        service_s: of a simulated chunk; None computes.
        options: of platform/serve_model.py, or settings of the simulated one.
    """

    def __init__(self, model: Path, data: Path, runs: Path, service_s: float | None = None, **options: Any) -> None:
        self.port, self.log = _free_port(), runs.with_suffix(".log")
        self.url = f"http://127.0.0.1:{self.port}"
        if service_s is None:
            command = ["platform/serve_model.py", "--model", str(model), "--port", str(self.port)]
            command += ["--allow-root", str(data), "--runs", str(runs)]
            for name, value in options.items():
                command += [f"--{name.replace('_', '-')}", str(value)]
        else:
            settings = {"model": str(model), "home": str(runs), "allow_roots": [str(data)], **options}
            command = ["benchmarks/serving/simulated.py", json.dumps(settings), str(self.port), str(service_s)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.http = httpx.Client(base_url=self.url, timeout=600, trust_env=False)

    def __enter__(self) -> Process:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.http.get("/health/ready", timeout=10).status_code == 200:
                    time.sleep(2)  # Ray still starts and ends workers
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"the service did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: Any) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, cases: list[dict[str, str]], **draws: Any) -> tuple[str, float]:
        """A cohort's id, and the seconds from the post to its 202."""
        body = json.dumps({"cases": cases, **draws}).encode()
        start = time.perf_counter()
        answer = self.http.post("/v1/cohorts", content=body, headers={"Content-Type": "application/json"})
        seconds = time.perf_counter() - start
        if answer.status_code != 202:
            raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")
        return str(answer.json()["id"]), seconds

    def ended(self, cohort: str) -> int:
        """Cases that have ended; a failed one is an error."""
        counts = self.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]
        if counts["failed"] or counts["cancelled"]:
            raise RuntimeError(f"cases failed: {counts}; the log is {self.log}")
        return int(counts["done"])

    def pids(self) -> dict[str, int]:
        """Of the processes that take requests and keep the jobs."""
        found = {}
        for pid in descendants(self.process.pid):
            title = _read(pid, "cmdline")
            found |= {name: pid for name, start in PROCESSES.items() if title.startswith(start)}
        return found

    def memory(self, key: str = "VmRSS") -> dict[str, float]:
        """MB that they hold now."""
        return {name: _status_mb(pid, key) for name, pid in self.pids().items()}

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds used so far: by the API and the runner, the proxy, the samplers, and all the rest of it."""
        used = dict.fromkeys([*PROCESSES, "samplers", "rest"], 0.0)
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            title, fields = _read(pid, "cmdline"), _read(pid, "stat").rpartition(b")")[2].split()
            name = next((name for name, start in PROCESSES.items() if title.startswith(start)), "rest")
            name = "samplers" if title.startswith((b"ray::Sampler", b"ray::Simulated")) else name
            used[name] += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0
        return used

    @contextmanager
    def growth(self) -> Iterator[dict[str, float]]:
        """MB of their own that they have at most more than at the start, filled in at the end.

        Ray's object store, which all processes share and which has a limit of its own, is not counted.
        """
        pids, ended = self.pids(), threading.Event()
        grown: dict[str, float] = {}
        before = {name: _status_mb(pid, "RssAnon") for name, pid in pids.items()}
        most = dict(before)

        def watch() -> None:
            while not ended.wait(0.02):
                most.update({name: max(most[name], _status_mb(pid, "RssAnon")) for name, pid in pids.items()})

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield grown
        finally:
            ended.set()
            thread.join()
            grown |= {name: most[name] - before[name] for name in pids}


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request on a connection that stays open; status and body of its answer."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head[9:12]), await reader.readexactly(length)


def descendants(parent: int) -> list[int]:
    """Process ids below a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _read(int(folder.name), "stat").rpartition(b")")[2].split()
            if len(fields) > 1:
                parents[int(folder.name)] = int(fields[1])
    found, known = [], {parent}
    while fresh := [pid for pid, above in parents.items() if above in known and pid not in known]:
        known.update(fresh)
        found += fresh
    return found


def tiny_model(folder: Path) -> Path:
    """A model of random weights on a grid of 16 voxels an axis."""
    import torch

    from ldseg.bundle import save_bundle
    from ldseg.config import Config
    from ldseg.model import LDSeg

    config = Config.from_dict(TINY)
    torch.manual_seed(0)
    save_bundle(folder, LDSeg(config), config, {"name": "random weights", "split": {}})
    return folder


def small_cases(folder: Path, count: int) -> list[dict[str, str]]:
    """NIfTI files of noise, each another one, as a manifest lists them."""
    import nibabel as nib

    folder.mkdir(parents=True)
    image = nib.Nifti1Image(np.zeros((GRID - 3, GRID - 1, GRID - 5), np.int16), np.diag([1, 1.5, 2, 1]))
    image.header.set_data_offset(352)
    head, generator = bytes(image.header.binaryblock) + bytes(4), np.random.default_rng(0)
    cases = []
    for number in range(count):
        path = folder / f"case_{number:05d}.nii"
        path.write_bytes(head + generator.integers(0, 1000, image.shape, np.int16).tobytes())
        cases.append({"name": f"case_{number:05d}", "image": str(path)})
    return cases


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the columns are those of all rows in the order in which they appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"

    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(text(row.get(name, "")) for name in names) + " |" for row in rows)])


def milliseconds(spent: list[float]) -> dict[str, float]:
    """Median, 99th percentile (the smallest value that 99 % don't exceed) and largest."""
    ordered = sorted(spent)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median ms": ordered[len(ordered) // 2], "p99 ms": p99, "max ms": ordered[-1]}


def _end_with_parent() -> None:
    """In the new process: it is told to stop when the benchmark ends, also when that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _status_mb(pid: int, key: str) -> float:
    lines = _read(pid, "status").decode().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""
