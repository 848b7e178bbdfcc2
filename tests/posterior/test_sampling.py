import dataclasses
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from posteriors import DIMS, _posterior, _volume, samples_of
from tiny import random_bundle, some_calibration, tiny_config

from ldseg.config import SamplerConfig
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.draws import Drawn, Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import write_summary


@DIMS
def test_a_sample_is_the_same_alone_in_a_batch_and_in_any_order(tmp_path, dims):
    volume = _volume(tmp_path, dims)
    posterior = _posterior(tmp_path, dims, chunk_size=8)
    grid = posterior.prepare(volume)
    embedding = posterior.encode(grid)
    together = samples_of(posterior, grid, embedding, seed=3, indices=range(8))
    shuffled = samples_of(posterior, grid, embedding, seed=3, indices=[5, 2])
    alone = samples_of(posterior, grid, embedding, seed=3, indices=[5])
    assert torch.equal(together[5], alone[0]) and torch.equal(together[[5, 2]], shuffled)
    assert not torch.equal(together[5], together[2])
    assert not torch.equal(alone, samples_of(posterior, grid, embedding, seed=4, indices=[5]))


def test_a_sample_depends_on_the_content_and_not_on_the_name(tmp_path):
    posterior = _posterior(tmp_path, 3)
    a = posterior.segment(_volume(tmp_path, 3, "a"), samples=2, seed=1)
    b = posterior.segment(_volume(tmp_path, 3, "b"), samples=2, seed=1)
    c = posterior.segment(_volume(tmp_path, 3, "c", seed=9), samples=2, seed=1)
    assert np.array_equal(a.mean_probability, b.mean_probability)
    assert not np.array_equal(a.mean_probability, c.mean_probability)


@DIMS
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_chunks_of_any_size_give_the_same_summary(tmp_path, dims, method):
    config = tiny_config(dims).with_overrides({"sampler.method": method})
    bundle, volume = random_bundle(tmp_path / "bundle", config), _volume(tmp_path, dims)
    one, many = (Posterior(bundle, chunk_size=size, precision="float32").segment(volume, samples=5) for size in (1, 5))
    assert np.array_equal(one.label, many.label)
    np.testing.assert_allclose(one.mean_probability, many.mean_probability, atol=1e-5)
    assert one.volumes.keys() == many.volumes.keys()
    for name in one.volumes:
        np.testing.assert_array_equal(one.volumes[name], many.volumes[name])


def test_parts_merged_from_two_actors_give_the_same_numbers(tmp_path):
    posterior, volume = _posterior(tmp_path, 3, chunk_size=2), _volume(tmp_path, 3)
    grid = posterior.prepare(volume)
    embedding = posterior.encode(grid)
    parts = [posterior.accumulate(grid, embedding, seed=0, indices=indices) for indices in ([0, 1], [2, 3])]
    merged = PosteriorAccumulator.merge([PosteriorAccumulator.from_arrays(p.to_arrays()) for p in parts])
    a = posterior.summarise(Drawn(grid, embedding, merged, Draws())).numbers()
    b = posterior.segment(volume, samples=4).numbers()
    assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
        {k: v for k, v in b.items() if k != "seconds"}
    )


def test_the_image_encoder_runs_once_whatever_the_number_of_samples(tmp_path):
    posterior = _posterior(tmp_path, 3, chunk_size=2)
    posterior.segment(_volume(tmp_path, 3), samples=7)
    assert posterior.encoder_calls == 1


def test_one_step_works(tmp_path):
    summary = _posterior(tmp_path, 3).segment(_volume(tmp_path, 3), samples=2, num_steps=1)
    assert summary.num_steps == 1 and np.isfinite(summary.mean_probability).all()


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_refused(tmp_path, samples):
    with pytest.raises(ValueError, match="samples must be at least 1"):
        _posterior(tmp_path, 3).segment(_volume(tmp_path, 3), samples=samples)


def test_more_steps_than_the_schedule_has_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_sample_steps must lie in"):
        _posterior(tmp_path, 3).segment(_volume(tmp_path, 3), samples=1, num_steps=1001)
    assert SamplerConfig(num_sample_steps=1000).num_sample_steps == 1000


@DIMS
def test_maps_have_the_shape_affine_and_codes_of_the_input(tmp_path, dims):
    volume = _volume(tmp_path, dims)
    posterior = _posterior(tmp_path, dims)
    summary = posterior.segment(volume, samples=3)
    paths = write_summary(summary, tmp_path / "out", volume, posterior.config.data.structures)
    maps = {"label", "entropy", "variance", "prob-organ", "prob-nodule"}
    assert set(paths) == maps | {"lookup", "sidecar"}
    source = nib.load(volume.source)
    for key in maps:
        image = nib.load(paths[key])
        assert image.shape == source.shape
        assert np.array_equal(image.affine, source.affine)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (
            int(source.header["qform_code"]),
            int(source.header["sform_code"]),
        )
    label = np.asarray(nib.load(paths["label"]).dataobj)
    assert np.issubdtype(label.dtype, np.integer) and set(np.unique(label)) <= {0, 1, 2}


