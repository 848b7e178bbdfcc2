#!/usr/bin/env python
"""How long a cohort takes on how many GPUs, what it costs, and what is full first: a simulation, no Ray.

Each case goes through the service as the real ones do: claimed from the database, read, given to a sampler (whole
where the queue is long, in chunks where it is short), drawn, written, written down. What several cases share is a line
in which they wait: the database, the store of the volumes, the network to the samplers, the processors that read and
write, the service's one event loop, the samplers. Time passes from event to event, and nothing is random. "full" names
the line that is busiest: more samplers than fill it cost money and save no time.

Example:
    python benchmarks/capacity.py --cases 3000 --samples 16 --sample-s 0.5
    python benchmarks/capacity.py --cases 100000 --samples 8 --sample-s 0.05 --actors 64 512 4096 --services 8
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Options, table

ACTORS = (1, 8, 64, 512, 4096)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        samples: of each case.
        chunk: samples that a sampler draws at a time.
        sample_s: seconds of a sampler for one sample; `encode_s` once for a case.
        read_s, write_s: seconds of a processor of the service for one case.
        volume_mb, maps_mb: of a case: read from the store, written to it.
        part_mb: of a drawn case's (or chunk's) sums, from the sampler to the service.
    """

    cases: int = 1000
    samples: int = 16
    chunk: int = 4
    sample_s: float = 0.5
    encode_s: float = 0.0
    read_s: float = 0.05
    write_s: float = 0.05
    volume_mb: float = 1.0
    maps_mb: float = 1.0
    part_mb: float = 1.0

    @property
    def chunks(self) -> int:
        """Of a case."""
        return -(-self.samples // self.chunk)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What it is done with. The defaults are measured, see docs/results/service.md.

    Attributes:
        actors: samplers, one a GPU; shared evenly by `services`.
        services: processes that take requests and give out work, on one database.
        hands: cases that one service reads or writes at the same time.
        slots: cases that one service works on at once; 0 takes two more than its samplers, as the service does.
        give_s: of a service's event loop, to give out one call and take its answer.
        step_s: of a sampler between two chunks that wait for it.
        trip_s: of a call to a sampler that waits for it.
        claims_per_s: transactions that the database does for all services; a case takes two.
        store_mb_s, network_mb_s: of all services together; of each service.
        price: of an actor for an hour.
    """

    actors: int = 8
    services: int = 1
    hands: int = 6
    slots: int = 0
    give_s: float = 0.004
    step_s: float = 0.0006
    trip_s: float = 0.006
    claims_per_s: float = 200.0
    store_mb_s: float = 500.0
    network_mb_s: float = 1000.0
    price: float = 2.0

    def __post_init__(self) -> None:
        if self.services < 1 or self.actors % self.services:
            raise ValueError(f"{self.actors} samplers can't be shared evenly by {self.services} services")

    @property
    def each(self) -> int:
        """Samplers of one service."""
        return self.actors // self.services


class Line:
    """Some equal servers and those who wait for one of them, first come first served."""

    def __init__(self, servers: int = 1) -> None:
        self._free = [0.0] * servers
        self.servers, self.busy = servers, 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When it is done for who comes now; to be called in the order of time."""
        start = max(now, heapq.heappop(self._free))
        heapq.heappush(self._free, start + seconds)
        self.busy += seconds
        return start + seconds


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        used: share of the time that each line was busy.
    """

    seconds: float
    used: dict[str, float]
    cost: float

    @property
    def full(self) -> str:
        """The line that was busiest."""
        return max(self.used, key=self.used.__getitem__)


class Gate:
    """Opens when so many have passed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: Process | None = None


Process = Iterator["float | Gate"]


class Clock:
    """Runs processes: generators of the times at which they go on, or of gates at which they wait."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Process]] = []
        self._count = 0
        self.now = 0.0

    def begin(self, process: Process, at: float | None = None) -> None:
        """Let it start."""
        self._count += 1  # of those at the same time, who came first goes first
        heapq.heappush(self._due, (self.now if at is None else at, self._count, process))

    def go_through(self, gate: Gate) -> None:
        """One more has passed."""
        gate.count -= 1
        if gate.count == 0 and gate.waiting is not None:
            self.begin(gate.waiting)

    def run(self) -> float:
        """Until nothing is left; the time then."""
        while self._due:
            self.now, _, process = heapq.heappop(self._due)
            step = next(process, None)
            if isinstance(step, Gate):
                step.waiting = process
                if step.count == 0:
                    self.begin(process)
            elif step is not None:
                self.begin(process, step)
        return self.now


class Service:
    """One process of the service with its samplers; the database and the store are all services'."""

    def __init__(self, clock: Clock, cluster: Cluster, shared: dict[str, Line]) -> None:
        self.clock, self.cluster = clock, cluster
        own = {"samplers": cluster.each, "hands": cluster.hands, "event loop": 1, "network": 1}
        self.lines = shared | {name: Line(servers) for name, servers in own.items()}

    def _serve(self, line: str, seconds: float) -> float:
        return self.lines[line].serve(self.clock.now, seconds)

    def slot(self, work: Work, queue: Iterator[int], spread: bool) -> Process:
        """One case after another, as long as there are any."""
        claim, cluster = 1 / self.cluster.claims_per_s, self.cluster
        for _ in queue:
            yield self._serve("database", claim)
            yield self._serve("store", work.volume_mb / cluster.store_mb_s)
            yield self._serve("hands", work.read_s)
            yield from self._spread(work) if spread else self._whole(work)
            yield self._serve("hands", work.write_s)
            yield self._serve("store", work.maps_mb / cluster.store_mb_s)
            yield self._serve("database", claim)

    def _whole(self, work: Work) -> Process:
        cluster = self.cluster
        yield self._serve("event loop", cluster.give_s)
        # between two cases a sampler waits for the next one's way to it
        seconds = work.encode_s + work.samples * work.sample_s + work.chunks * cluster.step_s + cluster.trip_s
        yield self._serve("samplers", seconds)
        yield self._serve("network", work.part_mb / cluster.network_mb_s)

    def _spread(self, work: Work) -> Process:
        cluster = self.cluster
        yield self._serve("event loop", cluster.give_s)
        yield self._serve("samplers", work.encode_s + cluster.trip_s)
        sizes = iter([work.chunk] * (work.samples // work.chunk) + [work.samples % work.chunk or work.chunk])
        left = itertools.islice(sizes, work.chunks)
        callers = min(work.chunks, 2 * cluster.each)  # two calls are on the way to each sampler
        gate = Gate(callers)
        for _ in range(callers):
            self.clock.begin(self._calls(work, left, gate))
        yield gate

    def _calls(self, work: Work, left: Iterator[int], gate: Gate) -> Process:
        cluster = self.cluster
        for size in left:
            yield self._serve("event loop", cluster.give_s)
            yield self._serve("samplers", size * work.sample_s + cluster.step_s)
            yield self._serve("network", work.part_mb / cluster.network_mb_s)
        self.clock.go_through(gate)


def simulate(work: Work, cluster: Cluster) -> Outcome:
    """Do the work; cases go whole where there are at least as many as samplers, else they are spread."""
    clock, queue = Clock(), iter(range(work.cases))
    shared = {"database": Line(), "store": Line()}
    services = [Service(clock, cluster, shared) for _ in range(cluster.services)]
    spread = work.cases < cluster.actors
    for service in services:
        for _ in range(min(cluster.slots or cluster.each + 2, work.cases)):
            clock.begin(service.slot(work, queue, spread))
    seconds = clock.run()
    used: dict[str, float] = {}
    for service in services:
        for name, line in service.lines.items():
            used[name] = max(used.get(name, 0.0), line.busy / (line.servers * seconds))
    return Outcome(seconds, used, cluster.actors * seconds / 3600 * cluster.price)


def efficiency(work: Work, cluster: Cluster, outcome: Outcome) -> float:
    """The share of the samplers' time in which they compute."""
    return work.cases * (work.encode_s + work.samples * work.sample_s) / (cluster.actors * outcome.seconds)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line: every field of `Work` and `Cluster`; of actors several numbers."""
    parser = Options(__doc__)
    parser.epilog = f"{Work.__doc__}{Cluster.__doc__}"
    for kind in (Work, Cluster):
        for field in dataclasses.fields(kind):
            name = f"--{field.name.replace('_', '-')}"
            if field.name == "actors":
                parser.add_argument(name, type=int, nargs="+", default=ACTORS, help="(default: 1 8 64 512 4096)")
            else:
                kind_of = type(field.default)
                parser.add_argument(name, type=kind_of, default=field.default, help="(default: %(default)s)")
    return parser.parse_args(arguments)


def rows(options: argparse.Namespace) -> list[dict[str, str]]:
    """One for each number of actors."""

    def chosen(kind: type) -> dict[str, Any]:
        return {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}

    work, found = Work(**chosen(Work)), []
    for actors in options.actors:
        cluster = Cluster(**chosen(Cluster) | {"actors": actors})
        outcome = simulate(work, cluster)
        row = {"actors": str(actors), "hours": f"{outcome.seconds / 3600:.3f}", "cost": f"{outcome.cost:.2f}"}
        row["cases/s"] = f"{work.cases / outcome.seconds:.2f}"
        row["efficiency"] = f"{efficiency(work, cluster, outcome):.3f}"
        row |= {name: f"{share:.0%}" for name, share in outcome.used.items()}
        found.append(row | {"full": outcome.full})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print a table."""
    try:
        found = rows(parse(arguments))
    except ValueError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
