"""The plane between two structures."""

import subprocess
import sys

import numpy as np
import pytest
from tiny import random_bundle, tiny_config

from benchmarks.quality.plane import plane
from ldseg import ROOT
from ldseg.data.cohort import read_cohort


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_plane_is_where_the_fewest_voxels_are_on_the_wrong_side(axis):
    label = np.zeros((6, 6, 6), np.uint8)
    near, far = np.moveaxis(label, axis, 0)[1:3], np.moveaxis(label, axis, 0)[3:5]
    near[:, 1:4, 1:4], far[:, 1:4, 1:4] = 2, 1
    assert plane(label, axis, 1, 2) == 3
    near[1, 1, 1] = 1  # one voxel of eighteen breaks it
    assert plane(label, axis, 1, 2) == 3
    near[1, 1:4, 1:4] = 1
    assert plane(label, axis, 1, 2) == 2
    assert plane(np.zeros_like(label), axis, 1, 2) == 0


def test_a_table_and_its_cases_are_printed(phantoms, tmp_path):
    random_bundle(tmp_path / "model", tiny_config(2, read_cohort(phantoms).structures))
    command = [sys.executable, "benchmarks/quality/plane.py", "--model", tmp_path / "model", "--data", phantoms]
    done = subprocess.run(
        [*command, "--samples", "2", "--limit", "2", "--split", "all"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "CRPS, slices" in done.stdout and "on 2 cases of" in done.stdout
