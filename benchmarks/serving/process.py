"""A service in processes of its own, what they hold in memory, and models and cases that are small."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.common import ROOT, random_model

START_S = 240.0
GRID = 16  # voxels an axis of the small cases
TOKEN = "benchmark"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
# the last: on a busy machine Serve's proxy needs longer to start than the 5 s that it is given
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LDSEG_TOKEN": TOKEN}
ENVIRONMENT |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
WATCHED = ("API and runner", "proxy")
TITLES = {
    b"ray::ServeReplica:ldseg:Ingress": WATCHED[0],
    b"ray::ProxyActor": WATCHED[1],
    b"ray::Sampler": "samplers",
    b"ray::Simulated": "samplers",
}
TINY = {
    "data": {"shape": [GRID] * 3, "label_values": [0, 1, 2], "structures": ["organ", "nodule"]},
    "model": {
        "downsampling": [4] * 3, "patch": [2] * 3, "latent_channels": 2, "embedding_channels": 8,
        "autoencoder_widths": [8, 8], "image_widths": [8, 8, 16], "denoiser_widths": [8, 16],
    },
    "sampler": {"num_sample_steps": 3},
}  # fmt: skip


class Service:
    """A service as an operator starts it, or with simulated samplers.

    Args:
        chunk_s: of a simulated chunk; None computes.
        options: of platform/serve_model.py.
    """

    def __init__(self, model: Path, data: Path, runs: Path, chunk_s: float | None = None, **options: Any) -> None:
        self.port, self.log = _free_port(), runs.with_suffix(".log")
        command: list[Any] = ["platform/serve_model.py"]
        if chunk_s is not None:
            command = ["-m", "benchmarks.serving.simulated", chunk_s]
        options = {"model": model, "port": self.port, "allow_root": data, "runs": runs, **options}
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=ROOT, stdout=log, stderr=log, env=os.environ | ENVIRONMENT,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, headers=AUTHORIZATION, timeout=600, trust_env=False)

    def __enter__(self) -> Service:
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

    def _processes(self) -> Iterator[tuple[str, int, float]]:
        """Kind, process id and CPU seconds so far of each of its processes: those of its session."""
        for folder in Path("/proc").glob("[0-9]*"):
            title, fields = _read(folder / "cmdline"), _read(folder / "stat").rpartition(b")")[2].split()
            if fields and int(fields[3]) == self.process.pid:
                kind = next((kind for start, kind in TITLES.items() if title.startswith(start)), "rest")
                yield kind, int(folder.name), sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def _watched(self) -> dict[str, int]:
        return {kind: pid for kind, pid, _ in self._processes() if kind in WATCHED}

    def memory(self) -> dict[str, float]:
        """MB that the processes which take requests and keep the jobs hold now."""
        return {kind: _status_mb(pid, "VmRSS") for kind, pid in self._watched().items()}

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds used so far: by the API and the runner, the proxy, the samplers, and all the rest of it."""
        used = dict.fromkeys([*WATCHED, "samplers", "rest"], 0.0)
        for kind, _, seconds in self._processes():
            used[kind] += seconds
        return used

    @contextmanager
    def growth(self) -> Iterator[dict[str, float]]:
        """MB of their own that they have at most more than at the start, filled in at the end.

        Ray's object store, which all processes share and which has a limit of its own, is not counted.
        """
        pids, ended = self._watched(), threading.Event()
        before = {kind: _status_mb(pid, "RssAnon") for kind, pid in pids.items()}
        grown = dict.fromkeys(pids, 0.0)

        def watch() -> None:
            while not ended.wait(0.02):
                for kind, pid in pids.items():
                    grown[kind] = max(grown[kind], _status_mb(pid, "RssAnon") - before[kind])

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield grown
        finally:
            ended.set()
            thread.join()


def tiny_model(folder: Path) -> Path:
    """A model of random weights on a grid of 16 voxels an axis."""
    return random_model(folder, TINY)


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


def milliseconds(spent: list[float]) -> dict[str, float]:
    """Median, 99th percentile (the smallest value that 99 % don't exceed) and largest."""
    ordered = sorted(spent)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median ms": ordered[len(ordered) // 2], "p99 ms": p99, "max ms": ordered[-1]}


def _end_with_parent() -> None:
    """In the new process: it is told to stop when the benchmark ends, also when that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    """Below those that the kernel hands out, of which a Ray that starts takes many."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _status_mb(pid: int, key: str) -> float:
    lines = _read(Path(f"/proc/{pid}/status")).decode().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
