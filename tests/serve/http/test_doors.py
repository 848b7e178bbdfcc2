"""By which names, from which pages, with how many tries and how much at once the service is used."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from service import problem
from web import Web

from serve.http import problems
from serve.http.bodies import read_whole
from serve.http.middleware import Guard
from serve.http.problems import Problem
from serve.http.security import Attempts
from serve.settings import Settings
from serve.telemetry import Metrics
from serve.tokens import Token, hash_token

TOKENS = {name: {"sha256": hash_token(name)} for name in ("one", "other")}
ONE, OTHER = ({"Authorization": f"Bearer {name}"} for name in TOKENS)
POST = ("POST", "/v1/cohorts")


def application(**settings: object) -> FastAPI:
    """The guard, before something that reads a body and something that goes on until `app.state.end` is set."""
    app = FastAPI()
    problems.install(app)
    app.add_middleware(Guard, settings=Settings(model="m", **settings), metrics=Metrics())
    app.state.end, app.state.following = asyncio.Event(), 0

    @app.post("/v1/cohorts")
    async def post(request: Request) -> int:
        return len(await read_whole(request, 1000))

    @app.get("/v1/cohorts/{cohort}/events")
    async def follow(cohort: str) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            app.state.following += 1
            yield b"begun"
            await app.state.end.wait()

        return StreamingResponse(events())

    @app.get("/health/live")
    async def live() -> None: ...

    @app.get("/")
    async def page() -> None: ...

    return app


async def until_following(app: FastAPI, count: int) -> None:
    while app.state.following < count:
        await asyncio.sleep(0.01)


def client_of(app: FastAPI, **options: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000", **options)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("127.0.0.1:9", True),
        ("127.1.2.3", True),
        ("[::1]:8000", True),
        ("ward.example.org", True),
        ("WARD.example.org:443", True),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("0.0.0.0:8000", False),
        ("user@evil.example", False),
        ("localhost@evil.example", False),
        ("[", False),
    ],
)
def test_only_the_services_own_names_are_answered(host: str, known: bool) -> None:
    client = TestClient(application(allow_hosts=("Ward.example.org",)), base_url="http://localhost")
    for path in ("/", "/v1/cohorts/c/events", "/metrics"):
        answer = client.request("HEAD" if known else "GET", path, headers={"Host": host})
        assert known == (answer.status_code != 421)
        if not known:
            problem(answer, 421, "unknown-host")
    assert client.get("/health/live", headers={"Host": host}).status_code == 200  # a probe asks by the address of a pod


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "https://ward.example.org"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://localhost:9999"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://["}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, False),
    ],
)
def test_pages_of_other_sites_are_refused_also_without_tokens(headers: dict[str, str], good: bool) -> None:
    client = TestClient(application(allow_hosts=("ward.example.org",)), base_url="http://localhost")
    for method, path in (POST, ("GET", "/v1/none"), ("GET", "/metrics"), ("OPTIONS", "/v1/cohorts"), ("POST", "/")):
        answer = client.request(method, path, headers=headers)
        assert good == (answer.status_code != 403), (method, path)
        if not good:
            problem(answer, 403, "cross-site")
    page = client.get("/", headers=headers)  # a link from elsewhere leads to it; it can't be read from there
    assert page.status_code == 200 and page.headers["cross-origin-resource-policy"] == "same-origin"


def test_no_redirect_names_the_host_that_was_named(web: Web) -> None:
    for path in ("/v1/cohorts/", "/page", "/health/live/", "/openapi.json/"):
        answer = web.http.get(path)
        assert answer.status_code == 404 and "location" not in answer.headers


def test_after_some_unknown_tokens_one_a_second_is_looked_at() -> None:
    now, tokens = 0.0, {"me": Token(sha256=hash_token("right")), "new": Token(sha256=hash_token("later"))}
    attempts = Attempts(lambda: now)
    assert attempts.find(tokens, "right", "here") == "me"
    guesses = (f"guess {k}" for k in itertools.count())
    for _ in range(Attempts.FREE):
        assert attempts.find(tokens, next(guesses), "here") is None
    for token in (next(guesses), "later"):  # whether it is right is not told
        with pytest.raises(Problem) as refused:
            attempts.find(tokens, token, "here")
        assert refused.value.kind == "too-many-attempts" and refused.value.headers["Retry-After"] == "1"
    assert attempts.find(tokens, "right", "here") == "me" and attempts.find(tokens, "later", "elsewhere") == "new"
    now = 3.0
    looked_at = 0
    with pytest.raises(Problem):
        for looked_at in range(100):  # noqa: B007
            attempts.find(tokens, next(guesses), "here")
    assert looked_at == 3
    now = 1000.0
    assert attempts.find(tokens, "later", "here") == "new"


def test_a_page_that_is_still_open_with_an_old_token_counts_once() -> None:
    attempts, tokens = Attempts(lambda: 0.0), {"me": Token(sha256=hash_token("new"))}
    assert {attempts.find(tokens, "old", "here") for _ in range(1000)} == {None}
    assert attempts.find(tokens, "new", "here") == "me"


def test_what_is_known_of_guesses_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "REMEMBERED", 50)
    attempts = Attempts(lambda: 0.0)
    for k in range(500):
        attempts.find({}, f"guess {k}", f"address {k}")
    assert len(attempts._wrong) == len(attempts._seen) == 50


def test_a_token_has_so_many_listeners_and_leaves_the_others_theirs() -> None:
    app = application(tokens=TOKENS, max_listeners=2)

    async def scenario() -> None:
        async with client_of(app) as client:
            following = [asyncio.create_task(client.get("/v1/cohorts/c/events", headers=ONE)) for _ in range(2)]
            await until_following(app, 2)
            refused = await client.get("/v1/cohorts/d/events", headers=ONE)
            problem(refused, 429, "too-busy")
            assert int(refused.headers["Retry-After"]) > 0 and "2 event listeners" in refused.json()["detail"]
            assert (await client.post("/v1/cohorts", headers=ONE, content=b"abc")).json() == 3
            assert (await client.get("/health/live")).status_code == 200
            following.append(asyncio.create_task(client.get("/v1/cohorts/c/events", headers=OTHER)))
            await until_following(app, 3)
            app.state.end.set()
            assert {answer.status_code for answer in await asyncio.gather(*following)} == {200}
            assert (await client.get("/v1/cohorts/c/events", headers=ONE)).status_code == 200

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_token_has_so_many_requests_and_health_is_answered_at_any_time() -> None:
    app = application(tokens=TOKENS, max_requests=1)

    async def scenario() -> None:
        async with client_of(app) as client:
            following = asyncio.create_task(client.get("/v1/cohorts/c/events", headers=ONE))
            await until_following(app, 1)
            problem(await client.post("/v1/cohorts", headers=ONE), 429, "too-busy")
            assert (await client.post("/v1/cohorts", headers=OTHER)).status_code == 200
            assert (await client.get("/health/live")).status_code == 200
            app.state.end.set()
            await following

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_all_tokens_together_leave_room_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.shares.MOST_REQUESTS", 1)
    app = application(tokens=TOKENS)

    async def scenario() -> None:
        async with client_of(app) as client:
            following = asyncio.create_task(client.get("/v1/cohorts/c/events", headers=ONE))
            await until_following(app, 1)
            refused = await client.post("/v1/cohorts", headers=OTHER)
            problem(refused, 503, "overloaded")
            assert refused.headers["Retry-After"] and (await client.get("/health/live")).status_code == 200
            app.state.end.set()
            await following

    asyncio.run(asyncio.wait_for(scenario(), 60))


class Stalling:
    """A body of which a part comes, and then nothing."""

    def __init__(self) -> None:
        self.begun, self.end = asyncio.Event(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"a"
        self.begun.set()
        await self.end.wait()


def test_a_body_that_gives_nothing_for_a_while_is_ended() -> None:
    async def scenario() -> None:
        async with client_of(application(tokens=TOKENS, body_wait_s=0.2)) as client:
            ended = await client.post("/v1/cohorts", headers=ONE, content=Stalling())
            assert "0.2 seconds" in problem(ended, 408, "body-timeout")["detail"]
            assert ended.headers["connection"] == "close"

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_token_has_so_many_bodies_under_way() -> None:
    async def scenario() -> None:
        async with client_of(application(tokens=TOKENS, max_bodies=2, body_wait_s=600)) as client:
            bodies = [Stalling(), Stalling()]
            posts = [asyncio.create_task(client.post("/v1/cohorts", headers=ONE, content=body)) for body in bodies]
            for body in bodies:
                await body.begun.wait()
            problem(await client.post("/v1/cohorts", headers=ONE, content=b"b"), 429, "too-busy")
            assert (await client.post("/v1/cohorts", headers=ONE)).json() == 0  # it has none
            assert (await client.post("/v1/cohorts", headers=OTHER, content=b"b")).json() == 1
            for body in bodies:
                body.end.set()
            assert [answer.json() for answer in await asyncio.gather(*posts)] == [1, 1]
            assert (await client.post("/v1/cohorts", headers=ONE, content=b"b")).json() == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_metrics_are_for_an_operators_token(web: Web) -> None:
    assert web.http.get("/metrics").status_code == 200
    problem(web.http.get("/metrics", headers={"Authorization": "Bearer another-token"}), 403, "not-permitted")


@pytest.fixture
def stalled(web: Web) -> Iterator[list[threading.Thread]]:
    """As many bodies as a token may have under way, over real HTTP."""
    ending, began = threading.Event(), threading.Barrier(Settings(model="m").max_bodies + 1)

    def body() -> Iterator[bytes]:
        yield b"{"
        began.wait(60)
        ending.wait()

    def post() -> None:
        with httpx.Client(base_url=web.url, headers=dict(web.http.headers), timeout=60, trust_env=False) as client:
            client.post("/v1/cohorts", content=body(), headers={"Content-Type": "application/json"})

    threads = [threading.Thread(target=post) for _ in range(began.parties - 1)]
    for thread in threads:
        thread.start()
    began.wait(60)
    yield threads
    ending.set()
    for thread in threads:
        thread.join()


def test_who_stalls_all_bodies_that_he_may_stops_nobody_else(web: Web, stalled: list[threading.Thread]) -> None:
    other = {"Authorization": "Bearer another-token"}
    assert web.http.get("/health/ready").status_code == 200
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 1}
    posted = httpx.post(f"{web.url}/v1/cohorts", json=body, headers=other, timeout=60, trust_env=False)
    assert posted.status_code == 202
    httpx.delete(f"{web.url}/v1/cohorts/{posted.json()['id']}", headers=other, timeout=60, trust_env=False)
