"""Small cohorts of real files, and random models to score on them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case, Cohort

RANKS = pytest.mark.parametrize("dims", [2, 3])
AFFINE = np.array([[0, -1.5, 0, 4], [0.8, 0, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])


def write_case(folder: Path, name: str, dims: int, raters: int = 1, seed: int = 0) -> Case:
    """A noisy picture of two nested boxes on 13x15(x11) voxels, whose inner one moves from rater to rater."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shape = (13, 15, 11)[:dims]
    paths = []
    for rater in range(raters):
        label = np.zeros(shape, dtype=np.uint8)
        label[(slice(2, 11),) * dims], label[(slice(4 + rater, 7 + rater),) * dims] = 1, 2
        paths.append(folder / f"{name}_label_{rater}.nii.gz")
        nib.save(nib.Nifti1Image(label, AFFINE), paths[-1])
    image = generator.normal(size=shape) + label
    nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), folder / f"{name}.nii.gz")
    return Case(name=name, image=folder / f"{name}.nii.gz", labels=tuple(paths))


def tiny_bundle(folder: Path, dims: int, *, deterministic: bool = False, seed: int = 0) -> Bundle:
    config = tiny_config(dims).with_overrides({"loss.deterministic": deterministic})
    return random_bundle(folder, config, seed)


def cohort_of(*cases: Case) -> Cohort:
    return Cohort(
        name="few", cases=cases, label_values=(0, 1, 2), structures=("organ", "nodule"), spatial_dims=3, problems=()
    )
