import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.commands.train import describe, parse
from ldseg.config import ConfigError
from ldseg.data.content import content_digests
from ldseg.orchestration.search.spaces import with_cohort
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.training.export import export
from ldseg.orchestration.training.failures import is_memory, reason_of
from ldseg.orchestration.training.register import evidence
from ldseg.orchestration.training.run import HISTORY, SETTINGS, TrainRun, check_same, read_data
from ldseg.orchestration.training.trainer import train_to_end


def _run(phantoms, home, name, **options):
    values = tiny_config(2, ("organ", "nodule", "lobe")).to_dict()
    values["optim"] |= {"epochs": 2, "batch_size": 4, **options.pop("optim", {})}
    return TrainRun(name=name, home=str(home), data=str(phantoms), config=values, **options)


def test_two_workers_train_one_model_and_the_bundle_says_where_it_comes_from(local_ray, phantoms, tmp_path):
    run = _run(phantoms, tmp_path, "two", workers=2, cpus_per_worker=0.5, optim={"batch_size": 2, "accumulate": 2})
    seen = []
    state = train_to_end(run, seen.append)
    assert state.epoch == 2 and state.updates == 4  # 12 cases: 6 each, an update of two batches and one of the third
    assert [epoch["epoch"] for epoch in seen] == [1, 2]
    assert {"loss", "val_dice", "val_autoencoder_dice", "val_latent_std"} <= seen[-1].keys()
    bundle = load_bundle(export(run, state, "the command"))
    cohort = read_data(run)
    assert bundle.card["split"]["test"] == [c.name for c in cohort.split("test")]
    assert bundle.card["content"] == content_digests(cohort.cases, bundle.config.data)
    assert bundle.card["command"] == "the command" and bundle.card["epochs"] == 2


def test_the_registry_is_told_the_proper_scores_too():
    told = ("dice", "energy_score", "sample_distance", "ged_unbiased", "organ_volume_ml_crps", "nodule_volume_ml_crps")
    silent = ("organ_volume_ml_p50", "dice_organ", "organ_volume_rank", "mean_entropy")
    summary = {"metrics": {name: {"mean": 0.5, "sd": 0.1} for name in (*told, *silent)}, "labelled": 3}
    assert evidence(summary) == {f"test_{name}": 0.5 for name in told} | {"test_cases": 3.0}


def test_two_workers_train_the_control_without_diffusion(local_ray, phantoms, tmp_path):
    run = _run(phantoms, tmp_path, "control", workers=2, cpus_per_worker=0.5)
    run.config["loss"]["deterministic"] = True  # two of the four networks get no gradient
    assert train_to_end(run).updates == 2


def test_a_run_goes_on_by_name_and_other_settings_under_its_name_are_refused(local_ray, phantoms, tmp_path):
    first = train_to_end(_run(phantoms, tmp_path, "again"))
    more = train_to_end(_run(phantoms, tmp_path, "again", optim={"epochs": 3}))
    assert (first.epoch, more.epoch) == (2, 3) and more.updates > first.updates
    assert more.history[:2] == first.history
    with pytest.raises(
        ConfigError, match=r"exists with another configuration \(optim.learning_rate 0.001 and not 0.01\)"
    ):
        train_to_end(_run(phantoms, tmp_path, "again", optim={"learning_rate": 0.01}))


def test_a_setting_that_an_earlier_version_did_not_have_is_its_default(phantoms, tmp_path):
    run = _run(phantoms, tmp_path, "earlier")
    check_same(run)
    stored = json.loads((run.folder / SETTINGS).read_text())
    del stored["sampler.noise_scale"]
    (run.folder / SETTINGS).write_text(json.dumps(stored))
    check_same(run)  # which writes it whole again
    del stored["sampler.schedule"]
    (run.folder / SETTINGS).write_text(json.dumps(stored))
    run.config["sampler"]["schedule"] = "quadratic"
    with pytest.raises(ConfigError, match=r"\(sampler.schedule even and not quadratic\)"):
        check_same(run)


