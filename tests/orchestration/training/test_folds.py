"""K trainings that make one model: cut, trained side by side, killed and resumed, scored and calibrated out of fold."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import tiny_config

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.calibration.familiarity import MembersFamiliarity
from ldseg.config import ConfigError
from ldseg.data.cohort import CohortError, read_cohort
from ldseg.evaluation.calibrate import Promises
from ldseg.evaluation.out_of_fold import Fold, calibrate_folds, evaluate_folds
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.run_log import RunLog, read_json
from ldseg.orchestration.training.folds import FoldError, finish, fold_runs, train_folds
from ldseg.orchestration.training.run import HISTORY, TrainRun, check_same, read_data
from ldseg.orchestration.training.worker import epochs
from ldseg.posterior.draws import Draws

STRUCTURES = ("organ", "nodule", "lobe")


def _run(phantoms, home, name, **optim):
    values = tiny_config(2, STRUCTURES).to_dict()
    values["optim"] |= {"epochs": 2, "batch_size": 4, **optim}
    folder = mlflow_client.logs(home) / "train" / name
    RunLog.create(folder, "train", name)
    return TrainRun(name=name, home=str(home), data=str(phantoms), config=values, folds=3, log=str(folder))


def test_folds_hold_each_case_of_training_and_validation_once_and_no_test_case(phantoms):
    cohort = read_cohort(phantoms)
    everything = {c.name for c in cohort.cases}
    test = {c.name for c in cohort.split("test")}
    held = []
    for number in range(3):
        fold = cohort.fold(number, 3)
        assert {c.name for c in fold.split("test")} == test
        own = {c.name for c in fold.split("validation")}
        assert {c.name for c in fold.split("train")} == everything - test - own
        held.append(own)
    assert set().union(*held) == everything - test and sum(map(len, held)) == len(everything - test)
    assert max(map(len, held)) - min(map(len, held)) <= 1
    assert cohort.fold(0, 3) == read_cohort(phantoms).fold(0, 3) != cohort.fold(0, 3, seed=1)
    with pytest.raises(CohortError, match="16 patients or cases to train with, too few for 17 folds"):
        cohort.fold(0, 17)


def test_the_cases_of_a_patient_stay_together(phantoms):
    cohort = read_cohort(phantoms)
    cases = tuple(dataclasses.replace(c, patient=f"p{n // 3}") for n, c in enumerate(cohort.cases))
    cohort = dataclasses.replace(cohort, cases=cases)
    for number in range(3):
        fold = cohort.fold(number, 3)
        held, trained = ({c.patient for c in fold.split(name)} for name in ("validation", "train"))
        assert held and not held & trained


def test_a_number_of_folds_that_means_nothing_is_refused(phantoms, tmp_path):
    run = _run(phantoms, tmp_path, "x")
    for bad in ({"folds": 1}, {"folds": -2}, {"fold": 3}, {"folds": 0, "fold": 0}):
        with pytest.raises(ConfigError, match="folds must be 2 or more"):
            dataclasses.replace(run, **bad)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """Three folds, trained in this process, and the bundle of their members."""
    run = _run(phantoms, tmp_path_factory.mktemp("home"), "whole")
    runs = fold_runs(run)
    for one in runs:
        assert [epoch["epoch"] for epoch, _ in epochs(one, device="cpu")] == [1, 2]
    path = finish(run, runs, "the command", samples=2, half=False, minutes=0.0)
    return run, runs, load_bundle(path)


def test_three_folds_become_one_calibrated_bundle_that_says_which_member_lacks_which_case(trained):
    run, runs, bundle = trained
    assert len({member.digest for member in bundle.members}) == 3
    split, cohort = bundle.card["split"], read_data(run)
    assert set(split["train"]) == {c.name for c in cohort.cases if c.split != "test"} and split["validation"] == []
    assert split["test"] == [c.name for c in cohort.split("test")]
    for one, member, held in zip(runs, bundle.members, bundle.card["folds"], strict=True):
        assert held == [c.name for c in read_data(one).split("validation")] == member.card["split"]["validation"]
        assert not set(held) & set(member.card["split"]["train"])
    intervals = bundle.calibration.intervals
    assert (intervals.cases, intervals.samples, intervals.confidence) == (16, 6, 0.0)
    assert [len(fold) for fold in intervals.scores[0]] == [len(held) for held in bundle.card["folds"]]
    assert isinstance(bundle.calibration.familiarity, MembersFamiliarity)
    assert len(bundle.calibration.familiarity.distances) == 16


def test_each_case_is_predicted_by_the_member_that_has_not_seen_it(trained):
    run, _, bundle = trained
    folder = run.folder / "out-of-fold"
    rows = pq.read_table(folder / "cases.parquet").to_pylist()
    expected = {case: fold for fold, held in enumerate(bundle.card["folds"]) for case in held}
    assert {row["case"]: row["fold"] for row in rows} == expected and len(rows) == 16
    for row in rows:
        assert row["samples"] == 2 and row["model_digest"] == bundle.members[row["fold"]].digest
        assert list((folder / "maps" / row["case"]).glob("*_dseg.nii.gz"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model_digest"] == bundle.digest and "fold" not in summary["metrics"]
    log = [json.loads(line)["metrics"] for line in (Path(run.log) / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["out_of_fold_dice"] == pytest.approx(summary["metrics"]["dice"]["mean"])


def test_each_fold_is_a_run_of_its_own_below_the_whole(trained):
    run, runs, _ = trained
    for one in runs:
        info = RunLog(Path(one.log)).info
        assert (info.parent, info.tags["fold"]) == (run.name, str(one.fold))


def test_a_training_starts_from_a_member_and_not_from_the_whole(trained, phantoms, tmp_path):
    bundle = trained[2]
    run = dataclasses.replace(_run(phantoms, tmp_path, "more"), folds=0, start_from=str(bundle.path))
    with pytest.raises(ConfigError, match=r"whole has several members; start from one of them, such as .*members/0"):
        check_same(run)
    check_same(dataclasses.replace(run, start_from=str(bundle.path / "members" / "0")))


def test_a_member_that_knows_a_case_of_its_fold_is_refused_and_so_is_what_folds_can_not_promise(trained, phantoms):
    _, runs, bundle = trained
    folds = [Fold(read_data(one).split("validation")) for one in runs]
    with pytest.raises(ValueError, match=r"whole.members.0 was trained on phantom2d_\d+, a case of its fold"):
        calibrate_folds(bundle, [folds[1], folds[0], folds[2]], Draws(3))
    with pytest.raises(ValueError, match="cautious masks can't be calibrated from folds"):
        calibrate_folds(bundle, folds, Draws(3), promises=Promises(missed=0.1))
    with pytest.raises(ValueError, match="4 samples are not shared evenly by 3 members"):
        evaluate_folds(bundle, folds, Draws(4))
    with pytest.raises(ValueError, match="take 29 calibration cases and there are 16"):
        calibrate_folds(bundle, folds, Draws(3), promises=Promises(confidence=0.95))


@pytest.mark.slow
def test_a_fold_that_fails_is_named_with_the_reason_and_its_run_has_failed(local_ray, phantoms, tmp_path):
    run = _run(phantoms, tmp_path, "steep", learning_rate=1e30)
    runs = fold_runs(run)
    with pytest.raises(
        FoldError, match=r"the training steep-fold-\d failed \(.*the loss became.*\).*same command again"
    ):
        train_folds(runs, lambda fold, epoch: None, {"trial_slot": 0.1})
    ends = [read_json(Path(one.log) / "end.json") for one in runs]
    assert any(end.get("status") == "FAILED" and "the loss became" in end["reason"] for end in ends)
    with pytest.raises(ConfigError, match=r"exists with another configuration \(folds 3 and not 4\)"):
        fold_runs(dataclasses.replace(run, folds=4))


def _command(phantoms, home, *more):
    home.mkdir(exist_ok=True)
    config = home / "tiny.json"
    values = {k: v for k, v in tiny_config(2, STRUCTURES).to_dict().items() if k != "optim"}
    config.write_text(json.dumps(values))
    program = [sys.executable, str(ROOT / "platform" / "train.py"), "--data", str(phantoms), "--config", str(config)]
    optim = ["--epochs", "15", "--set", "optim.batch_size=4"]
    return [*program, "--runs", str(home), "--name", "whole", "--folds", "3", "--samples", "2", *optim, *more]


def _epochs(home):
    """Lines of each fold's history."""
    return {p.parent.name: len(p.read_text().splitlines()) for p in sorted((home / "train").glob(f"*/{HISTORY}"))}


