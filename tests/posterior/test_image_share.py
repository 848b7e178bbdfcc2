"""The image encoder's own probabilities have a share in the label map, and in nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from posteriors import DIMS, _volume
from tiny import random_bundle, tiny_config

from ldseg.config import ConfigError
from ldseg.posterior.sampling import Posterior


@pytest.fixture
def segment(tmp_path):
    """One model with any share -> its posterior, and what it says about one volume; the draws are the same."""
    drawn = {}

    def with_share(dims, share, seed=0):
        if dims not in drawn:
            drawn[dims] = random_bundle(tmp_path / str(dims), tiny_config(dims)), _volume(tmp_path, dims, str(dims))
        bundle, volume = drawn[dims]
        config = bundle.config.with_overrides({"sampler.image_share": share})
        posterior = Posterior(dataclasses.replace(bundle, config=config), precision="float32")
        return posterior, posterior.segment(volume, samples=3, seed=seed), volume

    return with_share


def _mean(summary):
    """The samples' mean probability with the background's, (C, *native)."""
    return np.concatenate([1 - summary.mean_probability.sum(0)[None], summary.mean_probability])


@torch.inference_mode()
def _alone(posterior, volume):
    """The image's own probabilities, (C, *native)."""
    grid = posterior.prepare(volume)
    logits = posterior.model.image_logits(posterior.model.encode_image(grid.image[None]))
    return grid.to_native(logits[0].softmax(0))


@DIMS
def test_a_share_of_one_leaves_the_label_map_to_the_image_whatever_the_samples(segment, dims):
    posterior, one, volume = segment(dims, 1.0)
    _, other, _ = segment(dims, 1.0, seed=7)
    assert not np.array_equal(one.mean_probability, other.mean_probability)
    assert np.array_equal(one.label, other.label)
    assert np.array_equal(one.label, _alone(posterior, volume).argmax(0))


@DIMS
def test_without_a_share_the_label_map_is_the_arg_max_of_the_mean(segment, dims):
    posterior, summary, volume = segment(dims, 0.0)
    assert np.array_equal(summary.label, _mean(summary).argmax(0))
    assert not np.array_equal(summary.label, _alone(posterior, volume).argmax(0)), "or both ends are the same"


@DIMS
def test_a_share_between_mixes_the_two(segment, dims):
    posterior, summary, volume = segment(dims, 0.25)
    mixed = np.sort(0.75 * _mean(summary) + 0.25 * _alone(posterior, volume), axis=0)
    expected = (0.75 * _mean(summary) + 0.25 * _alone(posterior, volume)).argmax(0)
    clear = mixed[-1] - mixed[-2] > 1e-5  # float32 sums in another order
    assert clear.mean() > 0.99 and np.array_equal(summary.label[clear], expected[clear])


@DIMS
def test_maps_volumes_and_agreement_do_not_change_with_the_share(segment, dims):
    (_, none, _), (_, all_of_it, _) = segment(dims, 0.0), segment(dims, 1.0)
    assert not np.array_equal(none.label, all_of_it.label)
    for name in ("mean_probability", "predictive_entropy", "sample_variance"):
        assert np.array_equal(getattr(none, name), getattr(all_of_it, name)), name
    assert none.volumes.keys() == all_of_it.volumes.keys()
    for name in none.volumes:
        assert np.array_equal(none.volumes[name], all_of_it.volumes[name]), name
    assert (none.agreement, none.confidence) == (all_of_it.agreement, all_of_it.confidence)


@DIMS
def test_the_control_has_no_share_for_nothing_trains_its_images_logits_alone(tmp_path, dims):
    config = tiny_config(dims).with_overrides({"loss.deterministic": True, "sampler.image_share": 1.0})
    posterior = Posterior(random_bundle(tmp_path / "control", config), precision="float32")
    volume = _volume(tmp_path, dims)
    summary = posterior.segment(volume, samples=1)
    assert np.array_equal(summary.label, _mean(summary).argmax(0))
    assert not np.array_equal(summary.label, _alone(posterior, volume).argmax(0)), "or both are the same"


@DIMS
def test_without_logits_of_its_own_the_image_speaks_by_one_step(tmp_path, dims):
    config = tiny_config(dims).with_overrides({"model.image_logits": False, "sampler.image_share": 1.0})
    posterior = Posterior(random_bundle(tmp_path / "plain", config), precision="float32")
    volume = _volume(tmp_path, dims)
    summary, one_step = posterior.segment(volume, samples=3), posterior.segment(volume, samples=3, num_steps=1)
    # the noisiest step lets a thousandth of the noise through, which random weights don't ignore altogether
    assert (summary.label == _mean(one_step).argmax(0)).mean() > 0.99
    assert (summary.label == _mean(summary).argmax(0)).mean() < 0.95, "or both are the same"


def test_a_share_needs_what_draws_nothing_and_lies_in_zero_to_one():
    noisy = {"model.image_logits": False, "diffusion.input_scale": "none"}
    with pytest.raises(ConfigError, match=r"image_share needs model\.image_logits"):
        tiny_config(2).with_overrides({**noisy, "sampler.image_share": 0.5})
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"image_share must lie in \[0, 1\]"):
            tiny_config(2).with_overrides({"sampler.image_share": share})
