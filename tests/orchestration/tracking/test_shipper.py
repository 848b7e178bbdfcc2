import http.server
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from multiprocessing import forkserver
from pathlib import Path

import pytest
from registered import begin

from ldseg.files import locked
from ldseg.orchestration.tracking.mlflow_client import Tracker
from ldseg.orchestration.tracking.run_log import RunLog, read_json, read_lines
from ldseg.orchestration.tracking.shipment import STATE, server_digest
from ldseg.orchestration.tracking.shipper import Shipper

UGLY = (0.1 + 0.2, 1 / 3, 1e-300, -0.0, 12345678901234567.0)


class Server:
    """`mlflow server` on a SQLite file; starting takes it some 10 s, so it starts while other tests run."""

    def __init__(self, database, folder):
        self.database, self.folder, self.process = database, folder, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [
            Path(sys.executable).parent / "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.database}",
        ]
        command += ["--artifacts-destination", self.folder / "artifacts", "--host", "127.0.0.1", "--workers", "1"]
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--port", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )

    def wait(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("mlflow server does not come up")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A SQLite file with MLflow's tables; making them takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    Tracker(f"sqlite:///{folder / 'mlflow.db'}", folder).client.search_experiments(max_results=1)
    return folder / "mlflow.db"


@pytest.fixture(scope="module", autouse=True)
def server(template, tmp_path_factory):
    forkserver.set_forkserver_preload(
        ["ldseg.orchestration.tracking.shipper", "mlflow.store.tracking.sqlalchemy_store"]
    )
    forkserver.ensure_running()  # imports while other tests run, as the server does
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder / "mlflow.db")
    server = Server(folder / "mlflow.db", folder)
    yield server
    server.kill()


