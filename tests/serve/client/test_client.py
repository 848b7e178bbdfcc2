"""The client over connections that break."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from service import TOKEN
from web import Web

from serve.client.client import Client, ClientError


class Breaking:
    """Between client and service: connection k lets through `limits[k]` bytes of answers, later ones all.

    Attributes:
        requests: the first line and headers of each request.
    """

    def __init__(self, port: int, limits: list[int]) -> None:
        self.port, self.limits, self.requests = port, limits, list[str]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            limit = self.limits[number] if number < len(self.limits) else 2**62
            number += 1
            threading.Thread(target=self._carry, args=(client, limit), daemon=True).start()

    def _carry(self, client: socket.socket, limit: int) -> None:
        service = socket.create_connection(("127.0.0.1", self.port))

        def up() -> None:
            while data := _receive(client):
                if data[:8].split(b" ")[0] in (b"GET", b"POST"):
                    self.requests.append(data.partition(b"\r\n\r\n")[0].decode("latin-1"))
                service.sendall(data)
            _end(service)

        threading.Thread(target=up, daemon=True).start()
        while data := _receive(service):
            data, limit = data[:limit], limit - len(data)
            if data:
                client.sendall(data)
            if limit <= 0:
                break
        _end(client), _end(service)


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(2**16)
    except OSError:
        return b""


def _end(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@pytest.fixture
def breaking(web: Web) -> Iterator[Callable[..., tuple[Client, Breaking]]]:
    made = []

    def make(*limits: int) -> tuple[Client, Breaking]:
        made.append(Breaking(web.port, list(limits)))
        return Client(made[-1].url, TOKEN, patience_s=20), made[-1]

    yield make
    for proxy in made:
        proxy.listener.close()


def test_a_post_whose_answer_is_lost_is_one_cohort(web: Web, breaking: Callable) -> None:
    client, proxy = breaking(0, 10)
    before = cohorts(web)
    cohort = client.post({"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 1})
    assert len(proxy.requests) >= 3
    assert cohorts(web) == [cohort, *before]


def cohorts(web: Web) -> list[str]:
    """All of them, page by page, the newest first."""
    found, following = [], "/v1/cohorts?limit=3"
    while following:
        answer = web.http.get(following)
        found += [cohort["id"] for cohort in answer.json()["cohorts"]]
        following = answer.links.get("next", {}).get("url")
    return found


def test_a_broken_download_goes_on_where_it_was(web: Web, breaking: Callable, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    cohort, entry = put_file(web, content)
    client, proxy = breaking(1_000_000, 500_000)
    target = tmp_path / "folder" / "label.nii.gz"
    assert client.download(entry, target)
    assert target.read_bytes() == content
    ranges = [line for text in proxy.requests for line in text.splitlines() if line.lower().startswith("range")]
    starts = [int(line.partition("=")[2].rstrip("-")) for line in ranges]
    assert len(proxy.requests) == 3 and len(starts) == 2 and 900_000 < starts[0] < starts[1] < 1_600_000
    assert not client.download(entry, target)  # nothing is fetched twice
    assert [path.name for path in target.parent.iterdir()] == ["label.nii.gz"]
    part = target.parent / f".{entry['sha256'][:32]}.part"  # of an earlier program that was killed, and damaged
    target.unlink()
    part.write_bytes(b"x" + content[1:2000])
    assert client.download(entry, target) and target.read_bytes() == content


def put_file(web: Web, content: bytes) -> tuple[str, dict]:
    """A finished case whose label is replaced by a large file."""
    cohort = web.post({"a": "case_0.nii.gz"})
    web.finish(cohort)
    entry = web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["files"]["label"]
    (web.home / "service" / "results" / cohort / "a" / entry["name"]).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with sqlite3.connect(web.home / "service" / "jobs.db", timeout=30) as database:
        database.execute(
            "update job_cases set result = replace(replace(result, ?, ?), ?, ?) "
            "where cohort = (select number from job_cohorts where id = ?)",
            (entry["sha256"], digest, f'"bytes": {entry["bytes"]}', f'"bytes": {len(content)}', cohort),
        )
    changed = web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["files"]["label"]
    assert changed["sha256"] == digest and changed["bytes"] == len(content)
    return cohort, changed


def test_a_damaged_file_is_refused(web: Web, tmp_path: Path) -> None:
    cohort = web.post({"a": "case_0.nii.gz"})
    web.finish(cohort)
    client = Client(web.url, TOKEN)
    entry = client.case(cohort, "a")["files"]["label"]
    path = web.home / "service" / "results" / cohort / "a" / entry["name"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ClientError, match="damaged"):
        client.download(entry, tmp_path / "label")
    path.write_bytes(b"short")
    with pytest.raises(ClientError, match="damaged"):
        client.download(entry, tmp_path / "label")
    assert not list(tmp_path.iterdir())


def test_an_upload_is_named_in_a_cohort_and_a_refusal_has_its_kind(web: Web, breaking: Callable, data: Path) -> None:
    client, proxy = breaking(0)
    image = client.upload(data / "case_0.nii.gz")
    assert image == client.upload(data / "case_0.nii.gz") and len(proxy.requests) >= 2
    cases = [{"name": "a", "image": image}, {"name": "b", "image": "case_1.nii.gz"}]
    cohort = client.post({"cases": cases, "samples": 2})
    seen: list[dict] = []
    assert client.follow(cohort, seen.append)["counts"]["done"] == 2 and seen
    with pytest.raises(ClientError, match="has no case") as caught:
        client.case(cohort, "none")
    assert (caught.value.kind, caught.value.status) == ("not-found", 404)


def test_a_busy_service_is_waited_for_and_a_silent_one_given_up(web: Web, data: Path, tmp_path: Path) -> None:
    model = json.loads((web.home / "settings.json").read_text())["model"]
    busy = Web(Path(model), tmp_path, allow_roots=[str(data)], max_cohorts=1, max_steps=300).wait_ready()
    try:
        client = Client(busy.url, patience_s=60)
        first = client.post({"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 256, "steps": 300})
        with pytest.raises(ClientError, match="429"):
            Client(busy.url, patience_s=1).post({"cases": [{"name": "b", "image": "case_0.nii.gz"}]})
        threading.Timer(1, lambda: busy.http.delete(f"/v1/cohorts/{first}")).start()
        start = time.monotonic()
        assert client.post({"cases": [{"name": "b", "image": "case_0.nii.gz"}]}) != first
        assert time.monotonic() - start > 9  # as Retry-After asked
    finally:
        busy.stop()
    start = time.monotonic()
    with pytest.raises(ClientError, match="can't be reached"):
        client.model()
    assert time.monotonic() - start < 60  # its patience
