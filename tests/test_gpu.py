"""A GPU gives the CPU's answers within rounding, and its own to the bit (`pytest -m gpu` on a machine that has one)."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from posteriors import samples_of
from tiny import random_bundle, tiny_config

from ldseg.bundle import load_bundle
from ldseg.config import Config
from ldseg.data.volume import read_volume
from ldseg.networks.blocks import norm
from ldseg.posterior.accumulator import packed
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import PosteriorSummary
from ldseg.training.fit import TrainingState, fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


@pytest.fixture
def volume(tmp_path: Path):
    """Oblique and anisotropic, so that something is resampled."""
    array = np.random.default_rng(0).normal(size=(20, 25, 30)).astype(np.float32)
    affine = np.array([[0.9, -0.1, 0, 5], [0.1, -0.8, 0, -7], [0, 0, 1.2, 3], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "v.nii.gz")
    return read_volume(tmp_path / "v.nii.gz", case="v", spatial_dims=3)


def _drawn(tmp_path: Path, volume, device: str, **options) -> PosteriorSummary:
    posterior = Posterior(load_bundle(tmp_path / "bundle"), device=device, **options)
    return posterior.segment(volume, samples=6)


def test_the_gpus_answer_is_the_cpus_within_rounding(tmp_path, volume):
    random_bundle(tmp_path / "bundle", tiny_config().with_overrides({"data.spacing_mm": [1.0, 1.0, 1.0]}))
    one = _drawn(tmp_path, volume, "cpu", precision="float32")
    other = _drawn(tmp_path, volume, "cuda", precision="float32")
    assert np.abs(one.mean_probability - other.mean_probability).max() < 2e-3
    assert np.mean(one.label == other.label) > 0.999
    assert np.abs(one.predictive_entropy - other.predictive_entropy).max() < 5e-3
    assert np.abs(one.sample_variance - other.sample_variance).max() < 2e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_again_and_whatever_is_drawn_beside(tmp_path, volume, precision):
    random_bundle(tmp_path / "bundle", tiny_config())
    posterior = Posterior(load_bundle(tmp_path / "bundle"), device="cuda", precision=precision)
    grid = posterior.prepare(volume)
    embedding = posterior.encode(grid)
    whole = samples_of(posterior, grid, embedding, seed=0, indices=range(6))
    assert torch.equal(samples_of(posterior, grid, embedding, seed=0, indices=[4]), whole[4:5])
    assert torch.equal(samples_of(posterior, grid, posterior.encode(grid), seed=0, indices=range(6)), whole)


def test_a_wide_group_is_normalised_alike_by_all_processors():
    layer, x = norm(16, 8).cuda(), torch.randn(1, 16, 64, 64, 64).cuda()
    torch.testing.assert_close(layer(x).cpu(), layer.cpu()(x.cpu()), rtol=1e-4, atol=1e-4)


def test_bits_are_packed_as_numpy_packs_them():
    masks = torch.rand(3, 1001, generator=torch.Generator().manual_seed(0)) > 0.5
    own = packed(masks.cuda())
    assert np.array_equal(np.unpackbits(own, axis=1, count=1001), masks.numpy())


class Items:
    """Random items in the form of a TrainingSet."""

    has_ignored = False

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, object]:
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.randn(1, 16, 16, 16, generator=generator), "label": torch.ones(16, 16, 16).long()}

    def set_epoch(self, epoch: int) -> None:
        """All epochs are equal."""


class Whole(Items):
    """The same as validation items."""

    def __getitem__(self, index: int) -> dict[str, object]:
        item = super().__getitem__(index)
        return item | {"labels": item["label"][None], "inside": torch.ones(16, 16, 16, dtype=torch.bool)}


def test_a_training_on_the_gpu_goes_on_from_its_checkpoint(tmp_path):
    config = Config().with_overrides({"data.shape": [16, 16, 16], "optim.epochs": 3, "optim.batch_size": 2})
    state = TrainingState.create(config, "cuda")
    losses = [result.metrics["loss"] for result in fit(state, Items(), Whole(), device="cuda")]
    assert 0 <= state.history[-1]["val_dice"] <= 1
    half = TrainingState.create(config, "cuda")
    next(iter(fit(half, Items(), None, device="cuda")))
    (tmp_path / "half").mkdir()
    half.save(tmp_path / "half")
    resumed = TrainingState.create(config, "cuda")
    resumed.load(tmp_path / "half")
    again = [result.metrics["loss"] for result in fit(resumed, Items(), None, device="cuda")]
    assert losses[0] > losses[-1] and again == pytest.approx(losses[1:], rel=0.05)
