"""What version 0.1.0 has written is read by this one; make.py, beside this file, says how the archives were made."""

import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.config import Config, ConfigError
from ldseg.data.volume import read_volume
from ldseg.orchestration.promotion.champion import show_history, state
from ldseg.orchestration.promotion.journal import read_history
from ldseg.orchestration.search.search import read_trials, table
from ldseg.orchestration.search.spaces import load_space
from ldseg.orchestration.search.study import SETTINGS, Study, open_study, read_study, study_names
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import find_version, resolve_model
from ldseg.posterior.sampling import Posterior
from ldseg.training.checkpoint import checkpoints
from ldseg.training.fit import TrainingState
from serve.store import JobStore, NewCohort, sqlite_url

FILES = ROOT / "tests" / "earlier"
MADE_IN = "/opt/earlier"
PREDICTED_ON = np.random.default_rng(0).normal(size=(2, 1, 16, 16)).astype(np.float32)
HASHED = ("promotions.jsonl", "artifacts/search/*/artifacts/promotions/*")  # stay as they are, byte for byte


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(FILES / name) as archive:
        archive.extractall(folder)
    return folder


def moved(folder: Path) -> Path:
    """Everything in a folder as if it had been written there: addresses in databases and in texts are absolute."""
    hashed = {file for pattern in HASHED for file in (folder / "home").glob(pattern)}
    for file in (file for file in folder.rglob("*") if file.is_file() and file not in hashed):
        if file.suffix == ".db":
            _move_database(file, str(folder))
        elif MADE_IN.encode() in (content := file.read_bytes()) and b"\0" not in content:
            file.write_bytes(content.replace(MADE_IN.encode(), str(folder).encode()))
    return folder


