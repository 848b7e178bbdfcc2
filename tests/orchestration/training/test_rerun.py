import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from tiny import tiny_config

from ldseg import ROOT
from ldseg.config import ConfigError
from ldseg.data.content import data_digest
from ldseg.orchestration.tracking import mlflow_client, provenance
from ldseg.orchestration.training import rerun
from ldseg.orchestration.training.run import TrainRun


def _train(home, *options):
    command = [sys.executable, str(ROOT / "platform" / "train.py"), "--runs", str(home), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """A home with one finished run, "first", and its id in MLflow."""
    home, data = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("data") / "phantoms"
    shutil.copytree(phantoms, data)
    values = {k: v for k, v in tiny_config(2, ("organ", "nodule", "lobe")).to_dict().items() if k != "optim"}
    (home / "tiny.json").write_text(json.dumps(values))
    options = ["--data", str(data), "--config", str(home / "tiny.json"), "--name", "first", "--epochs", "2"]
    done = _train(home, *options, "--set", "optim.batch_size=4", "--set", "optim.seed=7", "--split-seed", "3")
    assert done.returncode == 0, done.stderr[-2000:]
    tracker = mlflow_client.connect(home)
    (run,) = tracker.client.search_runs([tracker.experiment("train")])
    return home, data, run


def test_a_run_says_what_it_was_made_of(trained):
    home, data, run = trained
    tags = run.data.tags
    assert {k: tags[k] for k in provenance.surroundings()} == provenance.surroundings()
    digests = provenance.read_digests(home / "train" / "first")
    assert len(digests) == 20 and tags[provenance.DATA] == data_digest(digests)
    plan = json.loads(tags[provenance.PLAN])
    assert (plan["config"]["optim"]["seed"], plan["split_seed"], plan["data"]) == (7, 3, str(data))


def test_from_run_trains_the_same_weights_again(trained):
    home, _, run = trained
    done = _train(home, "--from-run", run.info.run_id, "--name", "second")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (next(iter((home / "bundles" / n).glob("*.safetensors"))).read_bytes() for n in ("first", "second"))
    assert first == second
    assert "note:" not in done.stdout, "nothing has changed"


def test_other_data_are_refused_with_the_case_that_differs_and_other_packages_are_told(trained, tmp_path, monkeypatch):
    home, data, run = trained
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    client = mlflow_client.connect(home).client
    monkeypatch.setattr(provenance, "lock", lambda: "sha256:other")
    plan, notes = rerun.planned(client, run.info.run_id, name="third", home=home, data=str(moved))
    assert plan.data == str(moved) and plan.name == "third"
    assert notes.startswith("note: the installed packages are not as then") and len(notes.splitlines()) == 1
    image = sorted((moved / "imagesTr").iterdir())[4]
    shutil.copy(sorted((moved / "imagesTr").iterdir())[5], image)
    with pytest.raises(ConfigError, match=f"not those of the run .*, the case {image.name.split('.')[0]} for one"):
        rerun.planned(client, run.info.run_id, name="third", home=home, data=str(moved))


def test_runs_that_are_unknown_or_say_nothing_are_named(trained, tmp_path):
    home, _, _ = trained
    tracker = mlflow_client.connect(home)
    with pytest.raises(ConfigError, match="there is no run 0123"):
        rerun.planned(tracker.client, "0123", name="x", home=home)
    silent = tracker.client.create_run(tracker.experiment("train"))
    with pytest.raises(ConfigError, match="did not log what it was made of"):
        rerun.planned(tracker.client, silent.info.run_id, name="x", home=home)
    tracker.client.set_tag(silent.info.run_id, provenance.PLAN, '{"data": "d", "wings": 2}')
    with pytest.raises(ConfigError, match="another version of this program: its wings"):
        rerun.planned(tracker.client, silent.info.run_id, name="x", home=home)


def test_a_label_that_changes_changes_the_digest_and_another_name_of_the_file_does_not(phantoms, tmp_path):
    plan = TrainRun(name="x", home=str(tmp_path), data=str(phantoms), config=tiny_config(2).to_dict())
    plan = dataclasses.replace(plan, config=plan.config | {"data": plan.config["data"] | _structures()})
    before = rerun.digests(plan)
    assert before == rerun.digests(plan) and len(set(before.values())) == len(before)
    copy = tmp_path / "copy"
    shutil.copytree(phantoms, copy)
    labels = sorted((copy / "labelsTr").iterdir())
    shutil.copy(labels[-1], labels[0])
    after = rerun.digests(dataclasses.replace(plan, data=str(copy)))
    assert len([name for name in before if before[name] != after[name]]) == 1


def _structures():
    return {"label_values": [0, 1, 2, 3], "structures": ["organ", "nodule", "lobe"]}
