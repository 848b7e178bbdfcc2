"""What a connection may take before a token is known, on a server as Ray Serve's proxy has it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
import uvicorn
from service import Service, free_port
from starlette.types import Receive, Scope, Send

from serve import connections
from serve.connections import MAX_HEADER_BYTES, Connection, PlainHeaders

START = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
ANSWER_BYTES = 2**26  # more than the system holds of an answer that nobody reads


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """A long answer at /long, else a short one."""
    size = ANSWER_BYTES if scope["path"] == "/long" else 2
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(size)})


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Long, where a test does not shorten it."""
    monkeypatch.setattr(connections, "HEADERS_S", 600.0)
    monkeypatch.setattr(connections, "WRITE_S", 600.0)
    monkeypatch.setattr(connections, "MAX_OF_ADDRESS", 5)
    monkeypatch.setattr(connections, "forwarders", lambda: ())
    return monkeypatch


@pytest.fixture
def port(patience: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server in this process."""
    found = free_port()
    config = uvicorn.Config(application, port=found, http=Connection, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    until(lambda: server.started)
    yield found
    server.should_exit = server.force_exit = True
    thread.join()
    assert not Connection.open


def until(happened: object) -> None:
    deadline = time.monotonic() + 60
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connected(port: int, content: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    made.sendall(content)
    return made


def rest(connection: socket.socket) -> bytes:
    """All that comes until it is closed."""
    found = b""
    with suppress(ConnectionError):
        while piece := connection.recv(2**16):
            found += piece
    return found


def taken(port: int) -> int:
    """Bytes of headers that could be sent before the connection ended; a hundred times the limit if it didn't."""
    sent = 0
    with connected(port, START) as connection, suppress(ConnectionError):
        while sent < 100 * MAX_HEADER_BYTES:
            connection.sendall(b"X-%d: %b\r\n" % (sent, b"a" * 1000))
            sent += 1000
    return sent


def test_headers_without_end_are_refused(port: int) -> None:
    assert taken(port) < 100 * MAX_HEADER_BYTES
    assert httpx.get(f"http://127.0.0.1:{port}/", headers={"X": "a" * 60_000}, trust_env=False).status_code == 200


@pytest.mark.parametrize("begun", [b"", START, b"G"])
def test_headers_that_do_not_come_end_the_connection(port: int, begun: bytes, patience: pytest.MonkeyPatch) -> None:
    patience.setattr(connections, "HEADERS_S", 1.0)
    with connected(port, begun) as connection:
        assert rest(connection) == b""


def test_headers_byte_by_byte_gain_no_time(port: int, patience: pytest.MonkeyPatch) -> None:
    patience.setattr(connections, "HEADERS_S", 1.0)
    with connected(port, START) as connection, pytest.raises(ConnectionError):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection.sendall(b"a")
            time.sleep(0.05)


def test_an_answer_that_is_not_read_is_broken_off(port: int, patience: pytest.MonkeyPatch) -> None:
    patience.setattr(connections, "WRITE_S", 1.0)
    with connected(port, b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        until(lambda: Connection.open)
        until(lambda: not Connection.open)
        assert len(rest(connection)) < ANSWER_BYTES
    patience.setattr(connections, "WRITE_S", 600.0)
    answer = httpx.get(f"http://127.0.0.1:{port}/long", trust_env=False, timeout=60)
    assert len(answer.content) == ANSWER_BYTES


def test_an_address_has_so_many_connections(port: int, patience: pytest.MonkeyPatch) -> None:
    held = [connected(port) for _ in range(connections.MAX_OF_ADDRESS)]
    until(lambda: Connection.open.total() == len(held))
    with connected(port) as refused:
        assert rest(refused) == b""
    patience.setattr(connections, "forwarders", lambda: ("127.0.0.1",))  # a proxy has many clients
    assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
    for connection in held:
        connection.close()


def test_a_connection_is_kept_for_the_next_request(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert {client.get("/").status_code for _ in range(5)} == {200}
        assert Connection.open.total() == 1


def test_what_only_ray_serve_would_read_does_not_reach_it() -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for _, value in scope["headers"])

    good = [(b"x-request-id", b"a-b.1"), (b"accept", b"\xff")]
    bad = [(b"x-request-id", value) for value in (b"\xc3\xa9", b"", b"a b", b"a" * 101)]
    bad += [(name, b"1") for name in (*connections.CONTROLS, b"serve_multiplexed_model_id", b"x_session_id")]
    asyncio.run(PlainHeaders(app)({"type": "http", "headers": good + bad}, None, None))  # type: ignore[arg-type]
    assert seen == [b"a-b.1", b"\xff"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Request-ID": "é".encode()},
        {"X-Request-ID": b"\xff" * 50},
        {"X-Request-Timeout-Seconds": b"\xff"},
        {"X-Request-Timeout-Seconds": b"0.001"},
        {"serve_multiplexed_model_id": b"\xff"},
        {"X-Session-ID": b"\xff"},
    ],
)
def test_no_header_is_a_fault(service: Service, headers: dict[str, bytes]) -> None:
    answer = service.http.get("/v1/model", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 200 and answer.headers["x-request-id"].isascii()


def test_ray_serves_proxy_has_these_limits(service: Service) -> None:
    assert taken(int(service.url.rpartition(":")[2])) < 100 * MAX_HEADER_BYTES
    assert service.http.get("/health/ready").status_code == 200
