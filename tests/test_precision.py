import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import random_bundle, tiny_config

from ldseg.data.volume import read_volume
from ldseg.model import LDSeg
from ldseg.posterior.sampling import Posterior
from ldseg.precision import BFLOAT16, LARGE, TOLERANCE, choose, native_bfloat16, trial

needs_bfloat16 = pytest.mark.skipif(not native_bfloat16("cpu"), reason="this processor computes no bfloat16 itself")


def small_volume(folder, dims):
    path = folder / "one.nii.gz"
    array = np.random.default_rng(0).normal(size=(13, 18, 11)[:dims]).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return read_volume(path, case="one", spatial_dims=dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_rounding_alone_is_far_below_what_fails_a_trial(dims):
    torch.manual_seed(0)
    model = LDSeg(tiny_config(dims)).eval()
    assert 0 < trial(model, "cpu") < TOLERANCE / 5


@needs_bfloat16
def test_where_the_hardware_has_it_bfloat16_is_taken_after_its_trial_and_told():
    found = choose(LDSeg(tiny_config(2)).eval(), "cpu")
    assert found.name == "bfloat16" and "in a trial" in found.reason and found.difference < TOLERANCE


@needs_bfloat16
def test_a_model_that_fails_its_trial_is_computed_in_float32():
    model = LDSeg(tiny_config(2)).eval()
    with torch.no_grad():
        list(model.label_decoder.parameters())[-1].fill_(torch.nan)
    found = choose(model, "cpu")
    assert found.name == "float32" and found.reason.startswith("bfloat16 failed its trial")


def test_what_is_asked_for_is_taken_and_nothing_else_is_known():
    model = LDSeg(tiny_config(2)).eval()
    assert choose(model, "cpu", "float32").name == "float32" and choose(model, "cpu", "bfloat16").name == "bfloat16"
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16"):
        choose(model, "cpu", "half")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("large", [LARGE, 0])
def test_a_samples_bits_do_not_depend_on_those_drawn_with_it(tmp_path, monkeypatch, dims, precision, large):
    monkeypatch.setattr("ldseg.precision.LARGE", large)
    posterior = Posterior(random_bundle(tmp_path / "bundle", tiny_config(dims)), precision=precision)
    grid = posterior.prepare(small_volume(tmp_path, dims))
    embedding = posterior.encode(grid)
    together = posterior.latents(grid, embedding, seed=1, indices=range(7))
    for index in (0, 3, 6):
        alone = posterior.latents(grid, embedding, seed=1, indices=[index])
        assert torch.equal(alone[0], together[index])
        assert torch.equal(posterior.decode(alone[0], embedding), posterior.decode(together[index], embedding))


def test_the_denoiser_is_rounded_where_latents_are_large():
    layer, x = torch.nn.Linear(2, 2), torch.randn(1, 2)
    for latent, dtype in (((16, 16, 15), torch.float32), ((16, 16, 16), torch.bfloat16), ((64, 64), torch.bfloat16)):
        with BFLOAT16.denoising("cpu", latent):
            assert layer(x).dtype == dtype


def test_the_summary_says_what_was_computed_in(tmp_path):
    bundle = random_bundle(tmp_path / "bundle", tiny_config(2))
    volume = small_volume(tmp_path, 2)
    exact, rounded = (Posterior(bundle, precision=name).segment(volume, samples=4) for name in ("float32", "bfloat16"))
    assert (exact.numbers()["precision"], rounded.numbers()["precision"]) == ("float32", "bfloat16")
    assert not np.array_equal(exact.mean_probability, rounded.mean_probability)
    np.testing.assert_allclose(exact.mean_probability, rounded.mean_probability, atol=0.03)