@pytest.mark.slow
def test_folds_killed_twice_go_on_and_make_the_same_model_as_unbroken_ones(phantoms, tmp_path):
    """By the programs: the same digests, one registered version, one parent run with a child for each fold."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command, lines = _command(phantoms, broken, "--register", "tiny"), 0
    for _ in range(2):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline and sum(_epochs(broken).values()) < lines + 4:
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = sum(_epochs(broken).values())
        assert lines < 45, "it was no longer training"
    for home, given in ((broken, command), (whole, _command(phantoms, whole))):
        done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "bundle of 3 members" in done.stdout, home
    one, other = (load_bundle(home / "bundles" / "whole") for home in (broken, whole))
    assert [m.digest for m in one.members] == [m.digest for m in other.members]
    assert one.identity == other.identity and one.card["epochs"] == [15, 15, 15]
    tracker = mlflow_client.connect(broken)
    runs = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment("train")])}
    assert sorted(runs) == ["whole", "whole-fold-0", "whole-fold-1", "whole-fold-2"]
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    parent = runs["whole"].info.run_id
    assert all(runs[f"whole-fold-{k}"].data.tags["mlflow.parentRunId"] == parent for k in range(3))
    version = tracker.client.get_model_version("tiny", "1")
    assert {k: version.tags[k] for k in one.identity} == one.identity
    gates = tmp_path / "gates.toml"
    gates.write_text("[floors]\ndice = 0.0\nworst_decile_dice = 0.0\nstructure_dice = 0.0\n")
    promote = [sys.executable, str(ROOT / "platform" / "promote.py"), "--name", "tiny", "--version", "1"]
    done = subprocess.run(
        [*promote, "--runs", str(broken), "--gates", str(gates)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tracker.client.get_model_version_by_alias("tiny", "champion").version == 1
