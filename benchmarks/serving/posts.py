"""Many clients that post small cohorts at the same time."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.serving.process import Process, exchange, milliseconds, small_cases, table, tiny_model

CASES, SERVICE_S, SAMPLERS = 3, 0.2, 2
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Post = Callable[[Connection], Awaitable[None]]


async def at_once(post: Post, connections: list[Connection], rounds: int) -> None:
    """All post in the same instant, and again when the last is answered."""
    for _ in range(rounds):
        await asyncio.gather(*map(post, connections))
        await asyncio.sleep(0.5)


async def without_pause(post: Post, connections: list[Connection], rounds: int) -> None:
    """Each posts again as soon as it is answered."""

    async def client(connection: Connection) -> None:
        for _ in range(rounds):
            await post(connection)

    await asyncio.gather(*map(client, connections))


def every(seconds: float) -> Callable[[Post, list[Connection], int], Awaitable[None]]:
    """Each posts once in so many seconds, evenly apart; for as many seconds as there are rounds."""

    async def way(post: Post, connections: list[Connection], rounds: int) -> None:
        async def client(number: int, connection: Connection) -> None:
            start = time.perf_counter() + seconds * number / len(connections)
            for k in range(max(1, round(rounds / seconds))):
                await asyncio.sleep(max(0.0, start + seconds * k - time.perf_counter()))
                await post(connection)

        await asyncio.gather(*(client(*numbered) for numbered in enumerate(connections)))

    return way


WAYS = {
    "each once in five seconds": every(5.0),
    "each once a second": every(1.0),
    "all in one instant": at_once,
    "each again when answered": without_pause,
}


def run(clients: int, rounds: int) -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = small_cases(folder / "data", CASES)
        model = tiny_model(folder / "model")
        options = {"replicas": SAMPLERS, "max_cohorts": 10**6}
        with Process(model, folder / "data", folder / "runs", SERVICE_S, **options) as service:
            asyncio.run(_measure(service, cases, 1, 5, at_once))  # what a first call sets up is no part of it
            rows = [{"posts": way} | asyncio.run(_measure(service, cases, clients, rounds, WAYS[way])) for way in WAYS]
    return table(rows)


async def _measure(
    service: Process, cases: list[dict[str, str]], clients: int, rounds: int, way: Callable[..., Awaitable[None]]
) -> dict[str, Any]:
    body = json.dumps({"cases": cases, "samples": 4}).encode()
    head = "POST /v1/cohorts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    spent: list[float] = []

    async def post(connection: Connection) -> None:
        start = time.perf_counter()
        status, answer = await exchange(*connection, request)
        spent.append(1000 * (time.perf_counter() - start))
        if status != 202:
            raise RuntimeError(f"{status}: {answer[:300]!r}")

    connections = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(clients)]
    start = time.perf_counter()
    await way(post, connections, rounds)
    wall = time.perf_counter() - start
    for _, writer in connections:
        writer.close()
    row = {"clients": clients, "answered 202": len(spent), "a second": len(spent) / wall}
    return row | milliseconds(spent)
