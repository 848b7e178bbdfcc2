"""What a search survives: real processes, real signals. Minutes each, so apart from the others (`make test-faults`)."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import ray
from processes import below, kill_train_workers, train_workers
from registered import free_port, mlflow_server
from smalldisk import small_disk

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.orchestration.search.study import STANDS_FOR, read_study, trained
from ldseg.orchestration.tracking import mlflow_client
from ldseg.training.checkpoint import checkpoints

TRIALS, EPOCHS = 3, 4
KILLS = 10
pytestmark = pytest.mark.slow

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
# epochs of a second: who kills must find the process in the midst of one
BASE |= {"data": {"spatial_dims": 2, "shape": [128, 128], "fit": "pad"}, "optim": {"batch_size": 1}}
SPACE = {"optim.learning_rate": ("loguniform", 1e-4, 1e-2)}
METRIC = ("val_nll", "min")
"""


@pytest.fixture
def place(tmp_path):
    return _prepare(tmp_path)


def _prepare(folder):
    config = PhantomConfig(dims=2, cases=20, raters=2, shape=(16, 16), fractions=(0.6, 0.2, 0.2))
    write_phantoms(folder / "data", config)
    (folder / "space.py").write_text(SPACE)
    return folder


def _start(place, *options):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "platform/tune.py", "--data", str(place / "data"), "--space", str(place / "space.py")]
    command += ["--name", "s", "--trials", str(TRIALS), "--epochs", str(EPOCHS), "--samples", "2"]
    command += ["--runs", str(place / "runs"), *options]
    with open(place / "log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def _kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _begun(place):
    """Whether the study is there; Optuna opened before its tables are whole would make some of them twice."""
    file = place / "runs" / "studies" / "s.db"
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT count(*) FROM studies").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def _check(place):
    """Runs are trials, no point is missing or doubled, nothing is left running, the model loads."""
    stored = read_study(place / "runs", "s")
    found = trained(stored)
    assert [t.number for t in found] == list(range(TRIALS)), (place / "log").read_text()[-3000:]
    assert all(t.state.is_finished() for t in stored.trials)
    tracker = mlflow_client.connect(place / "runs")
    runs = tracker.client.search_runs([tracker.experiment("search")])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r not in parents]
    assert len(parents) == 1 and len(children) == TRIALS
    assert not [r.info.run_name for r in runs if r.info.status == "RUNNING"]
    for run in children:
        number = int(run.data.tags["trial"])
        steps = [m.step for m in tracker.client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(set(steps)) == sorted(steps), f"{run.info.run_name} has points twice: {steps}"
        if found[number].state == optuna.trial.TrialState.COMPLETE:
            assert sorted(steps) == list(range(1, EPOCHS + 1)), run.info.run_name
    (written,) = (place / "runs" / "bundles").glob("*/card.json")
    bundle = written.parent
    card = load_bundle(bundle).card
    assert card["epochs"] == EPOCHS
    (run,) = [r for r in children if r.info.run_name == bundle.name]
    assert card["validation"]["val_nll"] == pytest.approx(run.data.metrics["val_nll"], rel=1e-4)


def test_the_driver_killed_at_ten_random_instants(tmp_path):
    chance, kills, searches = random.Random(0), 0, 0
    while kills < KILLS:  # a quick machine may end a search before ten are spent: then another one takes the rest
        place = _prepare(tmp_path / str(searches))
        kills += _killed_until_it_ends(place, chance, KILLS - kills)
        _check(place)
        searches += 1
    print(f"{kills} kills in {searches} searches")


def _killed_until_it_ends(place, chance, most):
    kills, deadline = 0, time.monotonic() + 1500
    while True:
        process = _start(place, *(["--resume"] if (place / "runs" / "studies" / "s.db").exists() else []))
        try:
            process.wait(timeout=chance.uniform(5, 45) if kills < most else 600)
        except subprocess.TimeoutExpired:
            _kill(process)
            kills += 1
            assert time.monotonic() < deadline, (place / "log").read_text()[-3000:]
            continue
        assert process.returncode == 0, (place / "log").read_text()[-3000:]
        return kills


def _history(place, number):
    return place / "runs" / "train" / f"s-{number:04d}" / "history.jsonl"


def _finish(place, process):
    assert process.wait(timeout=1500) == 0, (place / "log").read_text()[-3000:]
    _check(place)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_train_worker_of_each_trial_killed_in_mid_epoch(place, workers):
    # a front has no early stopping, which would end a trial before its worker is killed
    process = _start(place, "--front", "--workers", str(workers), "--cpus-per-worker", str(1 / workers))
    for number in range(TRIALS):
        had = kill_train_workers(process.pid, _history(place, number), 1 + number)
        assert had < EPOCHS, "it was killed too late to show anything"
    _finish(place, process)
    assert (place / "log").read_text().count("it goes on from the last checkpoint") == TRIALS
    for number in range(TRIALS):
        epochs = [json.loads(line)["epoch"] for line in _history(place, number).read_text().splitlines()]
        assert len(epochs) <= EPOCHS + 1, f"trial {number} trained more than one epoch again: {epochs}"


def test_a_worker_that_dies_in_the_same_epoch_again_and_again_fails_its_trial_alone(place):
    process, kills, deadline = _start(place), 0, time.monotonic() + 1500
    while not (_begun(place) and (begun := trained(read_study(place / "runs", "s"))) and begun[0].state.is_finished()):
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-3000:]
        for _ in range(40):  # looking at the study takes long beside an epoch
            time.sleep(0.05)
            for worker in train_workers(process.pid) if not _history(place, 0).exists() else []:
                os.kill(worker, signal.SIGKILL)
                kills += 1
    _finish(place, process)
    stored = read_study(place / "runs", "s")
    assert kills >= 3 and trained(stored)[0].state == optuna.trial.TrialState.FAIL
    assert trained(stored)[0].user_attrs["reason"] and not [t for t in stored.trials if STANDS_FOR in t.user_attrs]


