"""The service on a running cluster, by `serve deploy` of serve/config.yaml, for tests that speak HTTP with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from service import START_S, TOKEN, Service, environment, free_port

from ldseg import ROOT
from serve.tokens import hash_token

CONFIG = ROOT / "serve" / "config.yaml"
BIN = Path(sys.executable).parent
RAY_TOKEN = "0123456789abcdef" * 4
RAY_HEADERS = {"Authorization": f"Bearer {RAY_TOKEN}"}


def ray_environment(**more: str) -> dict[str, str]:
    """Of every process of a cluster under test."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RAY_TOKEN}
    own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    return environment(**own | more)


class Head:
    """`ray start --head` as an operator types it, on ports of its own."""

    def __init__(self, folder: Path, cpus: int, **env: str) -> None:
        self.dashboard, self.log = free_port(), folder / "head.log"
        ports = {"port": free_port(), "dashboard-port": self.dashboard, "ray-client-server-port": free_port()}
        ports |= {"dashboard-agent-listen-port": free_port(), "metrics-export-port": free_port()}
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += [f"--num-cpus={cpus}", f"--object-store-memory={100 * 2**20}", "--node-ip-address=127.0.0.1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(BIN / "ray"), "start", "--head", "--block", *options],
                cwd=folder, stdout=log, stderr=log, env=ray_environment(**env), start_new_session=True,
            )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        """Until the dashboard answers, which `serve deploy` speaks with."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"
                if httpx.get(url, headers=RAY_HEADERS, timeout=30, trust_env=False).status_code == 200:
                    assert httpx.get(url, timeout=30, trust_env=False).status_code == 401
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


class Deployed(Service):
    """The service of serve/config.yaml, with some of its values changed."""

    def __init__(self, folder: Path, dashboard: int, **args: Any) -> None:
        self.dashboard, self.file = dashboard, folder / "config.yaml"
        self.config = yaml.safe_load(CONFIG.read_text())
        self.config["http_options"]["port"] = port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "head.log"
        self.process = None  # type: ignore[assignment]
        self.args = self.config["applications"][0]["args"]
        self.args |= {
            "home": str(folder / "runs"),
            "tokens": {"default": {"sha256": hash_token(TOKEN), "operator": True}},
        } | args
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)
        self.deploy()

    def deploy(self, **changed: Any) -> None:
        """`serve deploy`, again with changed values."""
        self.args |= changed
        self.file.write_text(yaml.safe_dump(self.config))
        command = [str(BIN / "serve"), "deploy", str(self.file), "--address", f"http://127.0.0.1:{self.dashboard}"]
        done = subprocess.run(command, cwd=ROOT, env=ray_environment(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """What Ray Serve says of the application."""
        url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"
        answer = httpx.get(url, headers=RAY_HEADERS, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["applications"]["ldseg"])

    def wait_ready(self) -> Deployed:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if self.http.get("/health/ready", timeout=10).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"the service did not start: {self.status()}")

    def samplers(self, state: str) -> float:  # type: ignore[override]
        """How many are "alive" or "starting"."""
        return self.gauge(f'ldseg_samplers{{state="{state}"}}')

    def gauge(self, name: str) -> float:
        """A value of /metrics, by its name and labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))