@pytest.fixture
def tracker(template, tmp_path):
    shutil.copy(template, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


def _study(root, trials=2, experiment="search"):
    children = [
        RunLog.create(root / name, experiment, name, parameters={"lr": 0.1, "none": ""}, parent="study")
        for name in (f"trial-{i}" for i in range(trials))
    ]
    time.sleep(0.002)  # the parent is the youngest, and has to be sent first
    parent = RunLog.create(root / "study", experiment, "study", parameters={"trials": trials}, tags={"kind": "study"})
    return [parent, *children]


def _rows(database, run_id):
    """(key, step, value, time) in the order in which MLflow stored them."""
    with sqlite3.connect(database, timeout=60) as base:
        return base.execute(
            "select key, step, value, timestamp from metrics where run_uuid = ? order by rowid", (run_id,)
        ).fetchall()


def _expected(log):
    return [(k, line.step, v, line.time) for line in read_lines(log.folder) for k, v in line.metrics.items()]


def _check(tracker, database, logs, experiment="search"):
    """One run for each log, and every point exactly once and in order."""
    runs = tracker.client.search_runs([tracker.experiment(experiment)])
    by_name = {run.data.tags["ldseg.name"]: run for run in runs}
    assert sorted(run.data.tags["ldseg.name"] for run in runs) == sorted(log.info.name for log in logs)
    for log in logs:
        run = by_name[log.info.name]
        assert sorted(_rows(database, run.info.run_id)) == sorted(_expected(log)), "each point once"
        steps = [row[1] for row in _rows(database, run.info.run_id)]
        assert steps == sorted(steps), "in order"
        assert run.info.status == read_json(log.folder / "end.json").get("status", "RUNNING")
        assert run.data.params == log.info.parameters and run.info.start_time == log.info.start
        parent = by_name[log.info.parent].info.run_id if log.info.parent else None
        assert run.data.tags.get("mlflow.parentRunId") == parent
    return by_name


def test_runs_arrive_once_with_all_they_are_whoever_ships_them(tracker, tmp_path):
    root, database = tmp_path / "log", tmp_path / "mlflow.db"
    study, *trials = logs = _study(root)
    for step, value in enumerate(UGLY):
        for trial in trials:
            trial.log({"loss": value, "dice": step / 7}, step)
    trials[0].end("FAILED", "out of memory")
    assert Shipper(tracker, root).unsent() == 2 * len(UGLY) + 4
    assert Shipper(tracker, root).sync() == 0
    by_name = _check(tracker, database, logs)
    assert by_name["trial-0"].data.tags["reason"] == "out of memory"
    trials[0].reopen()
    RunLog.create(trials[1].folder, "search", "trial-1", parameters={"more": 1}, tags={"host": "b"}, parent="study")
    assert Shipper(tracker, root).flush(5) == 0 and _check(tracker, database, logs)["trial-1"].data.tags["host"] == "b"
    for log in logs:
        log.log({"loss": 1.0}, 9)
        log.end()
    second = Shipper(tracker, root)
    assert second.unsent() == 6 and second.flush(5) == 0 and second.flush(5) == 0
    by_name = _check(tracker, database, logs)
    assert by_name["trial-0"].data.tags["reason"] == "" and by_name["trial-0"].info.end_time
    assert second.run_id("trial-0") == by_name["trial-0"].info.run_id


def _crash_everywhere(tracker, database, root):
    """Put back what a crash between MLflow's acknowledgement and the note leaves behind, at each point in time."""
    logs = _study(root, trials=1, experiment=root.name)
    log, states = logs[1], [None]
    for part in range(3):
        for step in range(4 * part, 4 * part + 4):
            log.log({"loss": UGLY[step % 5] + step, "dice": UGLY[step % 5]}, step)
        if part == 2:
            log.end("KILLED", "stopped")
        assert Shipper(tracker, root).sync() == 0
        states.append((log.folder / STATE).read_bytes())
    before = _check(tracker, database, logs, root.name)
    for state in states:
        (log.folder / STATE).unlink()
        if state is not None:
            (log.folder / STATE).write_bytes(state)
        assert Shipper(tracker, root).sync() == 0
        after = _check(tracker, database, logs, root.name)
        assert after["trial-0"].info.run_id == before["trial-0"].info.run_id


def test_what_is_sent_again_after_a_crash_is_one_point_in_sqlite(tracker, tmp_path):
    _crash_everywhere(tracker, tmp_path / "mlflow.db", tmp_path / "log")


def test_a_run_that_a_slow_server_has_made_twice_is_one_run(tracker, tmp_path):
    logs = _study(tmp_path / "log", trials=1)
    tags = {"ldseg.name": "trial-0", "ldseg.uid": logs[1].info.uid}
    for _ in range(3):
        tracker.client.create_run(tracker.experiment("search"), start_time=logs[1].info.start, tags=tags)
    assert Shipper(tracker, tmp_path / "log").sync() == 0
    _check(tracker, tmp_path / "mlflow.db", logs)
    tracker.client.create_run(tracker.experiment("search"), tags=tags)  # the slow request arrives at last
    logs[1].end()
    assert Shipper(tracker, tmp_path / "log").sync() == 0
    _check(tracker, tmp_path / "mlflow.db", logs)


def test_a_run_that_another_process_is_sending_is_left_to_it(tracker, tmp_path):
    logs = _study(tmp_path / "log")
    shipper = Shipper(tracker, tmp_path / "log")
    with locked(logs[1].folder / ".ship.lock"):
        assert shipper.flush(0.5) == 1
        assert len(tracker.client.search_runs([tracker.experiment("search")])) == 2
    assert shipper.sync() == 0
    _check(tracker, tmp_path / "mlflow.db", logs)


def test_a_run_made_before_there_were_folders_goes_on_as_the_same_run(tracker, tmp_path):
    old = begin(tracker, "trial-0", experiment="search")
    for name, value in (("lr", 0.2), ("none", "")):
        tracker.client.log_param(old, name, value)
    for step in range(3):
        tracker.client.log_metric(old, "loss", step + 0.5, step=step)
    tracker.client.set_terminated(old)
    said, root = [], tmp_path / "log"
    study, trial = _study(root, trials=1)
    for step in range(1, 5):  # from the checkpoint of step 0
        trial.log({"loss": 10.0 + step}, step)
    shipper = Shipper(tracker, root, say=said.append)
    assert shipper.sync() == 0 and shipper.run_id("trial-0") == old
    assert [row[1:3] for row in _rows(tmp_path / "mlflow.db", old)] == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 13), (4, 14)]
    run = tracker.client.get_run(old)
    assert run.info.status == "RUNNING" and run.data.tags["mlflow.parentRunId"] == shipper.run_id("study")
    assert len(said) == 1 and "refuses lr of the run trial-0" in said[0]


def test_what_mlflow_refuses_holds_up_nothing_else(tracker, tmp_path):
    said, root = [], tmp_path / "log"
    bad = RunLog.create(root / "bad", "search", "bad", parameters={"fine": 1, "bad\nkey?": 2}, tags={"t": "x"})
    bad.log({"loss": 1.0, "what?": 2.0, "dice": 0.5}, 1)
    deleted, good = (RunLog.create(root / name, "search", name) for name in ("deleted", "good"))
    shipper = Shipper(tracker, root, say=said.append)
    assert shipper.sync() == 0 and len(said) == 2 and "what?" in said[1]
    tracker.client.delete_run(shipper.run_id("deleted"))
    for log in (bad, deleted, good):
        log.log({"loss": 2.0}, 2)
        log.end()
    assert shipper.flush(5) == 0 and len(said) == 3 and "deleted" in said[2]
    runs = {r.data.tags["ldseg.name"]: r for r in tracker.client.search_runs([tracker.experiment("search")])}
    assert {name: run.info.status for name, run in runs.items()} == {"bad": "FINISHED", "good": "FINISHED"}
    assert runs["bad"].data.params == {"fine": "1"} and runs["bad"].data.metrics == {"loss": 2.0, "dice": 0.5}


def test_runs_that_mlflow_has_lost_are_sent_again(tracker, tmp_path):
    logs = _study(tmp_path / "log")
    for log in logs:
        log.log({"loss": 1.0}, 1)
    shipper = Shipper(tracker, tmp_path / "log")
    assert shipper.sync() == 0
    with sqlite3.connect(tmp_path / "mlflow.db") as base:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            base.execute(f"delete from {table}")
    for log in logs:
        log.log({"loss": 2.0}, 2)
    assert shipper.flush(10) == 0
    _check(tracker, tmp_path / "mlflow.db", logs)