def _kill_steering(place, process, number, epochs):
    """Kill (-9) the process in which Ray Tune steers a trial, once that has so many epochs."""
    deadline, history = time.monotonic() + 900, _history(place, number)
    while not (history.exists() and len(history.read_text().splitlines()) >= epochs):
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.01)
    for steering in below(process.pid, b"ray::ImplicitFunc", b"ray::run_trial"):
        os.kill(steering, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_process_that_steers_each_trial_killed_in_mid_epoch(place, workers):
    process = _start(place, "--front", "--workers", str(workers), "--cpus-per-worker", str(1 / workers))
    for number in range(TRIALS):
        _kill_steering(place, process, number, 1 + number)
    _finish(place, process)
    assert (place / "log").read_text().count("its process died; it is started again") == TRIALS
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in trained(read_study(place / "runs", "s")))
    for number in range(TRIALS):
        epochs = [json.loads(line)["epoch"] for line in _history(place, number).read_text().splitlines()]
        assert len(epochs) <= EPOCHS + 1, f"trial {number} trained more than one epoch again: {epochs}"


def test_a_trial_whose_process_dies_in_the_same_epoch_again_and_again_fails_alone(place):
    process, kills, deadline = _start(place), 0, time.monotonic() + 1500
    while "trial 1/3  failed" not in (place / "log").read_text():
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-3000:]
        for steering in below(process.pid, b"ray::ImplicitFunc", b"ray::run_trial"):
            if not _history(place, 0).exists():
                os.kill(steering, signal.SIGKILL)
                kills += 1
        time.sleep(0.2)
    _finish(place, process)
    first = trained(read_study(place / "runs", "s"))[0]
    assert kills >= 3 and first.state == optuna.trial.TrialState.FAIL
    assert first.user_attrs["reason"].startswith("its process died 3 times in the same epoch")


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_checkpoint_damaged_after_the_driver_was_killed(place, damage):
    process, run = _start(place, "--front"), _history(place, 1).parent  # without early stopping after an epoch
    deadline = time.monotonic() + 900
    while len(checkpoints(run)) < 2:
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.01)
    _kill(process)
    seen, since = checkpoints(run), time.monotonic()
    while time.monotonic() - since < 15:  # the workers outlive their driver for seconds and may finish an epoch
        time.sleep(0.5)
        if checkpoints(run) != seen:
            seen, since = checkpoints(run), time.monotonic()
    newest = seen[0] / "state.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    _finish(place, _start(place, "--front", "--resume"))
    said = [line for line in (place / "log").read_text().splitlines() if " is damaged" in line]
    assert len(said) == 1 and "s-0001" in said[0] and "the one before is used" in said[0]


def test_a_full_disk_under_the_checkpoints_ends_the_search_in_a_sentence_and_resume_finishes_it(place):
    runs = place / "runs"
    with small_disk(runs / "train", kilobytes=2300) as disk:
        process = _start(place)
        assert process.wait(timeout=900) == 2, (place / "log").read_text()[-3000:]
        last = (place / "log").read_text().strip().splitlines()[-1]
        assert last.startswith(f"tune: the disk is full under {disk}/s-0000 ("), last
        (trial,) = [t for t in read_study(runs, "s").trials if not t.state.is_finished()]
        assert trial.state == optuna.trial.TrialState.WAITING and trial.user_attrs["reason"] in last
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        _finish(place, _start(place, "--resume"))


def test_mlflow_away_when_a_search_ends_is_one_sentence_after_the_report_and_resume_finishes_it(place, monkeypatch):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")  # nobody is there yet
    log = place / "log"
    assert _start(place).wait(timeout=900) == 2, log.read_text()[-3000:]
    lines = log.read_text().strip().splitlines()
    assert "Traceback" not in log.read_text() and (place / "runs" / "studies" / "s" / "report.html").is_file()
    (told,) = [line for line in lines if line.startswith("tune: MLflow does not answer as it should (")]
    assert "; when it is back, finish by: platform/tune.py" in told.replace("python ", "") and told.endswith(
        " --resume"
    )
    server = place / "server"
    server.mkdir()
    with mlflow_server(server, port):
        for _ in range(2):  # the second time there is nothing left to do
            _finish(place, _start(place, "--resume"))
            client = mlflow_client.connect(place / "runs").client
            (version,) = client.search_model_versions("name = 'ldseg'")
            assert client.get_model_version_by_alias("ldseg", "challenger").version == version.version == "1"
    assert "registered before: models:/ldseg/1" in log.read_text()


def test_a_ray_whose_gcs_is_killed_is_one_sentence_and_resume_goes_on(place):
    process, deadline = _start(place, "--front"), time.monotonic() + 900
    while not _history(place, 0).exists():
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.05)
    (gcs,) = below(process.pid, str(Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server").encode())
    os.kill(gcs, signal.SIGKILL)
    assert process.wait(timeout=120) == 2
    said = (place / "log").read_text()
    words = "Ray died under this program (its gcs_server was killed or crashed)"
    assert f"tune: {words}; the same command with --resume goes on" in said and "Traceback" not in said, said[-3000:]
    _finish(place, _start(place, "--front", "--resume"))
