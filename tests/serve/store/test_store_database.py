"""Where jobs are kept: tables of earlier versions, of later ones, several starts at once, a database that is away."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from service import ROOT
from sqlalchemy import inspect, select
from stores import LEASE_S, Server, add, at_once, names

from serve.store import JobStore, SchemaError, StoreAway, sqlite_url
from serve.store.database import MIGRATION_LOCK, Database
from serve.store.records import width_of
from serve.store.schema import VERSION_TABLE, cases, metadata

TABLES_OF_0_1 = """
PRAGMA journal_mode=WAL;
CREATE TABLE cohorts (number INTEGER NOT NULL, id VARCHAR NOT NULL, created FLOAT NOT NULL, samples INTEGER NOT NULL,
    steps INTEGER, seed INTEGER NOT NULL, upload BOOLEAN NOT NULL, cancelled BOOLEAN NOT NULL, PRIMARY KEY (number),
    UNIQUE (id));
CREATE TABLE cases (number INTEGER NOT NULL, cohort VARCHAR NOT NULL, name VARCHAR NOT NULL, image VARCHAR NOT NULL,
    state VARCHAR NOT NULL, upload BOOLEAN NOT NULL, started FLOAT, finished FLOAT, error VARCHAR, result JSON,
    PRIMARY KEY (number), FOREIGN KEY(cohort) REFERENCES cohorts (id));
CREATE UNIQUE INDEX case_of_cohort ON cases (cohort, name);
CREATE INDEX case_queue ON cases (state, upload, number);
INSERT INTO cohorts VALUES (1, 'aa', 100.5, 8, NULL, 5, 0, 0), (2, 'bb', 200.5, 4, 20, 9223372036854775807, 1, 0),
    (4, 'cc', 300.5, 2, NULL, 0, 0, 1), (5, 'dd', 400.5, 2, NULL, 0, 0, 0);
INSERT INTO cases VALUES (1, 'aa', 'a0', '/a0', 'done', 0, 101, 102, NULL, :done),
    (2, 'aa', 'a1', '/a1', 'running', 0, 103, NULL, NULL, 'null'),
    (3, 'aa', 'a2', '/a2', 'queued', 0, NULL, NULL, NULL, NULL),
    (4, 'bb', 'b', '/b', 'queued', 1, NULL, NULL, NULL, NULL),
    (5, 'cc', 'c0', '/c0', 'cancelled', 0, NULL, 301, NULL, NULL),
    (6, 'cc', 'c1', '/c1', 'running', 0, 302, NULL, NULL, NULL),
    (7, 'dd', 'd0', '/d0', 'failed', 0, 402, 403, 'd0: broken', 'null');
"""
SIZES = {"organ_volume_ml_p05": 9.0, "organ_volume_ml_p50": 10.0, "organ_volume_ml_p95": 11.0, "unfamiliar": 1}
RESULT = {"numbers": {"agreement": 0.75, "model_digest": "abc", "x": float("nan"), **SIZES}, "files": {}}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as version 0.1 left it, in the middle of its work."""
    path = tmp_path / "jobs.db"
    connection = sqlite3.connect(path)
    connection.executescript(TABLES_OF_0_1.replace(":done", f"'{json.dumps(RESULT)}'"))
    connection.close()
    return path


