"""Benchmarks parse before they import what takes seconds to load."""

import resource
import subprocess
import sys

import pytest

from ldseg import ROOT

PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "Options(__doc__" in path.read_text() and path.name != "common.py"
)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("option, status", [("--help", 0), ("--misspelt", 2)])
def test_help_and_a_misspelt_option_cost_half_a_second_at_most(program, option, status):
    before = processor_seconds()
    done = subprocess.run([sys.executable, program, option], cwd=ROOT, capture_output=True, text=True)
    assert processor_seconds() - before < 0.5
    assert done.returncode == status, done.stderr


def test_every_benchmark_is_among_them():
    assert len(PROGRAMS) == 13
