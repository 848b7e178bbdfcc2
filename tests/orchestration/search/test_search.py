import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from ldseg import ROOT
from ldseg.config import ConfigError
from ldseg.orchestration.search.search import best_state, search, table
from ldseg.orchestration.search.study import Study
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.shipper import Shipper
from ldseg.orchestration.training import rerun

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 4}}
SPACE = {"optim.learning_rate": ("choice", [1e-3, 1e20])}
METRIC = ("val_nll", "min")
START = [{"optim.learning_rate": 1e20}, {"optim.learning_rate": 1e-3}]
"""


@pytest.fixture(scope="module")
def searched(local_ray, phantoms, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    space = home / "broken_rate.py"
    space.write_text(SPACE)
    study = Study(
        name="s", home=str(home), data=str(phantoms), space=str(space), trials=3, epochs=3, seed=1, cpus_per_worker=1
    )
    said: list[str] = []
    return study, search(study, say=said.append), said


def test_a_diverging_trial_fails_with_a_reason_everywhere_and_the_search_goes_on(searched):
    study, trials, _ = searched
    good, bad = [t for t in trials if not t.reason], [t for t in trials if t.reason]
    assert len(trials) == 3 and good and bad, [t.values for t in trials]
    assert all("the loss became nan" in t.reason and "lower optim.learning_rate" in t.reason for t in bad)
    assert trials[: len(good)] == good, "failed trials come last"
    assert "the loss became nan" in table(trials, "val_nll")
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{study.home}/studies/s.db")
    states = [t.state.name for t in stored.trials]
    assert states.count("COMPLETE") == len(good) and states.count("FAIL") == len(bad)


def test_mlflow_holds_one_parent_and_one_child_for_each_trial(searched):
    study, trials, _ = searched
    tracker = mlflow_client.connect(Path(study.home))
    assert Shipper(tracker, mlflow_client.logs(Path(study.home))).flush() == 0
    runs = tracker.client.search_runs([tracker.experiment("search")])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1 and len(runs) == 1 + len(trials)
    assert {r.data.tags.get("mlflow.parentRunId") for r in runs if r not in parents} == {parents[0].info.run_id}
    assert sorted(r.info.status for r in runs) == sorted(
        ["FINISHED"] + ["FAILED" if t.reason else "FINISHED" for t in trials]
    )


def test_one_training_is_scored_at_several_step_counts(searched):
    study, trials, _ = searched
    for name in ("val_energy_score", "val_nll"):
        assert {f"{name}_steps{n}" for n in (1, 2, 4, 8, 16)} <= trials[0].metrics.keys()
    assert best_state(trials[0]).config.sampler.num_sample_steps in (1, 2, 4, 8, 16)


def test_a_trial_of_two_workers_is_a_ray_train_run(local_ray, phantoms, tmp_path):
    (tmp_path / "space.py").write_text(SPACE.replace("1e20", "2e-3"))
    study = Study(
        name="two", home=str(tmp_path), data=str(phantoms), space=str(tmp_path / "space.py"), trials=1, epochs=2,
        workers=2, cpus_per_worker=0.5,
    )  # fmt: skip
    (trial,) = search(study, say=None)
    assert not trial.reason and trial.metrics["epoch"] == 2 and trial.score("val_nll") > 0
    assert best_state(trial).epoch == 2


def test_a_study_is_not_started_twice_nor_resumed_from_nothing(searched):
    study, _, _ = searched
    with pytest.raises(ConfigError, match="give --resume"):
        search(study)
    with pytest.raises(ConfigError, match="there is no study"):
        search(Study(**{**vars(study), "name": "other"}), resume=True)


def test_tune_says_in_one_sentence_what_is_wrong(phantoms, tmp_path):
    command = [sys.executable, str(ROOT / "platform" / "tune.py"), "--data", str(phantoms), "--runs", str(tmp_path)]
    for options, message in (
        (["--space", "nowhere"], "there is no search space 'nowhere'"),
        (["--space", "phantom2d", "--trials", "0"], "--trials must be at least 1"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_search_says_how_it_stands_after_each_trial(searched):
    _, trials, said = searched
    failed = sum(bool(trial.reason) for trial in trials)
    standing = [line for line in said if " of 3 done" in line]
    assert len(standing) == 3
    assert standing[-1].startswith(f"{3 - failed} of 3 done, 0 running, {failed} failed; best ")


def test_a_trial_can_be_trained_again_by_itself(searched):
    study, trials, _ = searched
    tracker = mlflow_client.connect(Path(study.home))
    runs = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment("search")])}
    plan, notes = rerun.planned(tracker.client, runs[trials[0].name].info.run_id, name="again", home=Path(study.home))
    assert plan.config == trials[0].run.config and plan.score_steps and not notes
