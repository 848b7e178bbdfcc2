"""Server-sent events, metrics and logs over real HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from service import problem
from web import Web

from serve.http.sse import Event, stream


def events(answer: httpx.Response) -> list[dict]:
    found = []
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in lines:
            found.append({"id": int(lines["id"]), "event": lines["event"], "data": json.loads(lines["data"])})
    return found


def test_events_come_once_each_and_end_with_the_cohort(web: Web) -> None:
    cohort = web.post({f"c{k}": "case_0.nii.gz" for k in range(5)})
    answer = web.http.get(f"/v1/cohorts/{cohort}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("retry: ")
    told = events(answer)
    assert [event["id"] for event in told] == list(range(1, len(told) + 1))
    cases = [event["data"] for event in told if event["event"] == "case"]
    for state in ("running", "done"):
        assert sorted(case["name"] for case in cases if case["state"] == state) == [f"c{k}" for k in range(5)]
    assert [event["event"] for event in told].count("end") == 1 and told[-1]["event"] == "end"
    assert told[-1]["data"]["counts"]["done"] == 5
    for later in ({"headers": {"Last-Event-ID": "3"}}, {"params": {"after": 3}}):
        assert events(web.http.get(f"/v1/cohorts/{cohort}/events", **later)) == told[3:]
    both = web.http.get(f"/v1/cohorts/{cohort}/events", headers={"Last-Event-ID": "5"}, params={"after": 3})
    assert events(both) == told[5:]  # a reconnection knows better than the address
    assert web.http.get(f"/v1/cohorts/{cohort}/events?after={len(told)}").status_code == 204
    for wrong in ("x", "-1", "1" * 30, "١"):
        headers = {"Last-Event-ID": wrong.encode()}
        problem(web.http.get(f"/v1/cohorts/{cohort}/events", headers=headers), 422, "invalid-request")


def test_silence_is_filled_and_a_client_that_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Event] = []
    asked = now = 0
    monkeypatch.setattr("serve.http.sse.time", SimpleNamespace(monotonic=lambda: now))

    async def wake(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def source(cohort: str, after: int, limit: int) -> Sequence[Event]:
        nonlocal asked
        asked += 1
        return [event for event in happened if event.id > after][:limit]

    async def gone() -> bool:
        return asked > 30

    async def collect() -> list[bytes]:
        return [piece async for piece in stream(source, "c", 0, heartbeat_s=5, poll_s=1, wake=wake, gone=gone)]

    pieces = asyncio.run(collect())
    assert pieces.count(b": still here\n\n") == 6 and asked == 31  # after 5, 10 .. 30 seconds
    asked = 0
    happened += [Event(k, "case", {}) for k in range(1, 1201)] + [Event(1201, "end", {}, last=True)]
    assert len(asyncio.run(collect())) == 1202 and asked == 3  # page by page


def test_a_client_that_goes_away_frees_its_stream(web: Web) -> None:
    cohort = web.post({"slow": "case_0.nii.gz"}, samples=256, steps=200)
    with web.http.stream("GET", f"/v1/cohorts/{cohort}/events") as answer:
        next(answer.iter_raw())
    web.http.delete(f"/v1/cohorts/{cohort}")
    deadline = time.monotonic() + 120
    done = 'route="/v1/cohorts/{cohort}/events",status="200"'
    while done not in web.http.get("/metrics").text and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done in web.http.get("/metrics").text


def test_metrics_count_requests_and_bytes_and_name_nobody(web: Web, done: str) -> None:
    def value(line: str) -> float:
        text = web.http.get("/metrics").text
        return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line)), 0.0)

    route = 'ldseg_http_requests_total{method="GET",route="/v1/cohorts/{cohort}/cases/{name}",status="200"}'
    before, sent = value(route), value("ldseg_sent_bytes_total")
    size = len(web.http.get(f"/v1/cohorts/{done}/cases/b%20%C3%B6").content)
    assert value(route) == before + 1
    assert value("ldseg_sent_bytes_total") >= sent + size
    web.http.get("/v1/none/secret-name")
    web.http.request("BREW", "/v1/model")
    text = web.http.get("/metrics").text
    assert value('ldseg_cases{state="failed"}') >= 1
    assert value('ldseg_cases_finished_total{reason="",state="done"}') >= 2
    assert "secret-name" not in text and done not in text and "BREW" not in text


def test_no_log_line_names_a_case(web: Web, data: Path) -> None:
    name = "DOE_JOHN_1950"
    cohort = web.post({name: "case_0.nii.gz", f"{name}_2": str(data / "broken" / "cut.nii")})
    web.finish(cohort)
    href = web.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()["files"]["label"]["href"]
    assert web.http.get(href).status_code == 200
    web.http.get(f"/v1/cohorts/{cohort}/cases/{name}_none")
    web.http.post("/v1/cohorts", content=f"case,image\n{name},x\n".encode(), headers={"Content-Type": "text/csv"})
    web.http.post("/v1/uploads", files={"image": (f"{name}.nii", b"x")})
    web.http.post("/v1/cohorts", json={"cases": [{"name": name, "image": f"/x/{name}"}]})
    web.http.get(f"/v1/cohorts?limit={name}")
    log = web.log.read_text()
    assert f"/v1/cohorts/{cohort}/cases/..." in log  # the requests are in it
    assert "DOE" not in log


@pytest.mark.parametrize("count", [200])
def test_200_clients_at_once_are_answered(web: Web, done: str, count: int) -> None:
    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=count)
        headers = {"Authorization": web.http.headers["Authorization"]}
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=300, trust_env=False) as client:
            paths = [f"{web.url}/v1/cohorts/{done}", f"{web.url}/v1/cohorts/{done}/table.csv"]
            return await asyncio.gather(*(client.get(paths[k % 2]) for k in range(count)))

    assert {answer.status_code for answer in asyncio.run(all_at_once())} == {200}
