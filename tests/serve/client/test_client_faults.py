"""What clients do to a service: all at the same instant, gone in the midst of an upload, a download, a wait; greed."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
import zipfile
from collections import Counter
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from faulting import ends, wait_for
from service import Service, problem, write_image
from web import Web

OTHER = {"Authorization": "Bearer another-token"}
FORM = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.nii.gz"\r\n\r\n'


@pytest.fixture(params=["web", "service"])
def either(request: pytest.FixtureRequest) -> Web | Service:
    """The interface alone, and behind Ray Serve's proxy."""
    return request.getfixturevalue(request.param)


def uploads_of(either: Web | Service) -> set[str]:
    """Folders of uploads that are being received or waited for."""
    return {path.name for path in (home_of(either) / "uploads").glob("*") if path.name != "kept"}


def home_of(either: Web | Service) -> Path:
    if isinstance(either, Web):
        return either.home / "service"
    return Path(either.log.parent / either.log.name.rpartition("-")[0]) / "service"


def until(condition: object, seconds: float = 120, what: object = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen {what()}"
        time.sleep(0.02)


def connected(either: Web | Service, head: str, *, window: int = 0) -> socket.socket:
    """A connection on which a request has been begun.

    Args:
        window: bytes that the client takes in before it reads.
    """
    url = httpx.URL(either.url)
    connection = socket.socket()
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(120)
    connection.connect((url.host, url.port))
    token = either.http.headers["Authorization"]
    connection.sendall(f"{head}\r\nHost: localhost\r\nAuthorization: {token}\r\n".encode())
    return connection


def test_an_upload_that_is_broken_off_leaves_nothing(either: Web | Service) -> None:
    before = uploads_of(either)
    for path in ("/v1/uploads", "/v1/segmentations"):
        with connected(either, f"POST {path} HTTP/1.1") as connection:
            head = f"Content-Type: {FORM}\r\nContent-Length: 900000\r\n\r\n".encode()
            connection.sendall(head + HEAD + b"x" * 200_000)
            until(lambda: uploads_of(either) > before)
        until(lambda: uploads_of(either) == before)


def test_a_client_that_leaves_while_its_volume_is_segmented_takes_the_work_along(
    either: Web | Service, data: Path
) -> None:
    before, known = uploads_of(either), newest(either)
    fields = b"".join(
        b'\r\n--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s' % pair
        for pair in ((b"samples", b"256"), (b"steps", b"1000"))
    )
    body = HEAD + (data / "case_0.nii.gz").read_bytes() + fields + b"\r\n--b--\r\n"
    with connected(either, "POST /v1/segmentations HTTP/1.1") as connection:
        connection.sendall(f"Content-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: newest(either) != known and newest(either)["state"] == "running")
    cohort = newest(either)["id"]
    until(lambda: either.http.get(f"/v1/cohorts/{cohort}").json()["state"] == "cancelled")
    assert either.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]["cancelled"] == 1
    either.http.delete(f"/v1/cohorts/{cohort}?forget=true")
    until(lambda: uploads_of(either) == before)


def newest(either: Web | Service) -> dict:
    found = either.http.get("/v1/cohorts?limit=1").json()["cohorts"]
    return dict(found[0]) if found else {}


def test_downloads_that_are_broken_off_cost_nothing(web: Web, tmp_path: Path) -> None:
    image = write_image(tmp_path / "large.nii.gz", 1, (96, 96, 96))
    upload = web.http.post("/v1/uploads", files={"image": ("large.nii.gz", image.read_bytes())}).json()["image"]
    cohort = web.post({"a": upload})
    web.finish(cohort)
    case = web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()
    key, entry = max(case["files"].items(), key=lambda item: item[1]["bytes"])
    assert entry["bytes"] > 2**19, "more than the buffers on the way hold"
    paths, before = (entry["href"], f"/v1/cohorts/{cohort}/archive.zip"), descriptors(web)
    for path in paths * 10:
        with connected(web, f"GET {path} HTTP/1.1", window=4096) as connection:
            connection.sendall(b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: len(descriptors(web)) <= len(before) + 2, 90, what=lambda: sorted(descriptors(web)))
    whole = web.http.get(paths[0]).content
    assert hashlib.sha256(whole).hexdigest() == entry["sha256"]
    with zipfile.ZipFile(BytesIO(web.http.get(paths[1]).content)) as archive:
        assert archive.testzip() is None and archive.read(f"maps/a/{entry['name']}") == whole
    assert "Traceback" not in web.log.read_text()


def descriptors(web: Web) -> list[str]:
    """What its process has open, without its database, of which a pool of threads keeps connections of its own.

    It is asked for something first: what a cancelled answer had open is closed by the garbage collector, which runs
    where there is work.
    """
    assert web.http.get("/v1/cohorts?limit=100").status_code == 200
    found = []
    for descriptor in Path(f"/proc/{web.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(descriptor.readlink()))
    return [name for name in found if "jobs.db" not in name]


def test_the_same_key_from_many_clients_at_once_is_one_cohort(web: Web) -> None:
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 2}
    answers: list[httpx.Response] = []
    barrier = threading.Barrier(12)

    def post() -> None:
        barrier.wait()
        answers.append(web.http.post("/v1/cohorts", json=body, headers={"Idempotency-Key": "at once"}))

    threads = [threading.Thread(target=post) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202} and len({a.json()["id"] for a in answers}) == 1
    other = web.http.post("/v1/cohorts", json=body | {"seed": 5}, headers={"Idempotency-Key": "at once"})
    problem(other, 422, "idempotency-conflict")
    assert web.finish(answers[0].json()["id"])["counts"]["done"] == 1


def test_200_clients_that_post_at_once_are_taken_or_told_to_wait(service: Service, data: Path) -> None:
    """Of the whole service, three of whose cohorts may be unfinished."""

    async def all_at_once() -> list[httpx.Response]:
        limits, headers = httpx.Limits(max_connections=200), {"Authorization": service.http.headers["Authorization"]}
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60, trust_env=False) as client:
            body = {"cases": [{"name": "a", "image": str(data / "case_0.nii.gz")}], "samples": 2}
            return await asyncio.gather(*(client.post(f"{service.url}/v1/cohorts", json=body) for _ in range(200)))

    answers = asyncio.run(all_at_once())
    told = Counter(answer.status_code for answer in answers)
    assert set(told) <= {202, 429} and told[202] >= 3, told
    for answer in answers:
        if answer.status_code == 429:
            problem(answer, 429, "too-busy")
            assert int(answer.headers["Retry-After"]) > 0
        else:
            assert service.wait(answer.json()["id"])["counts"]["done"] == 1
            assert ends(service, answer.json()["id"]) == Counter({("a", "done"): 1})


