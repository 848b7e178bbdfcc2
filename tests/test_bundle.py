import dataclasses
import json
import math

import pytest
import torch
from tiny import random_bundle, some_calibration, tiny_config

from ldseg.bundle import BundleError, load_bundle, save_bundle
from ldseg.calibration.file import save_calibration


def test_a_bundle_comes_back_with_the_same_weights_and_digest(tmp_path):
    bundle = random_bundle(tmp_path / "b", tiny_config(2))
    again = load_bundle(tmp_path / "b")
    assert again.digest == bundle.digest and again.config == bundle.config
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_the_digest_changes_with_weights_and_configuration_but_not_with_the_card(tmp_path):
    config = tiny_config(2)
    model = random_bundle(tmp_path / "a", config).model
    first = save_bundle(tmp_path / "a", model, config, {"name": "one"})
    assert save_bundle(tmp_path / "b", model, config, {"name": "two"}) == first
    assert save_bundle(tmp_path / "c", model, config.with_overrides({"sampler.num_sample_steps": 4}), {}) != first
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert save_bundle(tmp_path / "d", model, config, {}) != first


def test_replacing_a_bundle_leaves_nothing_else_behind(tmp_path):
    random_bundle(tmp_path / "b", tiny_config(2), seed=0)
    random_bundle(tmp_path / "b", tiny_config(2), seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["card.json", "config.json", "weights.safetensors"]


def test_a_changed_file_is_refused(tmp_path):
    random_bundle(tmp_path / "b", tiny_config(2))
    weights = bytearray((tmp_path / "b" / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "b" / "weights.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="don't match the digest"):
        load_bundle(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"is no model bundle.*weights\.safetensors"):
        load_bundle(tmp_path)


def test_an_unknown_configuration_key_is_refused(tmp_path):
    random_bundle(tmp_path / "b", tiny_config(2))
    path = tmp_path / "b" / "config.json"
    values = json.loads(path.read_text())
    values["model"]["width"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="unknown configuration key"):
        load_bundle(tmp_path / "b")


def test_half_precision_halves_the_file_and_keeps_the_weights_to_a_thousandth(tmp_path):
    bundle = random_bundle(tmp_path / "a", tiny_config(2))
    save_bundle(tmp_path / "b", bundle.model, bundle.config, {}, dtype=torch.float16)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.7 * sizes[0]
    half = load_bundle(tmp_path / "b").model.state_dict()
    for name, value in bundle.model.state_dict().items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=1e-3, atol=1e-6)


def test_a_calibration_comes_back_as_it_was_and_leaves_the_digest_and_nothing_else(tmp_path):
    bundle = random_bundle(tmp_path / "b", tiny_config(2))
    assert bundle.calibration is None
    calibration = some_calibration(bundle)
    intervals = dataclasses.replace(calibration.intervals, quantiles=(math.inf, -0.25))
    for older, written in enumerate((calibration, dataclasses.replace(calibration, intervals=intervals))):
        save_calibration(bundle.path, written)
        again = load_bundle(bundle.path)
        assert again.calibration == written and again.calibration.digest == written.digest
        assert again.digest == bundle.digest
        assert len(list(bundle.path.iterdir())) == 4 + older, "the older calibration stays beside the new one"


def test_a_replaced_model_loses_its_calibration(tmp_path):
    bundle = random_bundle(tmp_path / "b", tiny_config(2))
    save_calibration(bundle.path, some_calibration(bundle))
    assert random_bundle(tmp_path / "b", tiny_config(2), seed=1).calibration is None


def _tamper(path, **changes):
    values = json.loads(path.read_text())
    for name, value in changes.items():
        part = next(v for v in values.values() if isinstance(v, dict) and name in v)
        part[name] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("change", [{"temperature": 1.5}, {"quantiles": [0.0, 0.0]}, {"samples": 8}])
def test_a_changed_calibration_is_refused_in_one_sentence_with_the_cure(tmp_path, change):
    bundle = random_bundle(tmp_path / "b", tiny_config(2))
    _tamper(save_calibration(bundle.path, some_calibration(bundle)), **change)
    with pytest.raises(BundleError, match=r"calibration\.json was changed after .*calibrate the model anew by"):
        load_bundle(bundle.path)


def test_a_calibration_of_another_model_is_refused(tmp_path):
    bundle, other = (random_bundle(tmp_path / name, tiny_config(2), seed=n) for n, name in enumerate("ab"))
    save_calibration(bundle.path, some_calibration(other))
    with pytest.raises(BundleError, match=f"belongs to another model .{other.digest}.*calibrate the model anew"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"digest": 1, "intervals": 2}', '"\\ud800"', "\xff\x00"])
def test_a_calibration_that_is_none_is_refused(tmp_path, content):
    bundle = random_bundle(tmp_path / "b", tiny_config(2))
    (bundle.path / "calibration.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match=r"calibration\.json can't be used .*calibrate the model anew") as caught:
        load_bundle(bundle.path)
    assert "\n" not in str(caught.value)
