"""A real service in its own process, for tests that speak HTTP with it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

from ldseg import ROOT

AFFINE = np.array([[0.1, -1.5, 0.1, 4], [0.8, 0.05, 0, -3], [0, 0.1, 2.5, 7], [0, 0, 0, 1.0]])
START_S, JOB_S = 600.0, 600.0  # generous: the machine may be busy
TOKEN = "a-token-for-tests"


def environment(**more: str) -> dict[str, str]:
    """Of a program under test."""
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"} | more


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = (13, 15, 11)) -> Path:
    """A NIfTI of noise with an oblique, anisotropic affine and both codes set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.random.default_rng(seed).normal(size=shape).astype(np.float32), AFFINE)
    image.set_sform(AFFINE, 2)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def free_port() -> int:
    """Below those that the kernel hands out: a Ray that starts takes many of these, on the loopback too."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:ldseg:problem:{kind}"
    return dict(answer.json())


class Service:
    """platform/serve_model.py as an operator starts it."""

    def __init__(self, bundle: Path, data: Path, runs: Path, *options: str, token: str = TOKEN) -> None:
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", runs.parent / f"{runs.name}-{port}.log"
        command = [sys.executable, "platform/serve_model.py", "--model", str(bundle), "--port", str(port)]
        command += ["--allow-root", str(data), "--runs", str(runs), "--object-store-mb", "100", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=environment(LDSEG_TOKEN=token),
                start_new_session=True,
            )
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def wait_ready(self) -> Service:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.http.get("/health/ready", timeout=10).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the service did not start:\n{self.log.read_text()[-3000:]}")

    def post(self, cases: dict[str, Path], **draws: Any) -> str:
        """Post a cohort; the id."""
        listed = [{"name": name, "image": str(path)} for name, path in cases.items()]
        answer = self.http.post("/v1/cohorts", json={"cases": listed, "samples": 6} | draws)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"/v1/cohorts/{answer.json()['id']}"
        return str(answer.json()["id"])

    def wait(self, cohort: str, *states: str) -> dict[str, Any]:
        """The cohort's document once it is in one of the states (default: done or cancelled)."""
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            document = self.http.get(f"/v1/cohorts/{cohort}").json()
            if document["state"] in (states or ("done", "cancelled")):
                return dict(document)
            time.sleep(0.1)
        raise AssertionError(f"the cohort did not end: {document}")

    def maps(self, cohort: str, name: str) -> dict[str, bytes]:
        """The bytes of each file of a case."""
        case = self.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()
        assert case["state"] == "done", case
        return {key: self.http.get(entry["href"]).content for key, entry in case["files"].items()}

    def samplers(self) -> list[int]:
        """Process ids of its samplers."""
        return [pid for pid in descendants(self.process.pid) if b"Sampler" in _read(pid, "cmdline")]

    def ray_address(self) -> str:
        """Of the control service of its Ray."""
        (words,) = [line for pid in self._below() if b"--raylet_socket_name" in (line := _read(pid, "cmdline"))]
        (found,) = [word for word in words.split(b"\0") if word.startswith(b"--gcs-address=")]
        return found.partition(b"=")[2].decode()

    def ray_token(self) -> Path:
        """The file with the token of its Ray."""
        variables = [word for pid in self._below() for word in _read(pid, "environ").split(b"\0")]
        (found,) = {word for word in variables if word.startswith(b"RAY_AUTH_TOKEN_PATH=")}
        return Path(found.partition(b"=")[2].decode())

    def _below(self) -> list[int]:
        return descendants(self.process.pid)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Exit status, and the seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        try:
            return self.process.wait(60), time.monotonic() - start
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(), time.monotonic() - start


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


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


def load(content: bytes) -> nib.Nifti1Image:
    import gzip

    return nib.Nifti1Image.from_bytes(gzip.decompress(content))
