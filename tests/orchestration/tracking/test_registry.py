import os

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from registered import begin, scores
from tiny import random_bundle, some_calibration, tiny_config

from ldseg.bundle import load_bundle, save_members
from ldseg.calibration.file import save_calibration
from ldseg.orchestration.promotion.evidence import recorded
from ldseg.orchestration.pyfunc import MeanProbability
from ldseg.orchestration.tracking import mlflow_client, provenance
from ldseg.orchestration.tracking.registry import (
    RegistryError,
    challenge,
    quiet_mlflow,
    register_bundle,
    resolve_model,
)

GOOD = {"test_dice": 0.9, "test_energy_score": 0.1, "test_cases": 5.0}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return mlflow_client.connect(tmp_path_factory.mktemp("home"))


def _register(tracker, tmp_path, name, seed=0):
    bundle = random_bundle(tmp_path / f"bundle{seed}", tiny_config(2), seed=seed)
    run = begin(tracker, f"{name}-{seed}")
    version = register_bundle(tracker, bundle.path, name, run_id=run, metrics=GOOD)
    tracker.client.set_terminated(run)
    return bundle, version


def test_a_registered_bundle_comes_back_by_version_and_alias_without_a_pickle(tracker, tmp_path):
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    bundle, version = _register(tracker, tmp_path, "roundtrip")
    found = resolve_model(f"models:/roundtrip/{version}", tracker.home)
    assert (found / "weights.safetensors").read_bytes() == (bundle.path / "weights.safetensors").read_bytes()
    tracker.client.set_registered_model_alias("roundtrip", "champion", str(version))
    assert resolve_model("models:/roundtrip@champion", tracker.home) == found


def test_a_calibration_travels_with_its_version_also_where_the_bare_model_is_kept(tracker, tmp_path):
    bundle, bare = _register(tracker, tmp_path, "calibrated", seed=12)
    assert load_bundle(resolve_model(f"models:/calibrated/{bare}", tracker.home)).calibration is None
    calibration = some_calibration(bundle)
    save_calibration(bundle.path, calibration)
    run = begin(tracker, "calibrated")
    version = register_bundle(tracker, bundle.path, "calibrated", run_id=run, metrics=GOOD)
    tracker.client.set_terminated(run)
    assert load_bundle(resolve_model(f"models:/calibrated/{version}", tracker.home)).calibration == calibration
    assert load_bundle(resolve_model(f"models:/calibrated/{bare}", tracker.home)).calibration is None


def test_a_model_of_several_members_is_one_version(tracker, tmp_path):
    plain = [random_bundle(tmp_path / f"fold{seed}", tiny_config(2), seed=seed).path for seed in range(3)]
    digest = save_members(tmp_path / "whole", plain, {"name": "whole"})
    save_calibration(tmp_path / "whole", some_calibration(load_bundle(tmp_path / "whole")))
    run = begin(tracker, "members")
    version = register_bundle(tracker, tmp_path / "whole", "members", run_id=run, metrics=GOOD)
    tracker.client.set_terminated(run)
    found = load_bundle(resolve_model(f"models:/members/{version}", tracker.home))
    assert found.identity == load_bundle(tmp_path / "whole").identity and found.digest == digest
    with quiet_mlflow(tracker):
        model = mlflow.pyfunc.load_model(f"models:/members/{version}", model_config={"samples": 6})
    image = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
    alone = [MeanProbability(path, samples=6).predict(image) for path in plain]
    whole = model.predict(image)
    assert whole.shape == alone[0].shape and np.isfinite(whole).all()
    assert all(np.abs(whole - one).max() > 1e-3 for one in alone)
    np.testing.assert_array_equal(MeanProbability(tmp_path / "whole", samples=1).predict(image).shape, whole.shape)


def test_a_registered_model_is_an_mlflow_model_with_a_signature(tracker, tmp_path):
    _, version = _register(tracker, tmp_path, "pyfunc")
    with quiet_mlflow(tracker):
        model = mlflow.pyfunc.load_model(f"models:/pyfunc/{version}")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    probabilities = model.predict(np.zeros((1, 1, 16, 16), np.float32))
    assert probabilities.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(np.zeros((1, 16, 16), np.float32))


def test_what_a_run_registers_again_is_the_same_version_and_moves_no_alias_back(tracker, tmp_path):
    bundle = random_bundle(tmp_path / "bundle", tiny_config(2), seed=21)
    run, other = begin(tracker, "again"), begin(tracker, "other")
    assert [register_bundle(tracker, bundle.path, "again", run_id=run, metrics=GOOD) for _ in range(2)] == [1, 1]
    challenge(tracker, "again", 1)
    assert tracker.client.get_model_version_by_alias("again", "challenger").version == 1
    newer = random_bundle(tmp_path / "newer", tiny_config(2), seed=22)
    assert register_bundle(tracker, newer.path, "again", run_id=other, metrics=GOOD) == 2
    challenge(tracker, "again", 2)
    assert register_bundle(tracker, bundle.path, "again", run_id=run, metrics=GOOD) == 1
    challenge(tracker, "again", 1)
    assert tracker.client.get_model_version_by_alias("again", "challenger").version == 2
    save_calibration(bundle.path, some_calibration(bundle))  # its numbers are others now
    assert register_bundle(tracker, bundle.path, "again", run_id=run, metrics=GOOD) == 3


def test_the_evidence_of_a_version_stays_when_its_run_registers_another_one(tracker, tmp_path):
    run = begin(tracker, "grows")
    for number in (1, 2):
        bundle = random_bundle(tmp_path / f"b{number}", tiny_config(2), seed=30 + number)
        tables = tmp_path / f"t{number}"
        tables.mkdir()
        pq.write_table(pa.Table.from_pylist(scores(0.8 + 0.05 * number)), tables / "cases.parquet")
        options = {"run_id": run, "metrics": GOOD, "evaluation": tables}
        assert register_bundle(tracker, bundle.path, "grows", **options) == number
        tracker.client.set_tag(run, "ldseg.host", f"host-{number}")  # the run went on elsewhere
    for number in (1, 2):
        found = recorded(tracker, tracker.client.get_model_version("grows", str(number)))
        assert not found.problem and found.machine == provenance.machine()
        assert found.rows[0]["dice"] == pytest.approx(0.8 + 0.05 * number)


@pytest.mark.parametrize(
    ("uri", "message"),
    [("models:/nothing@champion", "is not in the registry"), ("models:/nothing", "names no version")],
)
def test_a_model_that_is_not_there_is_named_with_the_cure(tracker, uri, message):
    with pytest.raises(RegistryError, match=message):
        resolve_model(uri, tracker.home)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_original_is_refused(tracker, tmp_path):
    bundle, version = _register(tracker, tmp_path, "damaged", seed=11)
    copy = resolve_model(f"models:/damaged/{version}", tracker.home) / "weights.safetensors"
    copy.write_bytes(b"nothing")
    resolve_model(f"models:/damaged/{version}", tracker.home)
    whole = (bundle.path / "weights.safetensors").read_bytes()
    assert copy.read_bytes() == whole
    for original in (tracker.home / "artifacts").rglob("weights.safetensors"):
        if original.read_bytes() == whole:
            original.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    copy.write_bytes(b"nothing")
    with pytest.raises(RegistryError, match="is damaged"):
        resolve_model(f"models:/damaged/{version}", tracker.home)
