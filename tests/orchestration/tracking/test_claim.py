"""One driver for a study: real processes, one of which holds it and is killed."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ldseg import ROOT
from ldseg.config import ConfigError
from ldseg.orchestration.tracking.claim import claimed

HOLDER = """
import sys, time
from pathlib import Path
from ldseg.orchestration.tracking.claim import claimed
with claimed("the study s", Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def _claimed_soon(lock, address):
    """PostgreSQL takes a moment to see that a process has gone."""
    deadline = time.monotonic() + 60
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(claimed("the study s", lock, address))
                break
            except ConfigError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield


@pytest.mark.parametrize("program", ["tune", "train"])
def test_a_second_program_for_what_one_is_at_is_refused_before_anything_starts(tmp_path, phantoms, program):
    own = ["--space", "phantom2d", "--name", "s", *(["--resume"] if program == "tune" else [])]
    command = [sys.executable, f"platform/{program}.py", "--data", str(phantoms), "--runs", str(tmp_path), *own]
    what, folder = {"tune": ("the study s", "studies"), "train": ("the run s", "train")}[program]
    with claimed(what, tmp_path / folder / "s.lock"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"{program}: {what} is being worked on by " in done.stderr
    assert f"process {os.getpid()} since" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("database", ["none", "postgresql"])
def test_a_study_is_one_drivers_until_that_is_killed(tmp_path, database, request):
    address = request.getfixturevalue("postgres").new() if database == "postgresql" else ""
    lock = tmp_path / "one" / "s.lock"
    # with a database the folder may be another one: two homes, one study
    other = tmp_path / "two" / "s.lock" if address else lock
    command = [sys.executable, "-c", HOLDER, str(lock), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        words = (
            rf"^the study s is being worked on by .+@.+, process {holder.pid} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        )
        for path in {lock, other}:
            with pytest.raises(ConfigError, match=words), claimed("the study s", path, address):
                pass
        with claimed("the study t", tmp_path / "two" / "t.lock", address):
            pass
        holder.kill()
    with _claimed_soon(lock, address):
        assert f"process {os.getpid()}" in lock.read_text()


def test_a_database_that_is_away_is_one_sentence_without_its_password(tmp_path):
    address = "postgresql://me:secret@127.0.0.1:9/x?connect_timeout=2"
    with pytest.raises(ConfigError, match=r"me:\*\*\*@127.0.0.1:9/x.* can't be used: ") as raised:
        with claimed("the study s", Path(tmp_path / "s.lock"), address):
            pass
    assert "secret" not in str(raised.value)