def test_a_store_of_version_0_1_is_taken_over_with_its_jobs(old: Path) -> None:
    store = JobStore(sqlite_url(old))
    cohorts = {cohort.id: cohort for cohort in store.page(None, None, 9)}
    assert list(cohorts) == ["dd", "cc", "bb", "aa"]
    assert {id: cohort.state for id, cohort in cohorts.items()} == {
        "aa": "running", "bb": "queued", "cc": "cancelled", "dd": "done"
    }  # fmt: skip
    assert cohorts["aa"].counts == {"queued": 2, "running": 0, "done": 1, "failed": 0, "cancelled": 0}
    assert cohorts["cc"].counts["cancelled"] == 2 and cohorts["cc"].finished == 301
    assert (cohorts["dd"].finished, cohorts["aa"].finished, cohorts["aa"].created) == (403, None, 100.5)
    assert (cohorts["bb"].steps, cohorts["bb"].seed, cohorts["bb"].plan.min, cohorts["bb"].plan.max) == (
        20, 2**63 - 1, 4, 4
    )  # fmt: skip
    done = store.case("aa", "a0", owner="")
    assert (done.started, done.finished, done.agreement, done.model_digest) == (101, 102, 0.75, "abc")
    assert done.result["files"] == {} and str(done.result["numbers"]["x"]) == "nan"
    assert [cohort.name for cohort in cohorts.values()] == ["d0", "c0", "b", "a0"]
    with store.database.read() as connection:
        ranked = connection.execute(select(cases.c.unfamiliar, cases.c.width).where(cases.c.name == "a0")).one()
    assert tuple(ranked) == (True, width_of(RESULT)) == (True, pytest.approx(0.2))
    failed = store.case("dd", "d0", owner="")
    assert failed.error == "d0: broken" and failed.result is None
    assert [case.name for case in store.cases("aa", owner="", order="agreement").cases] == ["a0", "a1", "a2"]
    claimed = [store.claim("w", LEASE_S) for _ in range(3)]
    assert [(work.name, work.attempts) for work in claimed] == [("b", 1), ("a1", 1), ("a2", 1)]
    assert all(store.finish(work, "w", "done") for work in claimed) and store.claim("w", LEASE_S) is None
    assert store.cohort("aa", "").state == "done"
    add(store, "new")
    store.close()
    again = JobStore(sqlite_url(old))
    assert len(again.page(None, None, 9)) == 5
    with again.database.read() as connection:
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, VERSION_TABLE}
    again.close()