def test_a_name_that_is_a_path_is_refused(phantoms, tmp_path):
    with pytest.raises(ConfigError, match="letters, digits"):
        _run(phantoms, tmp_path, "../elsewhere")


def test_labels_come_from_the_cohort_unless_the_configuration_names_its_own(phantoms, tmp_path):
    cohort = read_data(_run(phantoms, tmp_path, "x"))
    config = with_cohort(
        {"data": {"spatial_dims": 2, "shape": [16, 16]}, "model": tiny_config(2).to_dict()["model"]}, cohort
    )
    assert config.data.structures == ("organ", "nodule", "lobe") and config.data.label_values == (0, 1, 2, 3)


def _command(phantoms, home, *more):
    config = home / "tiny.json"
    home.mkdir(exist_ok=True)
    values = {k: v for k, v in tiny_config(2, ("organ", "nodule", "lobe")).to_dict().items() if k != "optim"}
    config.write_text(json.dumps(values))
    program = [sys.executable, str(ROOT / "platform" / "train.py"), "--data", str(phantoms), "--config", str(config)]
    return [*program, "--runs", str(home), "--name", "killed", *more]


def test_a_driver_killed_in_the_middle_goes_on_from_its_last_epoch_as_one_mlflow_run(phantoms, tmp_path):
    home = tmp_path / "home"
    command = _command(phantoms, home, "--epochs", "40", "--set", "optim.batch_size=4")
    history = home / "train" / "killed" / HISTORY
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline and not (history.exists() and len(history.read_text().splitlines()) >= 4):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    epochs = [json.loads(line)["epoch"] for line in history.read_text().splitlines()]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    after = [json.loads(line)["epoch"] for line in history.read_text().splitlines()]
    assert after[len(epochs)] > 1, "it started again from nothing"
    assert after[-1] == 40 and load_bundle(home / "bundles" / "killed").card["epochs"] == 40
    tracker = mlflow_client.connect(home)
    runs = tracker.client.search_runs([tracker.experiment("train")])
    assert [r.info.status for r in runs] == ["FINISHED"]


def test_a_users_mistake_is_one_sentence_and_exit_status_2(phantoms, tmp_path):
    command = _command(phantoms, tmp_path / "home", "--set", "optim.learning_rat=1")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "did you mean 'optim.learning_rate'" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_what_a_run_starts_from_gives_its_configuration_and_what_does_not_fit_is_told_at_once(phantoms, tmp_path):
    config = tiny_config(2, ("organ", "nodule", "lobe"))
    bundle = random_bundle(tmp_path / "bundle", config)
    options = parse(["--data", str(phantoms), "--start-from", str(bundle.path), "--name", "x", "--runs", str(tmp_path)])
    assert describe(options).config == config.to_dict()
    command = [sys.executable, str(ROOT / "platform" / "train.py"), "--data", str(phantoms), "--name", "x"]
    command += ["--start-from", str(bundle.path), "--set", "model.latent_channels=4", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and not (tmp_path / "train" / "x").exists()
    assert f"the weights of {bundle.path} don't fit: model.latent_channels 4 and not 2; " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_reason_of_a_failure_is_one_telling_sentence():
    from ray.train import WorkerGroupError

    assert reason_of(MemoryError("std::bad_alloc")) == "out of memory: std::bad_alloc"
    assert is_memory(reason_of(MemoryError()))
    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes\nframe #0: somewhere")
    assert reason_of(allocator).endswith("you tried 9 bytes")
    complaint = RuntimeError("connection closed by peer")
    assert reason_of(WorkerGroupError("", {0: complaint, 1: allocator})).endswith("you tried 9 bytes")
    assert reason_of(WorkerGroupError("", {0: complaint, 1: KeyError("x")})) == "connection closed by peer"
