"""The echo phantom: a sequence in NIfTI whose labels follow the stated law."""

import nibabel as nib
import numpy as np
import pytest

from ldseg.config import DataConfig
from ldseg.data.cohort import read_cohort
from ldseg.data.grid import label_to_grid, prepare
from ldseg.data.phantom.__main__ import main
from ldseg.data.phantom.cohort import PhantomConfig, draw_posterior, read_parameters, write_phantoms
from ldseg.data.phantom.echo import BLOOD, TISSUE, WALL, _levels, _sector, draw_parameters, render_image
from ldseg.data.volume import read_label, read_volume, write_map

GRID, VOXEL = (96, 96, 10), (0.7, 0.7, 0.04)


def _radii(labels, parameters):
    """Radius at rest from the chamber's area in each frame: pi r^2 (scale)^2."""
    turns = parameters["phase"] + parameters["beats"] * np.arange(GRID[2]) / GRID[2]
    scale = 1 - parameters["contraction"] * (1 - np.cos(2 * np.pi * turns)) / 2
    area = (labels == 1).sum((1, 2)) * np.prod(parameters["spacing_mm"])
    return np.sqrt(area / np.pi) / scale


def test_a_sequence_is_read_with_its_frames_and_goes_back_as_it_came(tmp_path):
    write_phantoms(tmp_path, PhantomConfig(kind="echo", cases=3, raters=2, shape=(32, 24, 5)))
    cohort = read_cohort(tmp_path)
    assert (cohort.spatial_dims, cohort.structures) == (3, ("chamber", "wall")) and not cohort.problems
    case = cohort.cases[0]
    volume = read_volume(case.image, case=case.name, spatial_dims=3)
    assert volume.shape == (32, 24, 5) and nib.load(case.image).shape == (32, 24, 1, 5)
    assert volume.spacing_mm[2] == pytest.approx(read_parameters(tmp_path)[case.name]["frame_s"], rel=1e-5)
    data = DataConfig(shape=(32, 24, 5), label_values=cohort.label_values, structures=cohort.structures)
    grid, label = prepare(volume, data, (8, 8, 1)), read_label(case.labels[0], volume, data)
    assert grid.unit == "mm2" and np.array_equal(label_to_grid(label, grid).numpy(), label)
    path = write_map(tmp_path / "label.nii.gz", label, volume)
    assert nib.load(path).shape == (32, 24, 1, 5) and np.array_equal(nib.load(path).affine, nib.load(case.image).affine)


def test_a_raters_radius_is_normal_and_the_same_in_every_frame():
    parameters = draw_parameters(GRID, VOXEL, np.random.default_rng(0))
    radii = _radii(draw_posterior(parameters, 600, np.random.default_rng(1)), parameters)
    mean, deviation = parameters["radius_mean_mm"], parameters["radius_sd_mm"]
    assert radii.mean() == pytest.approx(mean, abs=4 * deviation / 600**0.5 + 0.02 * mean)
    assert radii.mean(1).std() == pytest.approx(deviation, rel=0.12)
    assert np.abs(radii - radii.mean(1, keepdims=True)).max() < 0.7, "frames differ by less than a pixel"


def test_the_wall_lies_round_the_chamber_with_its_thickness():
    parameters = draw_parameters(GRID, VOXEL, np.random.default_rng(2))
    parameters |= {"elongation": 1.0, "spacing_mm": [0.7, 0.7], "contraction": 0.3}
    label = draw_posterior(parameters, 1, np.random.default_rng(0))[0]
    for frame in np.moveaxis(label, 2, 0):
        area = [float((frame >= 1).sum()), float((frame == 1).sum())]
        thickness = (np.sqrt(area[0] / np.pi) - np.sqrt(area[1] / np.pi)) * 0.7
        assert thickness == pytest.approx(parameters["wall_mm"], abs=0.15)


def test_the_image_shows_blood_wall_and_tissue_by_their_probabilities():
    parameters = draw_parameters(GRID, VOXEL, np.random.default_rng(3))
    image = render_image(parameters, np.random.default_rng(0))
    inner, outer = _levels(parameters)
    low, high = (parameters["radius_mean_mm"] + k * 3 * parameters["radius_sd_mm"] for k in (-1, 1))
    seen = np.broadcast_to(_sector(parameters) > 0, image.shape)
    blood, tissue = np.median(image[(inner < low) & seen]), np.median(image[(outer > high) & seen])
    assert blood / tissue == pytest.approx(BLOOD / TISSUE, rel=0.1)
    wall = (inner > high) & (outer < low) & seen
    if wall.sum() > 50:  # a blurred boundary may leave none that is certain
        assert np.median(image[wall]) / tissue == pytest.approx(WALL / TISSUE, rel=0.1)
    assert not image[~seen].any()


def test_echo_phantoms_are_sequences_and_the_command_line_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--kind", "echo", "--dims", "2", "--out", str(tmp_path)])
    assert "dims must be 3 for echo phantoms, got 2" in capsys.readouterr().err
    assert main(["--kind", "echo", "--cases", "1", "--shape", "16", "16", "4", "--out", str(tmp_path / "one")]) == 0
