"""The copy on object storage; a folder stands in for the bucket, by the same interface."""

import shutil
import sqlite3
from contextlib import closing

import pytest

from ldseg.orchestration.mirror import keep, main, restore
from ldseg.training.checkpoint import add_checkpoint, newest_whole, read_state, write_state


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    run = home / "train" / "a"
    run.mkdir(parents=True)
    for epoch in (1, 2, 3):
        add_checkpoint(run, lambda folder, epoch=epoch: write_state(folder, {"epoch": epoch}))
    (run / "history.jsonl").write_text('{"epoch": 1}\n')
    for name in ("cache", "phantoms"):
        (home / name).mkdir()
        (home / name / "large").touch()
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("create table t (x)")
        database.execute("insert into t values (7)")
        database.commit()
    return home


def _names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}


def test_a_lost_home_comes_back_whole(home, tmp_path):
    url = (tmp_path / "bucket").as_uri()
    before = {name for name in _names(home) if not name.startswith(("cache", "phantoms"))}
    assert keep(home, url) == len(before)
    assert keep(home, url) == 0, "nothing has changed"
    shutil.rmtree(home)
    assert restore(url, home) == len(before) and _names(home) == before
    loaded = []
    newest = newest_whole(home / "train" / "a", lambda folder: loaded.append(read_state(folder)["epoch"]), print)
    assert newest is not None and loaded == [3]
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        assert database.execute("select x from t").fetchall() == [(7,)]


def test_replaced_checkpoints_leave_the_bucket_too_but_those_of_a_lost_home_stay(home, tmp_path):
    bucket = tmp_path / "bucket"
    keep(home, bucket.as_uri())
    old = {name for name in _names(bucket) if "checkpoint_" in name}
    run = home / "train" / "a"
    for epoch in (4, 5):
        add_checkpoint(run, lambda folder, epoch=epoch: write_state(folder, {"epoch": epoch}))
    (run / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    keep(home, bucket.as_uri())
    new = {name for name in _names(bucket) if "checkpoint_" in name}
    assert new == {name for name in _names(home) if "checkpoint_" in name} and not new & old
    assert (bucket / "train" / "a" / "history.jsonl").read_text().count("\n") == 2
    shutil.rmtree(home / "train")
    assert keep(home, bucket.as_uri()) == 0
    assert {name for name in _names(bucket) if "checkpoint_" in name} == new


def test_storage_that_can_not_be_written_is_told(home, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(home), (tmp_path / "file" / "x").as_uri(), "--every", "0"]) == 1
    assert capsys.readouterr().err.startswith("keep: ")
