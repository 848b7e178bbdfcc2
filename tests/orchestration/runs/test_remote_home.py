"""Runs on object storage, by a server that speaks S3: brought, kept, one program at a time."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from buckets import read, write

from ldseg import ROOT
from ldseg.data import remote
from ldseg.orchestration import remote_home
from ldseg.orchestration.remote_home import OWNER, runs_at


@pytest.fixture
def url(buckets, tmp_path, monkeypatch):
    monkeypatch.setenv("LDSEG_HOME", str(tmp_path / "home"))
    return f"{buckets.new()}/runs"


def test_a_folder_is_itself(tmp_path):
    with runs_at(tmp_path / "runs") as home:
        assert home == tmp_path / "runs" and home.is_dir()


def test_what_was_made_is_there_in_the_end_and_comes_back_when_this_machine_has_lost_it(url, tmp_path):
    with runs_at(url) as home:
        (home / "train").mkdir()
        (home / "train" / "history.jsonl").write_text("1\n")
        with closing(sqlite3.connect(home / "mlflow.db")) as database:
            database.execute("pragma journal_mode=wal")
            database.execute("create table t (x)")
    assert read(f"{url}/train/history.jsonl") == b"1\n" and json.loads(read(f"{url}/{OWNER}"))["ended"]
    shutil.rmtree(tmp_path / "home")
    with runs_at(url) as again:
        assert again == home and (home / "train" / "history.jsonl").read_text() == "1\n"
        with closing(sqlite3.connect(home / "mlflow.db")) as database:
            assert database.execute("select * from t").fetchall() == []
        (home / "train" / "history.jsonl").write_text("1\n2\n")
        assert list(home.parent.iterdir()) == [home], "there was nothing to set aside"
    assert read(f"{url}/train/history.jsonl") == b"1\n2\n"


def test_a_change_of_the_same_length_is_copied_whatever_the_clock_of_the_storage_says(url):
    with runs_at(url) as home:
        (home / "a").write_text("one")
        os.utime(home / "a", (10**9, 10**9))
    with runs_at(url) as home:
        (home / "a").write_text("two")
        os.utime(home / "a", (10**9 + 1, 10**9 + 1))  # long before the copy was made
    assert read(f"{url}/a") == b"two"


def test_what_another_machine_has_made_since_wins_over_what_lies_here(url, tmp_path, monkeypatch, capsys):
    with runs_at(url) as one:
        (one / "a").write_text("first")
    monkeypatch.setenv("LDSEG_HOME", str(tmp_path / "elsewhere"))
    with runs_at(url) as two:
        assert (two / "a").read_text() == "first"
        (two / "a").write_text("second")
    assert f"made in {one}" in capsys.readouterr().err, "addresses that MLflow keeps lead there"
    monkeypatch.setenv("LDSEG_HOME", str(tmp_path / "home"))
    with runs_at(url) as one:
        assert (one / "a").read_text() == "second"
    assert [(path / "a").read_text() for path in one.parent.glob("*-before-*")] == ["first"]


def test_one_program_at_a_time(url):
    with runs_at(url), pytest.raises(OSError, match=f"is in use by process {os.getpid()} on .*end that"), runs_at(url):
        pass
    owner = json.loads(read(f"{url}/{OWNER}"))
    dead = owner | {"ended": False, "pid": 2**22 + 1}
    write(f"{url}/{OWNER}", json.dumps(dead).encode())
    with runs_at(url):
        pass  # it was killed on this machine
    away = owner | {"ended": False, "host": "another"}
    write(f"{url}/{OWNER}", json.dumps(away).encode())
    with pytest.raises(OSError, match="on another"), runs_at(url):
        pass
    write(f"{url}/{OWNER}", json.dumps(away | {"time": owner["time"] - 301}).encode())
    with runs_at(url):
        pass  # no sign for five minutes


def test_it_is_copied_meanwhile_and_an_outage_is_survived(url, buckets, monkeypatch, caplog):
    monkeypatch.setattr(remote_home, "EVERY_S", 0.2)
    keep = remote_home.keep
    with runs_at(url) as home:
        (home / "a").write_text("one")
        wait_for(lambda: read(f"{url}/a") == b"one")
        monkeypatch.setattr(remote_home, "keep", failing)
        wait_for(lambda: "will be tried again: away" in caplog.text)
        monkeypatch.setattr(remote_home, "keep", keep)
        (home / "a").write_text("three")
        wait_for(lambda: read(f"{url}/a") == b"three")


def test_who_was_away_while_another_took_over_does_not_write_over_it(url):
    with (
        pytest.raises(OSError, match=r"process 7 on another has taken it over\); what was made lies in"),
        runs_at(url) as home,
    ):
        (home / "a").write_text("late")
        owner = json.loads(read(f"{url}/{OWNER}"))
        write(f"{url}/a", b"theirs")
        write(f"{url}/{OWNER}", json.dumps(owner | {"home": "theirs", "host": "another", "pid": 7}).encode())
    assert read(f"{url}/a") == b"theirs"


def test_a_storage_that_is_away_in_the_end_is_an_error_that_names_the_folder(url, monkeypatch):
    monkeypatch.setattr(remote_home, "keep", failing)
    with (
        pytest.raises(OSError, match=r"can't be written \(away\); what was made lies in .*/home/stored/runs-"),
        runs_at(url),
    ):
        pass


def failing(*_):
    raise OSError("away")


def wait_for(true):
    deadline = time.monotonic() + 30
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_search_whose_machine_is_lost_goes_on_from_the_storage(url, buckets, phantoms, tmp_path):
    """Killed, its disk gone: the same command with --resume knows the trials that had ended."""
    for path in phantoms.rglob("*"):
        if path.is_file():
            write(f"{url}-data/{path.relative_to(phantoms)}", path.read_bytes())
    command = [sys.executable, "platform/tune.py", "--data", f"{url}-data", "--space", "phantom2d", "--storage", url]
    command += ["--name", "s", "--epochs", "1", "--address", "local"]
    env = os.environ | {"LDSEG_CACHE": str(tmp_path / "cache")}
    first = subprocess.run([*command, "--trials", "1"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "cache")
    more = [*command, "--trials", "2", "--resume"]
    second = subprocess.run(more, cwd=ROOT, env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "files from s3://" in second.stdout and "s-0000" in second.stdout and "s-0001" in second.stdout
    there, root = remote.opened(url)
    names = remote.list_files(there, root)
    assert {"studies/s/report.html", "studies/s.db", "mlflow.db"} <= names.keys()
    assert any(name.startswith("bundles/s-") for name in names)