class _Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(503)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", ["nobody", "silent", "broken"])
def test_a_search_without_mlflow_goes_on_and_says_so_once(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    logs, said = _study(tmp_path / "log"), []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if kind != "silent":
        listener.close()
    broken = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Broken) if kind == "broken" else None
    if broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
    shipper = Shipper(Tracker(f"http://127.0.0.1:{port}", tmp_path), tmp_path / "log", say=said.append)
    shipper.start(0.05)
    slowest = 0.0
    for step in range(20):
        begin = time.monotonic()
        logs[1].log({"loss": 1.0}, step)
        slowest = max(slowest, time.monotonic() - begin)
    begin = time.monotonic()
    assert shipper.flush(1) == 23
    with pytest.raises(TimeoutError, match="does not know the run trial-1"):
        shipper.run_id("trial-1", timeout=0.1)
    shipper.stop()
    assert time.monotonic() - begin < 60 and slowest < 30  # MLflow itself would try for minutes
    assert len(said) == 1 and "can't be reached" in said[0]
    listener.close()
    if broken:
        broken.shutdown()


def _ship_for_ever(uri, root, together):
    shipper = Shipper(Tracker(uri, root), root)
    shipper.tracker.experiment("search")
    together.wait()
    while True:
        shipper.sync()


def test_shippers_killed_at_any_instant_and_two_at_once_send_each_point_once(tracker, tmp_path):
    root, rng = tmp_path / "log", random.Random(1)
    logs = _study(root, trials=1)
    tracker.experiment("search")
    context, step = multiprocessing.get_context("forkserver"), 0
    for _ in range(3):
        together = context.Barrier(3)
        pair = [context.Process(target=_ship_for_ever, args=(tracker.uri, root, together)) for _ in range(2)]
        for process in pair:
            process.start()
        together.wait(300)
        until = time.monotonic() + rng.uniform(0.1, 0.9)
        while time.monotonic() < until:
            for log in logs:
                log.log({"loss": 1 / (step + 1), "dice": step / 3}, step)
            step += 1
        for process in pair:
            process.kill()
            process.join()
    for log in logs:
        log.end()
    assert Shipper(tracker, root).flush(300) == 0
    _check(tracker, tmp_path / "mlflow.db", logs)


WRITER = """
import sys, time
from pathlib import Path
from ldseg.orchestration.tracking.run_log import RunLog
log = RunLog(Path(sys.argv[1]))
for step in range(400):
    while step == 200 and not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    log.log({f"metric {i}": (step + i) / 3 for i in range(10)}, step)
log.end()
"""


def test_a_killed_server_gets_every_point_once_and_in_order_when_it_is_back(server, tmp_path):
    server.wait()
    root, said = tmp_path / "log", []
    tracker, logs = Tracker(server.uri, tmp_path), _study(root)
    shipper = Shipper(tracker, root, say=said.append)
    shipper.start(0.02)
    first = shipper.run_id("trial-0")
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, str(log.folder), str(tmp_path / "killed")]) for log in logs[1:]]
    deadline = time.monotonic() + 300
    while len(_rows(server.database, first)) < 500 and time.monotonic() < deadline:
        time.sleep(0.005)
    server.kill()
    arrived = sum(len(_rows(server.database, shipper.run_id(log.info.name))) for log in logs[:2])
    assert 500 <= arrived <= 2000, "it died in the middle"
    (tmp_path / "killed").touch()
    server.start()
    assert [writer.wait(300) for writer in writers] == [0, 0]
    logs[0].end()
    assert shipper.flush(0.5) > 0
    server.wait()
    assert shipper.flush(300) == 0
    shipper.stop()
    _check(tracker, server.database, logs)
    assert [("can't be reached" in s, "is back" in s) for s in said] == [(True, False), (False, True)], said
    assert Shipper(tracker, root).sync() == 0
    _check(tracker, server.database, logs)


def test_what_is_sent_again_after_a_crash_is_one_point_in_a_server(server, tmp_path):
    server.wait()
    _crash_everywhere(Tracker(server.uri, tmp_path), server.database, tmp_path / "other")
    state = json.loads((tmp_path / "other" / "trial-0" / STATE).read_text())
    assert state["uri"] == server_digest(server.uri) and state["offset"] > 0


def test_a_password_in_the_address_is_neither_shown_nor_kept(tmp_path):
    uri = "http://me:secret@127.0.0.1:9"
    RunLog.create(tmp_path / "log" / "a", "e", "a").log({"loss": 1.0}, 1)
    said = []
    shipper = Shipper(Tracker(uri, tmp_path), tmp_path / "log", say=said.append)
    assert shipper.flush(0.5) > 0 and said
    with pytest.raises(TimeoutError) as error:
        shipper.run_id("a", timeout=0.1)
    assert "secret" not in " ".join([*said, str(error.value)])
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
