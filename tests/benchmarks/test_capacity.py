"""The simulator of capacity: against closed forms, and against what was measured."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from benchmarks.capacity import Cluster, Work, efficiency, simulate
from ldseg import ROOT

FILE = ROOT / "benchmarks" / "capacity.py"

FREE = {"give_s": 0.0, "step_s": 0.0, "trip_s": 0.0, "claims_per_s": math.inf, "store_mb_s": math.inf}
FREE |= {"network_mb_s": math.inf, "hands": 10_000}
IDLE = {"read_s": 0.0, "write_s": 0.0}


@pytest.mark.parametrize("cases, actors", [(1, 1), (7, 3), (64, 64), (100, 64), (1000, 7)])
def test_without_overhead_whole_cases_take_the_rounds_that_they_need(cases: int, actors: int) -> None:
    work = Work(cases=cases, samples=6, sample_s=0.5, encode_s=1.0, **IDLE)
    outcome = simulate(work, Cluster(actors=actors, **FREE))
    assert outcome.seconds == pytest.approx(math.ceil(cases / actors) * 4.0, rel=1e-12)
    assert outcome.cost == pytest.approx(actors * outcome.seconds / 3600 * 2.0)
    assert efficiency(work, Cluster(actors=actors, **FREE), outcome) == pytest.approx(outcome.used["samplers"])


@pytest.mark.parametrize("samples, actors", [(1, 8), (8, 8), (30, 4), (1000, 64), (1001, 64)])
def test_without_overhead_a_case_that_is_spread_takes_the_rounds_of_its_chunks(samples: int, actors: int) -> None:
    work = Work(cases=1, samples=samples, chunk=1, sample_s=0.25, encode_s=0.5, **IDLE)
    outcome = simulate(work, Cluster(actors=actors, **FREE))
    assert outcome.seconds == pytest.approx(0.5 + math.ceil(samples / actors) * 0.25, rel=1e-12)


def test_the_last_chunk_may_be_smaller() -> None:
    work = Work(cases=1, samples=10, chunk=4, sample_s=1.0, **IDLE)
    assert simulate(work, Cluster(actors=3, **FREE)).seconds == pytest.approx(4.0)
    assert simulate(work, Cluster(actors=2, **FREE)).seconds == pytest.approx(6.0)


def test_reading_and_writing_overlap_with_drawing() -> None:
    work = Work(cases=50, samples=4, sample_s=1.0, read_s=0.5, write_s=0.25)
    # the first is read, then the sampler never waits, and the last one is written
    assert simulate(work, Cluster(actors=1, **FREE)).seconds == pytest.approx(0.5 + 50 * 4 + 0.25)


@pytest.mark.parametrize("line, limit, seconds", [
    ("database", {"claims_per_s": 10.0}, 2 * 400 / 10),
    ("store", {"store_mb_s": 20.0}, 400 * (3 + 1) / 20),
    ("event loop", {"give_s": 0.1}, 400 * 0.1),
    ("network", {"network_mb_s": 4.0}, 400 * 2 / 4),
])  # fmt: skip
def test_a_line_that_is_full_sets_the_time(line: str, limit: dict[str, float], seconds: float) -> None:
    work = Work(cases=400, samples=4, sample_s=0.0, volume_mb=3.0, maps_mb=1.0, part_mb=2.0, **IDLE)
    outcome = simulate(work, Cluster(actors=100, **FREE | limit))
    assert outcome.seconds == pytest.approx(seconds, rel=1e-9)
    assert outcome.full == line and outcome.used[line] == pytest.approx(1.0)


def test_hands_that_are_full_set_the_time() -> None:
    work = Work(cases=1000, samples=4, sample_s=0.001, read_s=0.5, write_s=0.5)
    outcome = simulate(work, Cluster(actors=100, **FREE | {"hands": 10}))
    assert 1000 * 1.0 / 10 <= outcome.seconds <= 1000 * 1.0 / 10 + 1.5 and outcome.full == "hands"


def test_a_case_that_is_spread_saturates_where_chunks_come_faster_than_they_are_given_out() -> None:
    work = Work(cases=1, samples=20_000, chunk=4, sample_s=0.125, **IDLE)  # 5000 chunks of half a second
    free = FREE | {"give_s": 0.002}
    for actors in (64, 200):  # 0.5 s / 2 ms is room for 250
        outcome = simulate(work, Cluster(actors=actors, **free))
        # the ramp, and then as if there were no overhead
        assert outcome.seconds <= 0.002 * (actors + 1) + math.ceil(5000 / actors) * 0.5 + 1e-6
        assert outcome.full == "samplers"
    for actors in (500, 1000, 4000):
        outcome = simulate(work, Cluster(actors=actors, **free))
        assert outcome.seconds == pytest.approx(5001 * 0.002 + 0.5, rel=1e-9)
        assert outcome.full == "event loop"


def test_services_share_the_database_and_nothing_else() -> None:
    work = Work(cases=4000, samples=4, sample_s=0.25, **IDLE)
    free = FREE | {"give_s": 0.02}
    one = simulate(work, Cluster(actors=400, **free))
    four = simulate(work, Cluster(actors=400, services=4, **free))
    assert one.full == "event loop" and one.seconds == pytest.approx(4000 * 0.02 + 1, rel=0.01)
    assert four.seconds == pytest.approx(one.seconds / 4, rel=0.05)
    slow = {**free, "claims_per_s": 50.0}
    assert simulate(work, Cluster(actors=400, services=4, **slow)).seconds == pytest.approx(8000 / 50, rel=0.01)


# `benchmarks/service.py fan-out`: sleeping samplers, 20 chunks of half a second each; the efficiency with whole
# cases, and with one case spread. Samplers and service share two cores, and 64 of them fill these: a call costs more.
MEASURED = [
    (8, 0.004, 0.989, 0.995),
    (16, 0.004, 0.989, 0.993),
    (32, 0.004, 0.984, 0.983),
    (64, 0.008, 0.951, 0.927),
]


@pytest.mark.parametrize("actors, give_s, whole, spread", MEASURED)
def test_the_measured_fan_out(actors: int, give_s: float, whole: float, spread: float) -> None:
    free = {"volume_mb": 0, "maps_mb": 0, "part_mb": 0.1, "sample_s": 0.125, **IDLE}
    cluster = {"actors": actors, "slots": 2 * actors, "claims_per_s": math.inf, "give_s": give_s}
    for measured, step_s, shape in (
        (whole, 0.0006, {"cases": 2 * actors, "samples": 40}),
        (spread, 0.0013, {"cases": 1, "samples": 80 * actors}),
    ):
        work, used = Work(**shape, **free), Cluster(step_s=step_s, **cluster)
        assert efficiency(work, used, simulate(work, used)) == pytest.approx(measured, abs=0.01)


def test_the_command_prints_a_row_for_each_number_of_samplers() -> None:
    command = [sys.executable, str(FILE), "--cases", "500", "--actors", "1", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| actors | hours | cost |") and len(lines) == 4
    assert lines[3].startswith("| 64 |") and lines[3].endswith("| samplers |")
    wrong = subprocess.run([*command, "--services", "3"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "shared evenly" in wrong.stderr
