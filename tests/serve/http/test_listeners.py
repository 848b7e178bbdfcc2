"""Followers of events at Ray Serve: one token's leave room for all else, and those that leave are no error."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from service import TOKEN, Service, problem

from serve.settings import Settings

MOST = Settings(model="m").max_listeners


def follower(service: Service, cohort: str) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=120)
    headers = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    made.sendall(f"GET /v1/cohorts/{cohort}/events HTTP/1.1\r\n{headers}".encode())
    return made


def test_listeners_leave_room_and_leave_without_an_error(service: Service, data: Path) -> None:
    cohort = service.post({f"c{k}": data / f"case_{k % 3}.nii.gz" for k in range(40)}, samples=64, steps=50)
    said = service.log.stat().st_size
    try:
        followers = [follower(service, cohort) for _ in range(MOST)]
        assert all(one.recv(2**16).startswith(b"HTTP/1.1 200") for one in followers)
        refused = service.http.get(f"/v1/cohorts/{cohort}/events")
        problem(refused, 429, "too-busy")
        assert int(refused.headers["Retry-After"]) > 0
        assert service.http.get("/health/live").status_code == service.http.get("/v1/model").status_code == 200
        for one in followers:
            one.close()
        deadline = time.monotonic() + 120
        while service.http.get(f"/v1/cohorts/{cohort}/cases?limit=1").status_code != 200 or not frees(service, cohort):
            assert time.monotonic() < deadline
    finally:
        service.http.delete(f"/v1/cohorts/{cohort}")
        service.wait(cohort)
    told = service.log.read_text()[said:]
    assert "ERROR" not in told and "Traceback" not in told, told


def frees(service: Service, cohort: str) -> bool:
    """Whether a new listener is let in."""
    with service.http.stream("GET", f"/v1/cohorts/{cohort}/events") as answer:
        return answer.status_code == 200
