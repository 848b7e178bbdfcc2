"""A labelled cohort and a model to calibrate on it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case

RANKS = pytest.mark.parametrize("dims", [2, 3])


SHAPE = (13, 15, 11)


def write_case(folder: Path, seed: int, dims: int, raters: int = 1) -> Case:
    """Noise with two nested boxes whose sizes change from case to case and from rater to rater."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, paths = np.random.default_rng(seed), []
    for rater in range(raters):
        label = np.zeros(SHAPE[:dims], dtype=np.uint8)
        label[(slice(2, 8 + (seed + rater) % 4),) * dims], label[(slice(4, 6 + seed % 2),) * dims] = 1, 2
        paths.append(folder / f"case{seed}_label_{rater}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.diag([0.8, 1.5, 2.5, 1])), paths[-1])
    image = folder / f"case{seed}.nii.gz"
    array = (generator.normal(size=label.shape) + label).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([0.8, 1.5, 2.5, 1])), image)
    return Case(name=f"case{seed}", image=image, labels=tuple(paths))


def cohort(folder: Path, dims: int, count: int, raters: int = 1) -> list[Case]:
    return [write_case(folder, seed, dims, raters) for seed in range(count)]


def bundle_of(folder: Path, dims: int = 2) -> Bundle:
    return random_bundle(folder, tiny_config(dims))