def test_sizes_are_voxels_times_their_volume_and_percentiles_are_ordered(tmp_path):
    posterior = _posterior(tmp_path, 3)
    volume = _volume(tmp_path, 3)
    summary = posterior.segment(volume, samples=6)
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    grid = posterior.prepare(volume)
    samples = samples_of(posterior, grid, posterior.encode(grid), seed=0, indices=range(6))
    expected = [int(((s == 1) & grid.inside).sum()) * voxel_ml for s in samples]
    np.testing.assert_allclose(summary.volumes["organ"], expected, rtol=1e-6)
    row = summary.numbers()
    assert row["organ_volume_ml_p05"] <= row["organ_volume_ml_p50"] <= row["organ_volume_ml_p95"]
    assert 0 <= row["agreement"] <= 1


def _calibrated(bundle, **options):
    return dataclasses.replace(bundle, calibration=some_calibration(bundle, **options))


@DIMS
def test_a_temperature_changes_probability_and_entropy_and_nothing_else(tmp_path, dims):
    """softmax(log p / 2) is sqrt(p) / sum sqrt(p); the grid of these bundles needs no interpolation."""
    bundle, volume = random_bundle(tmp_path / "b", tiny_config(dims)), _volume(tmp_path, dims)
    bare = Posterior(bundle).segment(volume, samples=3)
    warm = Posterior(_calibrated(bundle, temperature=2.0)).segment(volume, samples=3)
    p = bare.mean_probability.astype(np.float64)
    roots = np.sqrt(np.concatenate([np.maximum(1 - p.sum(0, keepdims=True), 0), p]))
    expected = roots / roots.sum(0)
    np.testing.assert_allclose(warm.mean_probability, expected[1:], atol=1e-3)  # 1 - sum p in float32, under a root
    own = -(expected * np.log(np.maximum(expected, 1e-300))).sum(0)
    np.testing.assert_allclose(warm.predictive_entropy, own, atol=5e-3)
    assert np.abs(warm.mean_probability - bare.mean_probability).max() > 0.02
    assert np.array_equal(warm.label, bare.label) and np.array_equal(warm.sample_variance, bare.sample_variance)
    assert warm.agreement == bare.agreement
    for index, name in enumerate(("organ", "nodule")):
        q, mask = warm.mean_probability[index], warm.label == index + 1
        seen = np.where(q >= 0.002, q, 0)
        wanted = 2 * q[mask].sum() / (seen.sum() + mask.sum()) if mask.any() else 1 - q.max()
        assert warm.numbers()[f"{name}_soft_dice_confidence"] == pytest.approx(wanted, abs=1e-5)
    assert warm.confidence != bare.confidence
    for name, values in bare.volumes.items():
        assert np.array_equal(values, warm.volumes[name])


@pytest.mark.parametrize("spacing", [[0.7, 1.1, 2.0], [1.6, 2.0, 5.0]])
def test_the_label_map_is_of_the_unscaled_mean_also_where_maps_are_interpolated(tmp_path, spacing):
    config = tiny_config(3).with_overrides({"data.spacing_mm": spacing})
    bundle, volume = random_bundle(tmp_path / "b", config), _volume(tmp_path, 3)
    bare = Posterior(bundle).segment(volume, samples=3)
    hot = Posterior(_calibrated(bundle, temperature=20.0)).segment(volume, samples=3)
    assert np.array_equal(bare.label, hot.label)
    p = hot.mean_probability
    by_scaled = np.concatenate([1 - p.sum(0, keepdims=True), p]).argmax(0)
    assert (by_scaled != hot.label).any(), "else this shows nothing"


@DIMS
def test_a_calibrated_row_has_the_interval_of_its_volumes(tmp_path, dims):
    unit = "ml" if dims == 3 else "mm2"
    bundle = random_bundle(tmp_path / "b", tiny_config(dims))
    summary = Posterior(_calibrated(bundle, unit=unit)).segment(_volume(tmp_path, dims), samples=3)
    row = summary.numbers()
    for name in ("organ", "nodule"):
        low, high = (row[f"{name}_volume_{unit}_p{p}"] for p in ("05", "95"))
        wider = 0.5 * (high - low + 0.01)
        assert row[f"{name}_volume_{unit}_low"] == pytest.approx(max(low - wider, 0), rel=1e-10, abs=1e-12)
        assert row[f"{name}_volume_{unit}_high"] == pytest.approx(high + wider, rel=1e-10)


def test_an_interval_that_does_not_hold_or_does_not_end_is_left_out(tmp_path):
    bundle, volume = random_bundle(tmp_path / "b", tiny_config(3)), _volume(tmp_path, 3)
    calibrated = Posterior(_calibrated(bundle))
    columns = {"organ_volume_ml_low", "organ_volume_ml_high", "nodule_volume_ml_low", "nodule_volume_ml_high"}
    held = calibrated.segment(volume, samples=3)
    assert columns <= held.numbers().keys()
    rows = [
        Posterior(bundle).segment(volume, samples=3).numbers(),
        calibrated.segment(volume, samples=2).numbers(),
        calibrated.segment(volume, samples=3, num_steps=1).numbers(),
        Posterior(_calibrated(bundle, unit="px")).segment(volume, samples=3).numbers(),
    ]
    assert not any(columns & row.keys() for row in rows)
    half = dataclasses.replace(held.intervals, quantiles=(math.inf, 0.5))
    assert columns & dataclasses.replace(held, intervals=half).numbers().keys() == {
        "nodule_volume_ml_low",
        "nodule_volume_ml_high",
    }