def test_three_cases_of_one_token_do_not_wait_for_three_thousand_of_another(web: Web) -> None:
    """However many cohorts the other has cut them into."""
    large = [web.post({f"n{k}": f"case_{k % 3}.nii.gz" for k in range(150)}) for _ in range(20)]
    try:
        wait_for(web, large[0], 1)
        before = sum(done(web, cohort) for cohort in large)
        body = {"cases": [{"name": f"s{k}", "image": f"case_{k}.nii.gz"} for k in range(3)], "samples": 2}
        small = web.http.post("/v1/cohorts", json=body, headers=OTHER).json()["id"]
        until(lambda: web.http.get(f"/v1/cohorts/{small}", headers=OTHER).json()["state"] == "done")
        assert sum(done(web, cohort) for cohort in large) - before < 20
    finally:
        for cohort in large:
            web.http.delete(f"/v1/cohorts/{cohort}")


def done(web: Web, cohort: str) -> int:
    return int(web.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]["done"])


def test_a_small_cohort_does_not_wait_for_a_large_one(web: Web) -> None:
    large = web.post({f"n{k}": f"case_{k % 3}.nii.gz" for k in range(200)}, samples=4, seed=3)
    wait_for(web, large, 1)
    small = web.post({f"s{k}": f"case_{k}.nii.gz" for k in range(3)}, samples=4, seed=3)
    assert web.finish(small)["counts"]["done"] == 3
    counts = web.http.get(f"/v1/cohorts/{large}?cases=false").json()["counts"]
    assert counts["done"] < 100, counts
    assert web.http.delete(f"/v1/cohorts/{large}").json()["state"] == "cancelled"
    assert web.finish(large)["counts"]["running"] == 0
    assert web.http.delete(f"/v1/cohorts/{large}?forget=true").status_code == 200
    problem(web.http.get(f"/v1/cohorts/{large}"), 404, "not-found")
    assert not (web.home / "service" / "results" / large).exists()


def test_samples_are_drawn_until_they_are_enough(web: Web) -> None:
    wanted = {"min": 4, "max": 40, "tolerance": 0.02}
    cohort = web.post({"a": "case_0.nii.gz"}, samples=wanted)
    document = web.finish(cohort)
    assert document["samples"] == wanted and document["counts"]["done"] == 1
    used = web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["numbers"]["samples"]
    assert 4 <= used <= 40
    strict = web.post({"a": "case_0.nii.gz"}, samples=wanted | {"tolerance": 1e-6})
    web.finish(strict)
    assert web.http.get(f"/v1/cohorts/{strict}/cases/a").json()["numbers"]["samples"] == 40
    assert used < 40
