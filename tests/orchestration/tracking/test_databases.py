"""Databases in files: killed at any instant while their tables are made, they are there at the next start."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from ldseg import ROOT
from ldseg.config import ConfigError
from ldseg.orchestration.tracking import mlflow_client

# forks a process for each line of "what home seconds", kills it then, opens the same in another one and tells its end
KILLED = """
import os, signal, sys, time
from pathlib import Path
from ldseg.config import ConfigError
from ldseg.orchestration.search.spaces import load_space
from ldseg.orchestration.search.study import Study, open_study, study_names
from ldseg.orchestration.tracking import mlflow_client
from serve.store import JobStore

SPACE = "hippocampus"

def mlflow(home):
    tracker = mlflow_client.connect(home)
    assert tracker.experiment("search") and not tracker.client.search_registered_models()

def optuna(home):
    study, space = Study(name="s", home=str(home), data="/d", space=SPACE, trials=1, epochs=1), load_space(SPACE)
    stored = open_study(study, space, resume="s" in study_names(home))
    assert len(stored.get_trials()) == len(space.start) > 0 and "settings" in stored.user_attrs

def jobs(home):
    JobStore(f"sqlite:///{home / 'jobs.db'}")

def child(what, home):
    number = os.fork()
    if not number:
        try:
            globals()[what](home)
        except BaseException as error:
            print(repr(error)[:300], file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return number

for line in sys.stdin:
    what, home, seconds = line.split()
    Path(home).mkdir()
    begun = time.monotonic()
    first = child(what, Path(home))
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    took = time.monotonic() - begun
    print(took, os.waitstatus_to_exitcode(os.waitpid(child(what, Path(home)), 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["mlflow", "optuna", "jobs"])
def test_killed_at_twenty_instants_while_its_tables_are_made_a_database_opens_at_the_next_start(tmp_path, what):
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:

        def kill(name, seconds):
            process.stdin.write(f"{what} {tmp_path / name} {seconds}\n")
            process.stdin.flush()
            return process.stdout.readline().split()

        took, status = kill("whole", 0)
        assert status == "0"
        instants = [float(took) * (i + 0.5) / 20 for i in range(20)]
        ends = [kill(f"at-{i}", seconds)[1] for i, seconds in enumerate(instants)]
        process.stdin.close()
    assert ends == ["0"] * 20, dict(zip(instants, ends, strict=True))


def _half_made(path, *statements):
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def test_a_database_whose_tables_were_made_by_half_is_set_aside_with_a_sentence(tmp_path, capsys):
    file = tmp_path / "mlflow.db"
    _half_made(file, "CREATE TABLE jobs (id TEXT)")  # where its maker was killed before it could note the table
    tracker = mlflow_client.connect(tmp_path)
    assert tracker.experiment("search")
    (aside,) = tmp_path.glob("mlflow.db.broken-*")
    said = capsys.readouterr().err.strip()
    problem = f"MLflow's database {file} can't be used (table jobs already exists)"
    assert said == f"{problem} and holds no run; it is now {aside}"
    assert mlflow_client.connect(tmp_path).client.get_experiment_by_name("search")


def test_a_database_that_is_broken_and_holds_runs_or_nobody_knows_what_stays_where_it_is(tmp_path):
    file = tmp_path / "mlflow.db"
    _half_made(
        file, "CREATE TABLE runs (id TEXT)", "INSERT INTO runs VALUES ('1')",
        "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('of no version')",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"can't be used \(.*\) and holds 1 runs; put a copy of it back"):
        mlflow_client.connect(tmp_path)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="file is not a database"):
        mlflow_client.connect(tmp_path)
    assert file.read_bytes() == b"no database" * 100 and not list(tmp_path.glob("*broken*"))
