"""The HTTP interface in a process of its own: the real application, store and runner, sampling without a cluster.

As a program: python web.py SETTINGS.json PORT
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ldseg import ROOT


class LocalPool:
    """Samples here, one case at a time, as the sampler actors would."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()

    async def draw(
        self, grid: Any, *, seed: int, plan: Any, num_steps: int | None, models: Any, whole: bool, cancelled: Any = None
    ) -> Any:
        from ldseg.bundle import load_bundle
        from ldseg.posterior.adaptive import Drawing
        from ldseg.posterior.sampling import Posterior
        from ldseg.posterior.stopwatch import STAGES
        from serve.sampling.pool import Drawn

        def work() -> Any:
            posteriors = [Posterior(load_bundle(Path(model.path))) for model in models]
            embeddings = [posterior.encode(grid) for posterior in posteriors]
            drawing = Drawing(plan, 4, len(models))
            for k, indices in drawing.chunks():
                part = posteriors[k].accumulate(grid, embeddings[k], seed=seed, indices=indices, num_steps=num_steps)
                if drawing.take(part):
                    break
            return Drawn(drawing.totals, embeddings, None, dict.fromkeys(STAGES, 0.0))

        async with self.turn:
            return await asyncio.to_thread(work)


async def serve(settings: dict[str, Any], port: int) -> None:
    """Until SIGTERM."""
    import uvicorn

    from serve.api.application import create_app
    from serve.app import make_service
    from serve.settings import Settings

    own = Settings.from_dict(settings)
    own.folder.mkdir(parents=True, exist_ok=True)
    service = make_service(own, LocalPool())  # type: ignore[arg-type]
    service.runner.start()
    service.self_tested.set()
    patience = {"timeout_graceful_shutdown": 2, "timeout_keep_alive": 60}
    config = uvicorn.Config(create_app(service), port=port, log_level="info", **patience)
    await uvicorn.Server(config).serve()
    await service.runner.stop()


class Web:
    """A process that serves."""

    def __init__(self, bundle: Path, folder: Path, *, token: str = "", **settings: Any) -> None:
        from service import environment, free_port

        folder.mkdir(parents=True, exist_ok=True)
        self.home, port = Path(settings.get("home", folder)), free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "web.log"
        (folder / "settings.json").write_text(json.dumps({"model": str(bundle), "home": str(folder)} | settings))
        command = [sys.executable, __file__, str(folder / "settings.json"), str(port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment(PYTHONPATH=str(ROOT))
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        self.port = port

    def wait_ready(self) -> Web:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.http.get("/health/ready").status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"it did not start:\n{self.log.read_text()[-3000:]}")

    def post(self, cases: dict[str, str], **draws: Any) -> str:
        """A cohort's id."""
        body = {"cases": [{"name": name, "image": image} for name, image in cases.items()], "samples": 2} | draws
        answer = self.http.post("/v1/cohorts", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finish(self, cohort: str) -> dict[str, Any]:
        """The cohort's document at its end."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            document = self.http.get(f"/v1/cohorts/{cohort}").json()
            if document["state"] in ("done", "cancelled"):
                return dict(document)
            time.sleep(0.05)
        raise AssertionError(f"the cohort did not end: {document}")

    def used(self) -> float:
        """Seconds of processor time that it and its ended children have taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Bytes that it holds now."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """Bytes that it held at most since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def bounded(web: Web, *, seconds: float = 2.0, megabytes: int = 128) -> Iterator[None]:
    """Processor time, which a busy machine does not change, and memory."""
    web.http.get("/v1/model")
    web.reset_peak()
    before, start = web.rss(), web.used()
    yield
    assert web.used() - start < seconds
    assert web.peak() - before < megabytes * 2**20
    assert web.http.get("/v1/model").status_code == 200


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["OMP_NUM_THREADS"] = "1"
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
