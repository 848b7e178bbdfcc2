"""What the service bears while its samplers simulate: a cohort of thousands, many clients at once, a large upload."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.serving.process import AUTHORIZATION, Service, milliseconds, small_cases, tiny_model

Row = dict[str, Any]
SAMPLES = 4  # one chunk a case
LISTINGS = [("posted", 100), ("agreement", 100), ("posted", 500), ("agreement", 500)]  # order, cases a page
CASES_A_POST = 3
PIECE = 2**18
BOUNDARY = "----ldseg"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="large.nii"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def started(cases: int, chunk_s: float, **options: Any) -> Iterator[tuple[Service, list[dict[str, str]]]]:
    """A service with simulated samplers, and small cases that it can read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = small_cases(folder / "data", cases)
        model = tiny_model(folder / "model")
        with Service(model, folder / "data", folder / "runs", chunk_s, **options) as service:
            yield service, entries


def ten_thousand(cases: int) -> str:
    """A cohort of thousands of small cases: the post, the pages of its listing, the memory while it is done."""
    with started(cases, 0.02, replicas=2) as (service, entries):
        before, start = service.memory(), time.perf_counter()
        cohort, posted = service.post(entries, samples=SAMPLES)
        rows: list[Row] = [_memory_row(0, 0.0, before)]
        pages: list[Row] = []
        for mark in (cases // 10, cases // 2, cases):
            while (done := service.ended(cohort)) < mark:
                time.sleep(0.2)
            took = time.perf_counter() - start
            rows.append(_memory_row(done, took, service.memory()))
            print(rows[-1], file=sys.stderr)
            if mark == cases // 2:
                pages += _pages(service, cohort, cases, "half done, at work")
        pages += _pages(service, cohort, cases, "done")
    head = [{"cases": cases, "POST to 202, s": posted, "all done, s": took, "cases/s": cases / took}]
    return "\n\n".join(map(table, (head, rows, pages)))


def _memory_row(done: int, seconds: float, memory: dict[str, float]) -> Row:
    return {"cases done": done, "s since the post": seconds} | {f"{n}, MB": value for n, value in memory.items()}


def _pages(service: Service, cohort: str, count: int, when: str) -> list[Row]:
    rows = []
    for order, limit in LISTINGS:
        seen, spent = _walk(service, f"/v1/cohorts/{cohort}/cases?limit={limit}&order={order}")
        if seen != count:
            raise RuntimeError(f"the pages showed {seen} of {count} cases")
        row = {"pages": when, "order": order, "cases a page": limit, "number": len(spent)}
        rows.append(row | milliseconds(spent))
    return rows


def _walk(service: Service, path: str) -> tuple[int, list[float]]:
    """Cases on all pages, and the milliseconds of each page."""
    seen, spent = 0, []
    while path:
        start = time.perf_counter()
        page = service.http.get(path).json()
        spent.append(1000 * (time.perf_counter() - start))
        seen += len(page["cases"])
        path = page["next"]
    return seen, spent


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Send = Callable[[Connection], Awaitable[None]]
WAYS: dict[str, float | None] = {  # seconds between two posts of a client, see `_drive`
    "each once in five seconds": 5.0,
    "each once a second": 1.0,
    "all in one instant": None,
    "each again when answered": 0.0,
}


def post(clients: int, posts: int) -> str:
    """Many clients that post small cohorts at the same time."""
    with started(CASES_A_POST, 0.2, replicas=2, max_cohorts=10**6) as (service, entries):
        body = json.dumps({"cases": entries, "samples": SAMPLES}).encode()
        head = "POST /v1/cohorts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

        def measured(clients: int, rounds: int, every: float | None) -> Row:
            return asyncio.run(_post_all(service.port, request, clients, rounds, every))

        measured(1, 5, None)  # what a first call sets up is no part of it
        return table([{"posts": way} | measured(clients, posts, every) for way, every in WAYS.items()])


async def _post_all(port: int, request: bytes, clients: int, rounds: int, every: float | None) -> Row:
    spent: list[float] = []

    async def send(connection: Connection) -> None:
        start = time.perf_counter()
        status, answer = await _exchange(*connection, request)
        spent.append(1000 * (time.perf_counter() - start))
        if status != 202:
            raise RuntimeError(f"{status}: {answer[:300]!r}")

    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    start = time.perf_counter()
    await _drive(send, connections, rounds, every)
    wall = time.perf_counter() - start
    for _, writer in connections:
        writer.close()
    return {"clients": clients, "answered 202": len(spent), "a second": len(spent) / wall} | milliseconds(spent)


async def _drive(send: Send, connections: list[Connection], rounds: int, every: float | None) -> None:
    """Each client sends once in so many seconds, evenly apart, for as many seconds as there are rounds.

    With 0 it sends again as soon as it is answered, with None all send in the same instant and again when the last is
    answered.
    """
    if every is None:
        for _ in range(rounds):
            await asyncio.gather(*map(send, connections))
            await asyncio.sleep(0.5)
        return

    async def client(number: int, connection: Connection) -> None:
        start = time.perf_counter() + every * number / len(connections)
        for k in range(max(1, round(rounds / every)) if every else rounds):
            await asyncio.sleep(max(0.0, start + every * k - time.perf_counter()))
            await send(connection)

    await asyncio.gather(*(client(*numbered) for numbered in enumerate(connections)))


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request on a connection that stays open; status and body of its answer. A client costs next to nothing."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head[9:12]), await reader.readexactly(length)


def upload(megabytes: int) -> str:
    """A large upload, streamed: how fast it goes in, and how much the processes grow meanwhile."""
    rows: list[Row] = []
    with started(0, 0.1, replicas=1) as (service, _):
        _send_file(service.port, 16, declared=True)  # what a first call sets up is no part of it
        for declared in (True, False):
            with service.growth() as growth:
                status, seconds = _send_file(service.port, megabytes, declared=declared)
            if status != 201:
                raise RuntimeError(f"the upload was answered {status}; the log is {service.log}")
            row = {"MB": megabytes, "length": "declared" if declared else "in chunks"}
            row |= {"s": seconds, "MB/s": megabytes / seconds}
            rows.append(row | {f"{name}: grown by at most, MB": value for name, value in growth.items()})
    return table(rows)


def _send_file(port: int, megabytes: int, *, declared: bool) -> tuple[int, float]:
    """Status and seconds of one upload; without its length declared it comes in chunks."""
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **AUTHORIZATION}
    if declared:
        headers["Content-Length"] = str(megabytes * 2**20 + 352 + len(HEAD) + len(TAIL))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/uploads", _file(megabytes), headers)
    status = connection.getresponse().status
    seconds = time.perf_counter() - start
    connection.close()
    return status, seconds


def _file(megabytes: int) -> Iterator[bytes]:
    """A form with a NIfTI file that is never in one piece."""
    import nibabel as nib
    import numpy as np

    head = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4)).header
    head.set_data_shape((1024, 256, megabytes))
    head.set_data_offset(352)
    yield HEAD + bytes(head.binaryblock) + bytes(4)
    piece = np.random.default_rng(0).bytes(PIECE)
    for _ in range(megabytes * 2**20 // PIECE):
        yield piece
    yield TAIL