def _move_database(file: Path, folder: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        for (table_name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table_name}")').fetchall():
                database.execute(
                    f'UPDATE "{table_name}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (MADE_IN, folder, MADE_IN),
                )
        database.commit()


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    return unpacked("bundle.zip", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def whole_home(tmp_path_factory):
    return moved(unpacked("home.zip", tmp_path_factory.mktemp("earlier")))


@pytest.fixture
def home(whole_home):
    """For tests that change nothing in it but what a reader may."""
    return whole_home / "home"


@pytest.fixture
def store(tmp_path):
    opened = JobStore(sqlite_url(unpacked("jobs.db.zip", tmp_path) / "jobs.db"))
    yield opened
    opened.close()


def test_a_bundle_has_the_same_digest_and_every_part_of_its_calibration(bundle_folder):
    bundle, answer = load_bundle(bundle_folder), json.loads((bundle_folder / "answer.json").read_text())
    assert bundle.identity == {"digest": answer["digest"], "calibration": answer["calibration"]}
    assert bundle.config.data.structures == ("organ", "nodule", "lobe") and bundle.card["name"] == "earlier"
    assert bundle.calibration.risk_control is not None and bundle.calibration.familiarity is not None


def test_a_bundle_gives_the_same_numbers_and_the_same_maps(bundle_folder):
    volume = read_volume(bundle_folder / "image.nii.gz", case="noise", spatial_dims=3)
    summary = Posterior(load_bundle(bundle_folder), precision="float32").segment(volume, samples=4, seed=0)
    then = json.loads((bundle_folder / "answer.json").read_text())["numbers"]
    now = summary.numbers()
    assert list(now) == list(then)
    for name, value in then.items():
        if name != "seconds":  # another processor adds in another order, and a voxel may fall elsewhere
            assert now[name] == (value if isinstance(value, str) else pytest.approx(value, rel=5e-3, abs=1e-3)), name
    with np.load(bundle_folder / "answer.npz") as maps:
        assert np.mean(summary.label != maps["label"]) < 2e-3
        assert np.mean(summary.cautious != maps["cautious"]) < 2e-3
        np.testing.assert_allclose(summary.predictive_entropy, maps["entropy"], atol=1e-3)


def test_a_job_store_answers_as_it_did(store):
    upload, silent, late, done = store.page(None, None, 9)
    assert [cohort.state for cohort in (upload, silent, late, done)] == ["queued", "running", "cancelled", "done"]
    assert done.counts == {"queued": 0, "running": 0, "done": 1, "failed": 1, "cancelled": 0}
    assert (done.owner, done.steps, done.seed, done.models) == ("clinic", 3, 7, ("models:/tiny@champion",))
    assert (silent.plan.min, silent.plan.max, silent.plan.tolerance, silent.priority) == (4, 16, 0.02, 5)
    assert upload.upload and upload.owner == "ward" and not store.cases(upload.id, owner="clinic").cases
    one, two = store.every_case(done.id, owner="clinic", results=True)
    assert one.result["numbers"]["case"] == "noise" and one.model_digest == one.result["numbers"]["model_digest"]
    assert one.agreement == one.result["numbers"]["agreement"] and len(one.result["volumes"]["organ"]) == 4
    assert (two.state, two.reason, two.error) == ("failed", "unreadable", "two: the file is cut off; copy it again")
    queue = store.queue()
    assert (queue.queued, queue.uploads, queue.running, queue.failed) == (2, 1, {"worker": 1}, {"unreadable": 1})
    events = store.events(done.id, owner=None)
    assert [event.number for event in events] == list(range(1, done.events + 1))
    assert [(e.name, e.state) for e in events][-2:] == [("two", "failed"), (None, "done")]


def test_a_key_of_then_still_names_its_cohort(store):
    (*_, done) = store.page(None, None, 9)
    with closing(sqlite3.connect(store.database.url.database)) as database:
        assert database.execute("SELECT key, body_digest FROM job_cohorts WHERE key NOT NULL").fetchall() == [
            ("k", "sha256:b")
        ]
    again = NewCohort(owner="clinic", plan=done.plan, key="k", body_digest="sha256:b")
    assert store.add(again, [("one", "/data/one.nii.gz")]) == (done.id, False)


def test_the_case_of_a_worker_that_fell_silent_is_taken_up_and_the_store_goes_on(store):
    silent = store.page("clinic", None, 9)[0]
    order, attempts = [], []
    while (work := store.claim("new", 60)) is not None:
        order.append(work.name)
        attempts.append(work.attempts)
        assert store.finish(work, "new", "done", result={"numbers": {"agreement": 0.5}})
    assert order == ["upload", "silent", "next"] and attempts == [1, 2, 1]
    assert store.cohort(silent.id, None).state == "done" and store.unfinished("clinic", upload=True) == 0
    assert store.heartbeat("worker", [(silent.id, "silent")], 60).lost == ((silent.id, "silent"),)
    reasons = [e.reason for e in store.events(silent.id, owner=None) if e.name == "silent"]
    assert reasons.count("lease-expired") == 1


def stored_study(folder: Path, stored: str, **changed) -> Study:
    """The study as its own settings tell it."""
    settings = read_study(folder, stored).user_attrs[SETTINGS]
    fields = {key: value for key, value in settings.items() if key in Study.__dataclass_fields__}
    return Study(**fields | {"trials": 2} | changed)


def test_a_study_that_ended_is_read_and_so_is_the_one_that_was_killed(home):
    assert study_names(home) == ["ended", "killed"]
    for name in ("ended", "killed"):
        study = stored_study(home, name)
        space = load_space(study.space)
        trials = read_trials(study, space, read_study(home, name))
        best = trials[0]
        assert [trial.number for trial in trials] == [0, 1] and best.steps and not best.reason
        assert best.score("val_nll") == best.metrics[f"val_nll_steps{best.steps}"]
        assert 1e-4 < best.values["optim.learning_rate"] < 1e-2
        assert best.name in table(trials, space.metric).splitlines()[1]
        other = trials[1]
        assert (other.stopped, other.reason) == ((True, "") if name == "ended" else (False, "not finished"))


def test_the_checkpoint_of_a_killed_training_is_read(home):
    study = stored_study(home, "killed")
    trials = read_trials(study, load_space(study.space), read_study(home, "killed"))
    (killed,) = (trial for trial in trials if trial.reason)
    lines = [json.loads(line) for line in (killed.run.folder / "history.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines]
    training = TrainingState.create(Config.from_dict(killed.run.config))
    (folder,) = checkpoints(killed.run.folder)
    training.load(folder)
    assert 0 < training.epoch == epochs[-1] < 10 and training.updates > 0
    assert [line["val_nll"] for line in training.history] == [line["val_nll"] for line in lines]


def tune(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """This version's search, asked for what the killed one was."""
    command = [sys.executable, ROOT / "platform" / "tune.py", "--data", folder / "phantoms", "--name", "killed"]
    command += ["--space", folder / "space.py", "--runs", folder / "home", "--register", "tiny", "--samples", 2]
    return subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was_and_nothing_is_told_twice(tmp_path):
    home = moved(unpacked("home.zip", tmp_path)) / "home"
    done = tune(tmp_path, "--resume", "--front", "--epochs", 10, "--trials", 3)
    assert done.returncode == 0, done.stderr
    history = (home / "train" / "killed-0001" / "history.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in history]
    assert epochs == list(range(1, 11)), "it goes on after the epochs that it had"
    stored = read_study(home, "killed")
    assert all(trial.state.is_finished() for trial in stored.trials) and len(stored.trials) == 3
    tracker = mlflow_client.connect(home)
    assert int(find_version(tracker, "models:/tiny@challenger").version) == 2
    assert int(find_version(tracker, "models:/tiny@champion").version) == 1
    runs = tracker.client.search_runs([tracker.experiment("search")])
    assert Counter(run.info.run_name for run in runs) == Counter(
        ["ended", "ended-0000", "ended-0001", "killed", "killed-0000", "killed-0001", "killed-0002"]
    )
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    for run in runs:
        steps = [metric.step for metric in tracker.client.get_metric_history(run.info.run_id, "loss")]
        assert len(steps) == len(set(steps)), f"{run.info.run_name} has points twice"


def test_a_killed_study_does_not_go_on_as_another(home):
    study = stored_study(home, "killed", epochs=3)
    with pytest.raises(ConfigError, match=r"was begun with another epochs \(10\)"):
        open_study(study, load_space(study.space), resume=True)


def test_an_ended_study_is_where_a_new_one_starts(home, tmp_path):
    shutil.copytree(home / "studies", tmp_path / "studies")
    study = stored_study(home, "ended", name="new", home=str(tmp_path), warm_start="ended")
    stored = open_study(study, load_space(study.space), resume=False)
    (waiting,) = stored.get_trials(states=(optuna.trial.TrialState.WAITING,))
    assert waiting.system_attrs["fixed_params"] == read_study(tmp_path, "ended").trials[0].params


def test_a_registered_champion_is_found_verified_and_predicts_the_same(home):
    tracker = mlflow_client.connect(home)
    version = find_version(tracker, "models:/tiny@champion")
    folder = resolve_model("models:/tiny@champion", home)
    bundle = load_bundle(folder)
    assert bundle.digest == version.tags["digest"] and folder.name == bundle.digest.removeprefix("sha256:")
    assert float(version.tags["test_cases"]) == 4 and float(version.tags["test_dice"]) > 0
    described = next((home / "artifacts").rglob("MLmodel"))
    assert "loader_module: ldseg.orchestration.pyfunc" in described.read_text()
    predicted = mlflow.pyfunc.load_model(str(described.parent)).predict(PREDICTED_ON)
    np.testing.assert_allclose(predicted, np.load(home.parent / "predicted.npy"), atol=1e-4)


def test_the_chain_of_promotions_holds_and_a_changed_line_is_still_found(home, tmp_path):
    tracker = mlflow_client.connect(home)
    text, intact = show_history(tracker)
    assert intact and text.endswith("the chain of 2 records holds"), text
    refused, promoted = read_history(home).of("tiny")
    assert (refused["action"], refused["reason"]) == ("refuse", "too early")
    assert (promoted["action"], promoted["version"], promoted["before"]) == ("promote", 1, None)
    found = state(tracker, "tiny")
    assert found.champion == 1 and not found.late and found.problem == ""
    (tmp_path / "promotions.jsonl").write_bytes(
        (home / "promotions.jsonl").read_bytes().replace(b"too early", b"too late!")
    )
    assert read_history(tmp_path).broken == "line 1 does not match its own hash"


def test_the_archives_are_small():
    assert sum(file.stat().st_size for file in FILES.glob("*.zip")) < 2**20
