"""A small random model's posterior and a volume for it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import random_bundle, tiny_config

from ldseg.data.volume import read_volume
from ldseg.posterior.sampling import Posterior

DIMS = pytest.mark.parametrize("dims", [2, 3])


def _volume(tmp_path, dims, name="a", seed=0):
    """An oblique, anisotropic image of odd size."""
    shape = (13, 18, 11)[:dims]
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.8, 1.0, 2.5])
    affine[:3, 3] = (10, -20, 30)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    path = tmp_path / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return read_volume(path, case=name, spatial_dims=dims)


def samples_of(posterior, grid, embedding, *, seed, indices):
    """Single samples as class indices, (K, *grid) int64."""
    latents = posterior.latents(grid, embedding, seed=seed, indices=indices)
    return torch.cat([posterior.decode(latent, embedding).argmax(1) for latent in latents])


def _posterior(tmp_path, dims, **options):
    return Posterior(random_bundle(tmp_path / "bundle", tiny_config(dims)), **options)
