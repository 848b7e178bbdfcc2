"""What a search survives: real processes, real signals. Minutes each, so apart from the others (`make test-faults`)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from ldseg.data.phantom import PhantomConfig, write_phantoms
from ldseg.orchestration import tracking
from ldseg.orchestration.study import read_study, trained

ROOT = Path(__file__).resolve().parents[2]
TRIALS, EPOCHS = 3, 4
pytestmark = pytest.mark.slow

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 4}}
SPACE = {"optim.learning_rate": ("loguniform", 1e-4, 1e-2)}
METRIC = ("val_nll", "min")
"""


@pytest.fixture
def place(tmp_path):
    write_phantoms(
        tmp_path / "data", PhantomConfig(dims=2, cases=20, raters=2, shape=(16, 16), fractions=(0.6, 0.2, 0.2))
    )
    (tmp_path / "space.py").write_text(SPACE)
    return tmp_path


def _start(place, *options):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
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
    return (place / "runs" / "studies" / "s.db").exists()


def _check(place):
    """Runs are trials, no point is missing or doubled, nothing is left running, the model loads."""
    stored = read_study(place / "runs", "s")
    found = trained(stored)
    assert [t.number for t in found] == list(range(TRIALS)), (place / "log").read_text()[-3000:]
    assert all(t.state.is_finished() for t in stored.trials)
    tracker = tracking.connect(place / "runs")
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
    cards = list((place / "runs" / "bundles").glob("*/card.json"))
    assert cards and json.loads(cards[0].read_text())["epochs"] == EPOCHS


def test_the_driver_killed_at_random_instants(place):
    chance, kills, deadline = random.Random(0), 0, time.monotonic() + 1500
    while True:
        process = _start(place, *(["--resume"] if _begun(place) else []))
        try:
            process.wait(timeout=chance.uniform(8, 60) if kills < 10 else 600)
        except subprocess.TimeoutExpired:
            _kill(process)
            kills += 1
            assert time.monotonic() < deadline, (place / "log").read_text()[-3000:]
            continue
        assert process.returncode == 0, (place / "log").read_text()[-3000:]
        break
    assert kills >= 1
    _check(place)
