"""One search in which everything breaks: a worker is killed, a trial diverges, one is too large, the disk fills up, a
checkpoint is damaged."""

import json
import logging
import os
import subprocess
import threading
from pathlib import Path

import pytest
import ray
import torch
from counting import FailureCounter
from optuna.trial import TrialState
from processes import kill_train_workers
from smalldisk import small_disk
from tiny import tiny_config

from ldseg.config import Config
from ldseg.files import DiskFullError
from ldseg.orchestration.search.search import best_state, run_log, search
from ldseg.orchestration.search.study import REASON, STANDS_FOR, Study, read_study, trained
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.run_log import read_json, read_lines
from ldseg.orchestration.tracking.shipper import Shipper
from ldseg.orchestration.training.export import load_state
from ldseg.orchestration.training.run import HISTORY, TrainRun
from ldseg.orchestration.training.trainer import fit
from ldseg.training.checkpoint import checkpoints
from ldseg.training.fit import TrainingState

EPOCHS = 3
SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 4}}
SPACE = {
    "optim.learning_rate": ("choice", [1e-3, 2e-3]),
    "size": ("options", {
        "small": {"model.image_widths": [8, 8, 16]},
        "large": {"model.image_widths": [8, 8, 1600]},
    }),
}
METRIC = ("val_nll", "min")
START = [
    {"optim.learning_rate": 1e-3, "size": "small"},
    {"optim.learning_rate": 1e-3, "size": "large"},
]
"""


def _study(phantoms, home, width=1600, **options):
    (home / "space.py").write_text(SPACE.replace("1600", str(width)))
    common = {"data": str(phantoms), "space": str(home / "space.py"), "epochs": EPOCHS, "seed": 1}
    return Study(name="s", home=str(home), **common | options)


def _epochs(study, number):
    path = Path(study.home) / "train" / study.run_name(number) / HISTORY
    return [int(json.loads(line)["epoch"]) for line in path.read_text().splitlines()]


def _points(study, number, metric="loss"):
    """Steps of a metric in MLflow, when everything has been sent."""
    tracker = mlflow_client.connect(Path(study.home))
    assert Shipper(tracker, mlflow_client.logs(Path(study.home))).flush() == 0
    runs = tracker.client.search_runs([tracker.experiment("search")])
    (run,) = [r for r in runs if r.info.run_name == study.run_name(number)]
    return run, sorted(m.step for m in tracker.client.get_metric_history(run.info.run_id, metric))


def _check_best(study, trials):
    """The best checkpoint scores what was logged."""
    state, lines = best_state(trials[0]), read_lines(run_log(study, trials[0].name))
    (logged,) = [line.metrics for line in lines if line.step == study.epochs]
    assert state.epoch == study.epochs
    assert state.history[-1]["val_nll"] == pytest.approx(logged["val_nll"], rel=1e-4)


@pytest.fixture(scope="module")
def killed(local_ray, phantoms, tmp_path_factory):
    """Trial 0 loses its worker in the middle, trial 1 asks for more memory than it may have, trial 2 is drawn."""
    study = _study(phantoms, tmp_path_factory.mktemp("killed"), trials=3, memory_gb=0.3, epochs=10)
    history, had = Path(study.home) / "train" / study.run_name(0) / HISTORY, []
    killer = threading.Thread(target=lambda: had.append(kill_train_workers(os.getpid(), history, 1)), daemon=True)
    killer.start()
    told = _Told()
    logging.getLogger("ldseg").addHandler(told)
    trials = search(study, say=None)
    logging.getLogger("ldseg").removeHandler(told)
    killer.join()
    return study, trials, had[0], told.lines


class _Told(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_a_train_worker_killed_in_mid_epoch_costs_one_epoch_at_most(killed):
    study, trials, had, told = killed
    assert had < study.epochs, "it was killed too late to show anything"
    epochs = _epochs(study, 0)
    assert epochs[:had] == list(range(1, had + 1)) and epochs[-1] == study.epochs
    assert len(epochs) <= study.epochs + 1, f"more than one epoch was trained again: {epochs}"
    (line,) = [line for line in told if "died" in line]
    assert line.startswith("s-0000: a process of the training died in epoch")
    run, steps = _points(study, 0)
    assert steps == list(range(1, study.epochs + 1)) and run.info.status == "FINISHED"
    assert not [t for t in trials if t.number == 0 and t.reason]
    _check_best(study, trials)


def test_a_trial_that_takes_too_much_memory_is_infeasible_and_the_search_goes_on(killed):
    study, trials, _, _ = killed
    (large,) = [t for t in trials if t.number == 1]
    assert "t allocate memory" in large.reason
    run, _ = _points(study, 1)
    assert run.info.status == "FAILED" and "t allocate memory" in str(
        read_json(run_log(study, large.name) / "end.json")
    )
    stored = read_study(Path(study.home), "s")
    assert [t.number for t in trained(stored)] == sorted(t.number for t in trials) and len(trials) == 3
    assert stored.trials[1].state == TrialState.FAIL
    (told,) = [t for t in stored.trials if t.user_attrs.get(STANDS_FOR) == 1]
    assert told.params == stored.trials[1].params and told.constraints == {"memory": 1.0}
    assert not stored.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def full(local_ray, phantoms, tmp_path_factory):
    """The disk has room for two checkpoints and not for a third; then there is room, but the newest is damaged."""
    home = tmp_path_factory.mktemp("full")
    study = _study(phantoms, home, width=24, trials=2)
    state = TrainingState.create(tiny_config(2, ("organ", "nodule", "lobe")))
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.save(home)
    kilobytes = round(2.6 * (home / "state.pt").stat().st_size / 1024)
    with small_disk(home / "train", kilobytes) as disk:
        with pytest.raises(DiskFullError) as raised:
            search(study, say=None)
        run = disk / study.run_name(0)
        facts = {
            "error": str(raised.value),
            "trials": read_study(home, "s").trials,
            "log": read_json(run_log(study, run.name) / "end.json"),
            "kept": [load_state(_described(study, run), ray.train.Checkpoint(str(p))).epoch for p in checkpoints(run)],
            "files": sorted(path.name for path in run.iterdir()),
        }
        _flip(checkpoints(run)[0] / "state.pt")
        subprocess.run(["mount", "-o", f"remount,size={50 * kilobytes}k", str(disk)], check=True)
        told = _Told()
        logging.getLogger("ldseg").addHandler(told)
        trials = search(study, resume=True, say=None)
        logging.getLogger("ldseg").removeHandler(told)
        facts |= {"epochs": _epochs(study, 0), "told": told.lines}
        _check_best(study, trials)
    return study, trials, facts


def _described(study, folder):
    config = tiny_config(2, ("organ", "nodule", "lobe")).to_dict()
    return TrainRun(name=folder.name, home=study.home, data=study.data, config=config)


@pytest.mark.slow
def test_a_full_disk_stops_the_search_with_a_reason_that_says_where(full):
    study, _, facts = full
    assert facts["error"].startswith("the disk is full under ") and "/train/s-0000 (" in facts["error"]
    assert [t.state for t in facts["trials"][:1]] == [TrialState.WAITING], "it is to go on, and doesn't run"
    assert facts["trials"][0].user_attrs[REASON] == facts["error"]
    assert facts["log"]["status"] == "FAILED" and facts["log"]["reason"] == facts["error"]


@pytest.mark.slow
def test_a_full_disk_leaves_whole_checkpoints_only(full):
    _, _, facts = full
    assert facts["kept"] == [2, 1]
    assert not [name for name in facts["files"] if name.endswith(".tmp")]


@pytest.mark.slow
def test_with_room_again_the_search_goes_on_from_the_newest_checkpoint_that_is_whole(full):
    study, trials, facts = full
    assert sorted(t.number for t in trials) == [0, 1] and not [t for t in trials if t.number == 0 and t.reason]
    (line,) = [line for line in facts["told"] if "damaged" in line]
    assert line.startswith("s-0000: ") and "its digest is another; the one before is used" in line
    again = facts["epochs"][facts["epochs"].index(2) + 1 :]
    assert again[-2:] == [2, 3], f"it went on from epoch 1: {facts['epochs']}"
    run, steps = _points(study, 0)
    assert steps == [1, 2, 3] and run.info.status == "FINISHED"


def test_an_error_of_the_training_itself_is_not_tried_again(local_ray, phantoms, tmp_path):
    values = tiny_config(2, ("organ", "nodule", "lobe")).to_dict()
    values["optim"] |= {"epochs": 2, "batch_size": 4, "learning_rate": 1e20}
    run = TrainRun(name="diverges", home=str(tmp_path), data=str(phantoms), config=Config.from_dict(values).to_dict())
    with pytest.raises(ray.train.TrainingFailedError, match="the loss became nan"):
        fit(run, [FailureCounter(str(tmp_path / "count"))])
    assert (tmp_path / "count").read_text() == "failed\n"
