"""docs/guides/operations.md: its commands for SQLite are run, and what it names is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from ldseg import ROOT
from ldseg.posterior.plan import SamplePlan
from serve.store import JobStore, NewCohort, Queue, sqlite_url
from serve.telemetry import Metrics

TEXT = (ROOT / "docs" / "guides" / "operations.md").read_text()
FINISHED = 'ldseg_cases_finished_total{reason="",state="done"}'


def commands(start: str) -> list[str]:
    return [line.partition(" #")[0].strip() for line in TEXT.splitlines() if line.startswith(start)]


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="sqlite3 is not installed")
def test_a_backup_of_a_store_in_use_is_whole_and_is_brought_back_into_an_empty_place(tmp_path: Path) -> None:
    backup, check = commands("sqlite3 runs/service/jobs.db")[0], commands("sqlite3 /backup/jobs.db")[0]
    (restore,) = commands("mkdir -p new/service")
    here = tmp_path / "backup"
    here.mkdir()

    def run(command: str) -> str:
        line = command.replace("/backup", str(here))
        return subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    store, ended = JobStore(sqlite_url(tmp_path / "runs" / "service" / "jobs.db")), threading.Event()
    cohort = store.add(NewCohort(owner="me", plan=SamplePlan.fixed(2)), [(f"c{k}", "/a") for k in range(2000)])[0]

    def work() -> None:
        while not ended.is_set() and (case := store.claim("w", 60.0)):
            store.finish(case, "w", "done")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while store.queue().queued > 1990:
            pass
        run(backup)
    finally:
        ended.set()
        worker.join()
    assert run(check) == "ok\n"
    before = store.queue().queued
    store.close()
    shutil.rmtree(tmp_path / "runs")
    run(restore.partition(" && rsync")[0])
    again = JobStore(sqlite_url(tmp_path / "new" / "service" / "jobs.db"))
    found = again.cohort(cohort, "me")
    assert found is not None and found.total == 2000 and 0 < found.counts["done"] < 2000
    assert found.counts["done"] <= 2000 - before, "what ended after the backup is done again"
    case = again.claim("another", 60.0)
    assert case is not None and again.finish(case, "another", "done")
    again.close()


class Two:
    alive = starting = 1


def test_the_metrics_that_are_to_be_watched_exist() -> None:
    metrics = Metrics()
    metrics.watch(Two())
    metrics.case_finished("done")
    metrics.request("GET", "/", 200, 0.1)
    metrics.stages({"read": 0.1})
    told = metrics.text(Queue(queued=1, uploads=0, oldest=None, running={}, failed={})).decode()
    named = set(re.findall(r"`?(?:rate\()?(ldseg_\w+)[{`)\[]", TEXT)) - {"ldseg_jobs", "ldseg_mlflow", "ldseg_studies"}
    assert len(named) >= 6
    for name in named:
        assert re.search(rf"^{name}(_bucket)?[{{ ]", told, re.M), name
    assert FINISHED in told


def test_reasons_that_are_to_be_watched_are_those_that_cases_fail_by() -> None:
    known = set(re.findall(r'"([a-z-]+)"', (ROOT / "serve/jobs/runner.py").read_text()))
    known |= set(re.findall(r'"([a-z-]+)"', (ROOT / "serve/store/leases.py").read_text()))
    assert set(re.findall(r'reason="([a-z-]+)"', TEXT)) <= known


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"(?:tests|kubernetes|platform|benchmarks|serve)/[\w/]+\.(?:py|ya?ml|sh)", TEXT))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
