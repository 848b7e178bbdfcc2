"""The Ray of a service: nobody but the service reaches it, from this machine or from another."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from listeners import Listener, listeners
from service import TOKEN, Service, descendants, environment

from ldseg import ROOT

JOIN = """
import sys
from ldseg.orchestration.cluster.connection import connect
from ldseg.orchestration.cluster.place import Place
connect(Place(kind="job", reason="of another user", address=sys.argv[1]))
print("joined")
"""
# as Ray's own processes on the loopback do, else 127.0.0.1 would become the address of the network
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(scope="module")
def processes(service: Service) -> list[int]:
    return [service.process.pid, *descendants(service.process.pid)]


@pytest.fixture(scope="module")
def ports(processes: list[int]) -> list[Listener]:
    found = listeners(processes)
    assert len(found) > 10, "the control service, raylets, agents, workers and HTTP"
    return found


def test_nothing_listens_beyond_the_loopback(service: Service, ports: list[Listener]) -> None:
    assert service.http.base_url.port in [listener.port for listener in ports]
    open_to_others = [
        (listener, Path(f"/proc/{listener.process}/cmdline").read_bytes()[:80])
        for listener in ports
        if listener.beyond_loopback
    ]
    assert not open_to_others


def test_only_who_has_the_token_joins(service: Service) -> None:
    token = service.ray_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700, "Ray's sockets and files lie there"
    drivers = {
        "no token": {"RAY_AUTH_MODE": "disabled"},
        "another": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        "its own": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
    }
    command = [sys.executable, "-c", JOIN, service.ray_address()]
    started = {
        name: subprocess.Popen(
            command,
            env=environment(PYTHONPATH=str(ROOT), **LOOPBACK, **own),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, own in drivers.items()
    }
    said = {name: process.communicate(timeout=600)[0] for name, process in started.items()}
    for name in ("no token", "another"):
        assert started[name].returncode != 0 and "joined" not in said[name] and "InvalidAuthToken" in said[name]
        assert "does not let this program in" in said[name] and "RAY_AUTH_MODE=token" in said[name]
    assert started["its own"].returncode == 0 and "joined" in said["its own"], said["its own"]


def test_no_port_does_anything_without_the_token(service: Service, ports: list[Listener]) -> None:
    said = set()
    for listener in ports:
        if listener.port == service.http.base_url.port:
            continue
        said.add(_replica(listener.port))
        try:
            url = f"http://127.0.0.1:{listener.port}/api/job_agent/jobs/"
            answer = httpx.post(url, json={"entrypoint": "true"}, trust_env=False, timeout=60)
            assert answer.status_code in (401, 405), (listener, answer.text)
        except httpx.HTTPError:
            continue  # it speaks gRPC
    # a port that speaks gRPC either knows no such call or refuses who has no token
    unavailable, unknown = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED
    assert grpc.StatusCode.UNAUTHENTICATED in said
    assert said <= {grpc.StatusCode.UNAUTHENTICATED, unavailable, unknown}, said


def _replica(port: int) -> grpc.StatusCode:
    """What a port answers to a call of a deployment: its arguments are unpickled, and so whatever one likes is run."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_no_process_has_the_clients_token_in_its_environment(processes: list[int]) -> None:
    seen = 0
    for process in processes:
        try:
            content = Path(f"/proc/{process}/environ").read_bytes()
        except OSError:  # it has ended
            continue
        seen += bool(content)
        assert TOKEN.encode() not in content
    assert seen > 5
