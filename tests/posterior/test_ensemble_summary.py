"""Several models' maps and numbers."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from ensembles import _certain, _model, _random

from ldseg.config import DataConfig
from ldseg.data.formats.scaled import Scale
from ldseg.data.grid import prepare
from ldseg.data.volume import read_volume
from ldseg.posterior.accumulator import PosteriorAccumulator, soft_dice_confidence
from ldseg.posterior.ensemble import PARTS, decompose, summarise_ensemble, write_ensemble

NAMES = ("organ", "nodule")
SPACINGS = pytest.mark.parametrize("spacing_mm", [None, (1.2, 1.2, 1.2)])


def case(tmp_path, spacing_mm=None):
    affine = np.array([[0, -0.9, 0, 12], [1.1, 0, 0, -7], [0, 0, 2.2, 3], [0, 0, 0, 1.0]])
    array = np.random.default_rng(0).normal(size=(13, 15, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=3)
    data = DataConfig(shape=(16, 16, 16), spacing_mm=spacing_mm, label_values=(0, 1, 2), structures=NAMES)
    return prepare(volume, data, (8, 8, 8)), data


def summarise(grid, data, models):
    digests = [f"sha256:{k}" for k in range(len(models))]
    return summarise_ensemble(grid, models, digests, data, seed=3, num_steps=4)


def certain(grid, winner, samples):
    """A model whose every sample is one class everywhere; the padding does not count."""
    total = PosteriorAccumulator.create(3, tuple(grid.inside.shape), grid.inside)
    total.add(_certain(tuple(grid.inside.shape), winner, samples))
    return total


@SPACINGS
def test_the_written_parts_add_up_to_the_total_within_the_rounding_of_their_type(tmp_path, spacing_mm):
    grid, data = case(tmp_path, spacing_mm)
    models = [_model(_random(tuple(grid.inside.shape), seed)) for seed in range(3)]
    summary = summarise(grid, data, models)
    paths = write_ensemble(summary, tmp_path / "out", grid.volume, NAMES)
    assert set(paths) == {"label", "prob-organ", "prob-nodule", *PARTS, "lookup", "sidecar"}
    assert paths["epistemic"].name == "a_desc-epistemic_uncertainty.nii.gz"
    step = Scale(math.log(3), 16).step
    read = {part: nib.load(paths[part]).get_fdata() for part in PARTS}
    for part in PARTS:
        assert np.abs(read[part] - getattr(summary, part)).max() <= step / 2 * (1 + 1e-5) + 1e-7
        assert 0 <= read[part].min() and read[part].max() <= math.log(3)
    assert np.abs(read["total"] - read["epistemic"] - read["aleatoric"]).max() <= 1.5 * step + 1e-6
    assert read["epistemic"].max() > 20 * step, "there is something to add up"
    image = nib.load(paths["total"])
    assert image.get_data_dtype() == np.uint16 and np.allclose(image.affine, grid.volume.affine)


def test_on_the_grid_itself_the_maps_are_those_of_the_decomposition(tmp_path):
    grid, data = case(tmp_path)
    models = [_model(_random(tuple(grid.inside.shape), seed)) for seed in range(3)]
    summary, parts = summarise(grid, data, models), decompose(models)
    for name in PARTS:
        np.testing.assert_allclose(getattr(summary, name), grid.to_native(getattr(parts, name)[None])[0], atol=1e-6)
    mean = torch.stack([model.mean_probability() for model in models]).mean(0)
    np.testing.assert_allclose(summary.mean_probability, grid.to_native(mean)[1:], atol=1e-7)
    assert np.array_equal(summary.label, grid.to_native(mean).argmax(0))
    found = soft_dice_confidence(mean, models[0].inside)
    row = summary.numbers()
    assert [row[f"{name}_soft_dice_confidence"] for name in NAMES] == found and 0 < min(found) < max(found) < 1
    assert row["soft_dice_confidence"] == pytest.approx(np.mean(found))


def test_models_that_disagree_are_epistemic_and_their_volumes_are_all_there(tmp_path):
    grid, data = case(tmp_path)
    models = [certain(grid, 1, 4), certain(grid, 2, 2)]
    summary = summarise(grid, data, models)
    assert summary.means["epistemic"] == pytest.approx(math.log(2), rel=1e-6)
    assert summary.means["aleatoric"] == pytest.approx(0, abs=1e-6)
    whole = float(np.prod(grid.volume.shape)) * grid.voxel_size
    assert summary.volumes["organ"].tolist() == pytest.approx([whole] * 4 + [0.0] * 2)
    assert summary.volumes["nodule"].tolist() == pytest.approx([0.0] * 4 + [whole] * 2)
    row = summary.numbers()
    assert (row["models"], row["samples"], row["model_digest"]) == (2, 6, "sha256:0 sha256:1")
    assert row["mean_epistemic"] == summary.means["epistemic"] and row["mean_organ_total"] > 0.69
    assert row["mean_nodule_total"] == 0.0, "the label map holds none"
    paths = write_ensemble(summary, tmp_path / "out", grid.volume, NAMES)
    told = json.loads(paths["sidecar"].read_text())
    assert told["Models"] == ["sha256:0", "sha256:1"] and told["Samples"] == [4, 2]
    assert len(told["Structures"][0]["SampleVolumes"]) == 6 and told["MeanNats"]["total"] == summary.means["total"]


def test_what_does_not_belong_together_is_told(tmp_path):
    grid, data = case(tmp_path)
    model = _model(_random(tuple(grid.inside.shape), 0))
    with pytest.raises(ValueError, match="as many digests"):
        summarise_ensemble(grid, [model], [], data, seed=0, num_steps=1)
    with pytest.raises(ValueError, match="at least one model"):
        summarise_ensemble(grid, [], [], data, seed=0, num_steps=1)
    with pytest.raises(ValueError, match="on one grid"):
        summarise(grid, data, [model, _model(_random((8, 8, 8), 0))])
