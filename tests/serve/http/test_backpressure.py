"""What a client sends waits at the client, not in the memory of Ray Serve's two processes."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forms import FORM, form_of, nifti_of
from service import Service, descendants, write_image
from starlette.requests import ClientDisconnect

from ldseg.bundle import Bundle
from serve import backpressure
from serve.backpressure import (
    MAX_AHEAD_BYTES,
    MAX_QUEUED_BYTES,
    TOLD_BYTES,
    PatientQueue,
    PatientReceive,
    PatientSend,
    Report,
)

PIECE = 2**16  # as uvicorn gives it


def body(size: int, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


class Chain:
    """The proxy's queue and the replica's end of it, joined as Ray Serve joins them."""

    def __init__(self) -> None:
        self.queue, self.sent, self.taken = PatientQueue(), 0, 0
        self.receive = PatientReceive({"type": "http"}, None, self.fetch)
        self.fetching = asyncio.create_task(self.receive.fetch_until_disconnect())

    async def fetch(self, metadata: Any) -> bytes:
        await self.queue.wait_for_message()
        return pickle.dumps(self.queue.get_messages_nowait())

    async def send(self, pieces: int) -> None:
        for number in range(1, pieces + 1):
            self.sent += PIECE
            await self.queue(body(PIECE, number < pieces))
        await self.queue({"type": "http.disconnect"})

    async def take(self) -> dict[str, Any]:
        message = await self.receive()
        self.taken += len(message.get("body", b""))
        return message


def test_a_sender_is_never_more_than_two_queues_ahead() -> None:
    async def scenario() -> None:
        chain, pieces, ahead = Chain(), 1000, 0
        sending = asyncio.create_task(chain.send(pieces))
        for _ in range(pieces):
            for _ in range(50):  # everybody else may do what they can
                await asyncio.sleep(0)
            await chain.take()
            ahead = max(ahead, chain.sent - chain.taken)
        assert chain.taken == pieces * PIECE and (await chain.take())["type"] == "http.disconnect"
        await sending
        assert MAX_QUEUED_BYTES < ahead < 4 * MAX_QUEUED_BYTES
        await chain.fetching

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_small_body_and_a_client_that_goes_away_are_there_before_they_are_asked_for() -> None:
    async def scenario() -> None:
        chain = Chain()
        await asyncio.wait_for(chain.send(1), 10)
        await asyncio.wait_for(chain.fetching, 10)  # it ends with the disconnect, although nobody has taken the body
        kinds = [(await chain.take())["type"] for _ in range(3)]
        assert kinds == ["http.request", "http.disconnect", "http.disconnect"]

    asyncio.run(scenario())


def test_who_waits_in_a_full_queue_can_be_cancelled() -> None:
    async def scenario() -> None:
        queue = PatientQueue()
        waiting = asyncio.create_task(queue(body(MAX_QUEUED_BYTES)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(queue.get_messages_nowait()) == 1
        await asyncio.wait_for(queue(body(1)), 10)

    asyncio.run(scenario())


def test_an_answer_is_never_far_ahead_of_its_client() -> None:
    """The application and the proxy, with Ray Serve's two endless queues between them."""
    pieces, made, taken = 200, 0, 0
    reads = asyncio.Semaphore(0)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal made
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(pieces)):
            made += PIECE
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": left > 0})

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        upward, downward = PatientQueue(), asyncio.Queue[Any]()

        async def pull() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await upward(message)

        async def fetch(metadata: Any) -> bytes:
            await upward.wait_for_message()
            return pickle.dumps(upward.get_messages_nowait())

        scope = pickle.loads(pickle.dumps(scope))
        tasks = [asyncio.create_task(pull())]
        replica_receive = PatientReceive(scope, None, fetch)
        tasks.append(asyncio.create_task(replica_receive.fetch_until_disconnect()))
        tasks.append(asyncio.create_task(PatientSend(application)(scope, replica_receive, downward.put)))
        more = True
        while more:
            message = await downward.get()
            await send(message)
            more = message.get("more_body", True)
        await tasks.pop()
        for task in tasks:
            task.cancel()

    async def to_client(message: Any) -> None:
        nonlocal taken
        if message["type"] == "http.response.body":
            await reads.acquire()
            taken += len(message["body"])

    async def from_client() -> Any:
        return await asyncio.Event().wait()

    async def scenario() -> None:
        answering = asyncio.create_task(Report(proxy)({"type": "http"}, from_client, to_client))
        ahead = 0
        for _ in range(pieces):
            for _ in range(50):
                await asyncio.sleep(0)
            ahead = max(ahead, made - taken)
            reads.release()
        await answering
        assert taken == made == pieces * PIECE
        assert MAX_AHEAD_BYTES / 2 < ahead <= MAX_AHEAD_BYTES + TOLD_BYTES + 3 * PIECE

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_answer_ends_when_its_client_takes_nothing_and_can_not_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that nobody reads fills the queues: neither what is taken nor that the client left comes through."""
    monkeypatch.setattr(backpressure, "STALLED_S", 0.5)
    sent = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        while True:
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
            sent += PIECE

    async def nowhere(message: Any) -> None:
        pass

    async def scenario() -> None:
        queue, room = PatientQueue(), backpressure.Room()
        proxy = asyncio.create_task(queue(body(MAX_QUEUED_BYTES)))  # it waits here, and receives nothing more
        scope = {"type": "http", "extensions": {backpressure.TAKEN: room}}
        with pytest.raises(ClientDisconnect):
            await PatientSend(application)(scope, nowhere, nowhere)
        assert not proxy.done()
        proxy.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert MAX_AHEAD_BYTES <= sent + PIECE <= MAX_AHEAD_BYTES + 2 * PIECE


def test_an_answer_goes_on_where_nobody_tells_what_was_taken() -> None:
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})

    async def scenario() -> None:
        scope = {"type": "http"}
        PatientReceive(scope, None, None)  # type: ignore[arg-type]

        async def send(message: Any) -> None:
            sent.append(message)

        await PatientSend(application)(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert len(sent) == 100


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_large_upload_through_ray_serve_takes_little_memory(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, declared: bool
) -> None:
    folder = tmp_path_factory.mktemp("large")
    write_image(folder / "data" / "case.nii.gz")
    service = Service(bundle.path, folder / "data", folder / "runs", "--replicas", "1").wait_ready()
    megabytes = 512
    try:
        pids = {pid: own_memory(pid) for pid in descendants(service.process.pid) if is_on_the_way(pid)}
        assert len(pids) == 2
        size = sum(map(len, form_of(nifti_of(megabytes)))) if declared else 0
        headers = FORM | ({"Content-Length": str(size)} if declared else {})
        with peaks(pids) as highest:
            answer = service.http.post(
                "/v1/uploads", content=form_of(nifti_of(megabytes)), headers=headers, timeout=300
            )
        assert answer.status_code == 201 and answer.json()["bytes"] == megabytes * 2**20 + 352
        grown = {pid: highest[pid] - before for pid, before in pids.items()}
        assert max(grown.values()) < 64 * 2**20, grown
    finally:
        service.stop()


def is_on_the_way(pid: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith((b"ray::ServeReplica:ldseg:Ingress", b"ray::ProxyActor"))


@contextmanager
def peaks(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """The most that each process has meanwhile."""
    highest, ended = dict.fromkeys(pids, 0), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            highest.update({pid: max(most, own_memory(pid)) for pid, most in highest.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()


def own_memory(pid: int) -> int:
    """Bytes that are the process's own: Ray's object store, which all share, has its own limit."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