def test_a_takeover_that_is_killed_leaves_the_old_tables(old: Path) -> None:
    code = "import os, sys, alembic.op as op; from serve.store import JobStore; "
    code += "op.drop_table = lambda name: os.kill(os.getpid(), 9); JobStore(sys.argv[1])"
    killed = subprocess.run([sys.executable, "-c", code, sqlite_url(old)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -9
    connection = sqlite3.connect(old)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert tables == {"cohorts", "cases"}
    store = JobStore(sqlite_url(old))
    assert len(store.page(None, None, 9)) == 4
    store.close()


def test_the_migrations_make_the_tables_that_the_code_works_with(store: JobStore) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []
        made = {i["name"] for table in metadata.tables for i in inspect(connection).get_indexes(table)}
    assert made >= {index.name for table in metadata.tables.values() for index in table.indexes}


def test_a_store_of_a_later_version_is_refused_in_one_sentence(url: str) -> None:
    store = JobStore(url)
    add(store, "a")
    with store.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    store.close()
    with pytest.raises(SchemaError, match=r"tables of a later version \(9999\); start that version") as error:
        JobStore(url)
    assert "\n" not in str(error.value)


def test_several_processes_start_at_once(url: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "serve" / "store" / "store_worker.py"), url, "w", "60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    several = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]
    for process in several:
        out, err = process.communicate(b"\n", timeout=120)
        assert process.returncode == 0 and out == b"ready\n", err.decode()


def test_a_start_waits_for_the_one_that_makes_the_tables(url: str) -> None:
    first = Database(url)
    with ThreadPoolExecutor() as pool:
        with first.write() as connection:
            first.alone(connection, MIGRATION_LOCK)
            second = pool.submit(JobStore, url)
            with pytest.raises(TimeoutError):
                second.result(1.0)
        assert second.result(30).page(None, None, 1) == []
    second.result().close(), first.close()


def test_several_threads_start_at_once(url: str) -> None:
    stores = at_once(6, lambda k: JobStore(url))
    assert all(isinstance(store, JobStore) and store.page(None, None, 9) == [] for store in stores), stores
    for store in stores:
        store.close()


def test_several_threads_start_at_once_on_tables_of_0_1(old: Path) -> None:
    stores = at_once(6, lambda k: JobStore(sqlite_url(old)))
    assert all(isinstance(store, JobStore) and len(store.page(None, None, 9)) == 4 for store in stores), stores
    for store in stores:
        store.close()


def test_a_database_that_is_away_is_told_and_the_store_works_again_after(postgres: Server) -> None:
    store = JobStore(postgres.new())
    cohort = add(store, *names("c", 20))
    works = [store.claim("w", LEASE_S) for _ in range(5)]
    postgres.stop()
    postgres.start()
    assert len(store.page(None, None, 5)) == 1  # nobody asked while it was away, so nothing is told
    for how in ("fast", "immediate"):
        postgres.stop(how)
        try:
            calls = (
                lambda: store.claim("w", LEASE_S),
                lambda: store.finish(works[0], "w", "done"),
                lambda: store.heartbeat("w", [(cohort, "c00000")], LEASE_S),
                lambda: store.page(None, None, 5),
                lambda: add(store, "x"),
                lambda: JobStore(store.database.url),
            )
            for call in calls:
                begun = time.monotonic()
                with pytest.raises(StoreAway, match="does not answer"):
                    call()
                assert time.monotonic() - begun < 60
        finally:
            postgres.start()
        assert store.cohort(cohort, None).counts["running"] == 5  # each connection was found dead and made again
        assert [len(store.events(cohort, owner=None)) for _ in range(8)] == [7] * 8
    assert all(store.finish(work, "w", "done") for work in works)
    assert store.claim("w", LEASE_S).name == "c00005"
    store.close()


def test_a_full_disk_stores_nothing_by_halves_and_is_got_over(tmp_path: Path) -> None:
    store = JobStore(sqlite_url(tmp_path / "jobs.db"))
    cohort = add(store, "a")

    def most_pages(number: int) -> None:
        with store.database.read() as connection:  # calls of one thread share this connection
            connection.exec_driver_sql(f"PRAGMA max_page_count={number}")

    most_pages(60)
    for _ in range(3):
        with pytest.raises(StoreAway, match="full"):
            add(store, *names("c", 10_000))
    assert [cohort.id for cohort in store.page(None, None, 5)] == [cohort] and store.queue().queued == 1
    most_pages(2**20)
    assert add(store, *names("c", 10_000)) and store.queue().queued == 10_001
    store.close()


def test_a_password_is_never_told(postgres: Server) -> None:
    with pytest.raises(StoreAway) as error:
        JobStore("postgresql://me:secret-word@127.0.0.1:1/jobs")
    assert "127.0.0.1" in str(error.value) and "secret-word" not in str(error.value)


def test_work_goes_on_when_the_database_goes_away_in_the_midst_of_it(postgres: Server) -> None:
    store = JobStore(postgres.new(), max_attempts=1000)
    cohort = add(store, *names("c", 150))

    def patient(call):
        deadline = time.monotonic() + 300
        while True:
            try:
                return call()
            except StoreAway:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def work(k: int) -> list[str]:
        if k == 4:
            for _ in range(2):
                time.sleep(0.3)
                postgres.stop("immediate")
                time.sleep(0.5)
                postgres.start()
            return []
        mine = []
        while not (found := patient(lambda: store.cohort(cohort, None))).finished:
            one = patient(lambda: store.claim(f"w{k}", 2.0))
            if one is None:
                assert found.counts["running"] or found.counts["queued"]
                time.sleep(0.1)
            elif patient(partial(store.finish, one, f"w{k}", "done", result={"by": f"w{k}"})):
                mine.append(one.name)
        return mine

    done = at_once(5, work)
    assert not any(isinstance(answer, Exception) for answer in done), done
    assert sorted(sum(done, [])) == names("c", 150)
    by = {case.name: case.result["by"] for case in store.every_case(cohort, owner=None, results=True)}
    assert all(by[name] == f"w{k}" for k in range(4) for name in done[k])
    store.close()
