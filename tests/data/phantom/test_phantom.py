"""Phantoms: the draws follow the stated law, and the image shows the parameters."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from ldseg import ROOT
from ldseg.config import DataConfig
from ldseg.data.cohort import read_cohort
from ldseg.data.grid import prepare
from ldseg.data.phantom.case import LOBE, NODULE, ORGAN, _levels, _to_native, draw_parameters, render_image
from ldseg.data.phantom.cohort import PhantomConfig, draw_posterior, read_parameters, write_phantoms
from ldseg.data.volume import read_label, read_volume

GRIDS = {2: ((64, 64), (1.0, 1.0)), 3: ((32, 32, 24), (1.0, 1.0, 1.5))}


def parameters_of(dims: int, seed: int) -> dict:
    return draw_parameters(*GRIDS[dims], np.random.default_rng(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_cohort_is_read_with_its_raters_split_and_oblique_affines(tmp_path, dims):
    config = PhantomConfig(dims=dims, cases=6, raters=3)
    assert write_phantoms(tmp_path, config) == tmp_path / "manifest.csv"
    cohort = read_cohort(tmp_path)
    assert (cohort.spatial_dims, cohort.label_values) == (dims, (0, 1, 2, 3)) and not cohort.problems
    assert cohort.structures == ("organ", "nodule", "lobe")
    assert [len(cohort.split(name)) for name in ("train", "validation", "test")] == [4, 1, 1]
    data = DataConfig(
        spatial_dims=dims, shape=config.grid, label_values=cohort.label_values, structures=cohort.structures
    )
    for case in cohort.cases:
        volume = read_volume(case.image, case=case.name, spatial_dims=dims)
        assert len(case.labels) == 3 and [read_label(file, volume, data).max() for file in case.labels]
        assert np.count_nonzero(np.abs(volume.affine[:3, :3]) > 1e-3) > 6  # oblique
        assert tuple(prepare(volume, data, (8,) * dims).image.shape[1:]) == config.grid
        parameters = read_parameters(tmp_path)[case.name]
        drawn = draw_posterior(parameters, 1, np.random.default_rng(0))
        assert drawn.shape == (1, *volume.shape) and drawn.dtype == np.uint8
        assert sorted(volume.spacing_mm) == pytest.approx(sorted(parameters["spacing_mm"]), rel=1e-5)


def test_same_seed_gives_the_same_files_and_more_cases_keep_the_first(tmp_path):
    for name, cases, seed in (("a", 3, 0), ("b", 5, 0), ("c", 3, 1)):
        write_phantoms(tmp_path / name, PhantomConfig(cases=cases, seed=seed, shape=(16, 16, 16)))

    def voxels(name: str) -> np.ndarray:
        return np.asarray(nib.load(tmp_path / name / "imagesTr/phantom3d_0001.nii.gz").dataobj)

    assert voxels("a").shape == voxels("b").shape and np.array_equal(voxels("a"), voxels("b"))
    assert voxels("a").shape != voxels("c").shape or not np.array_equal(voxels("a"), voxels("c"))
    first, second = (read_parameters(tmp_path / name) for name in "ab")
    assert first == {name: second[name] for name in first}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_follow_the_stated_law(dims, seed):
    parameters, n = parameters_of(dims, seed), 3000
    labels = draw_posterior(parameters, n, np.random.default_rng(9))
    level, nodule, sides = _levels(parameters)
    level, nodule, positive, negative = (_to_native(m, parameters) for m in (level, nodule, *sides))
    tolerance = 4 * 0.5 / np.sqrt(n)  # four standard errors of a share
    # the organ covers a voxel outside the nodule when the radius reaches it
    expected = ndtr((parameters["radius_mean_mm"] - level) / parameters["radius_sd_mm"])
    outside = nodule < 0
    assert np.abs((labels == 1).mean(0) - expected)[outside].max() < tolerance
    present = (labels == 2).any(tuple(range(1, dims + 1)))
    assert abs(present.mean() - parameters["nodule_probability"]) < tolerance
    assert np.array_equal((labels == 2).any(0), (nodule >= 0))
    # one side at a time, with its probability where the organ does not reach
    far = level > parameters["radius_mean_mm"] + 5 * parameters["radius_sd_mm"]
    on_positive, on_negative = ((labels[:, (side >= 0) & far] == 3) for side in (positive, negative))
    assert (
        np.array_equal(on_positive.all(1), on_positive.any(1)) and not (on_positive.any(1) & on_negative.any(1)).any()
    )
    assert abs(on_positive.any(1).mean() - parameters["lobe_positive_side_probability"]) < tolerance


def test_presence_is_correlated_with_the_radius_as_stated():
    parameters, n = parameters_of(3, 4), 4000
    labels = draw_posterior(parameters, n, np.random.default_rng(1))
    present = (labels == 2).any((1, 2, 3))
    # rank of the organ's extent where no nodule can hide it
    level = _to_native(_levels(parameters)[0], parameters)
    radius = np.array([level[(label == 1)].max() for label in labels])
    z = (radius - radius.mean()) / radius.std()
    p = parameters["nodule_probability"]
    # E[u | v > h] = correlation * phi(h) / p for standard normal u, v
    expected = parameters["correlation"] * norm.pdf(norm.ppf(1 - p)) / p
    assert abs(z[present].mean() - expected) < 0.1 and expected > 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_image_shows_the_parameters(dims):
    errors = {"radius": [], "nodule": [], "side": []}
    for seed in range(12):
        parameters = parameters_of(dims, seed)
        image = render_image(parameters, np.random.default_rng(100 + seed))
        level, nodule, sides = _levels(parameters)
        level, nodule, positive, negative = (_to_native(m, parameters) for m in (level, nodule, *sides))
        mean, sd = parameters["radius_mean_mm"], parameters["radius_sd_mm"]
        away = np.maximum(positive, negative) < -1
        tissue = np.median(image[(level > mean + 4 * sd) & away])
        organ = np.median(image[(level < mean - 3 * sd) & (nodule < -1)]) - tissue
        contrast = (image - tissue) / organ * ORGAN
        # on the mean radius the image is half way
        ring = (np.abs(level - mean) < 0.3 * parameters["spacing_mm"][0]) & away & (nodule < -1)
        errors["radius"].append(contrast[ring].mean() / ORGAN - 0.5)
        inner = contrast[(nodule > 0.7) & (level < mean - 3 * sd)]
        errors["nodule"].append((inner.mean() - ORGAN) / NODULE - parameters["nodule_probability"])
        clear = level > mean + 3 * sd
        share = contrast[(positive > 0.7) & clear].mean() / LOBE
        errors["side"].append(share - parameters["lobe_positive_side_probability"])
    for name, values in errors.items():
        assert np.sqrt(np.mean(np.square(values))) < 0.08, (name, values)


def test_labels_do_not_depend_on_the_image_noise(tmp_path):
    write_phantoms(tmp_path, PhantomConfig(cases=1, raters=1, shape=(16, 16, 16)))
    name, parameters = next(iter(read_parameters(tmp_path).items()))
    streams = np.random.SeedSequence((0, 3, 0)).spawn(3)
    expected = draw_posterior(parameters, 1, np.random.default_rng(streams[2]))[0]
    assert np.array_equal(np.asarray(nib.load(tmp_path / f"labelsTr/{name}_rater1.nii.gz").dataobj), expected)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ldseg.data.phantom", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_command_line_writes_a_cohort_and_names_its_manifest(tmp_path):
    done = run("--out", str(tmp_path / "p"), "--dims", "2", "--cases", "4", "--raters", "2", "--shape", "32", "24")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(tmp_path / "p" / "manifest.csv"), "")
    assert [len(case.labels) for case in read_cohort(tmp_path / "p").cases] == [2] * 4
    assert next(iter(json.loads((tmp_path / "p" / "phantom.json").read_text()).values()))["shape"] == [32, 24]


def test_progress_is_shown_on_a_terminal(tmp_path):
    reader, writer = os.openpty()
    command = [sys.executable, "-m", "ldseg.data.phantom", "--out", str(tmp_path), "--dims", "2", "--cases", "3"]
    subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, check=True, timeout=120, cwd=ROOT)
    os.close(writer)
    shown = os.read(reader, 4096).decode()
    os.close(reader)
    assert [f"{done} of 3 cases" in shown for done in (1, 2, 3)] == [True] * 3


def test_command_line_explains_itself_and_its_faults(tmp_path):
    shown = run("--help").stdout
    assert "default: 40" in shown and "example: python -m ldseg.data.phantom" in shown
    for faulty, sentence in (
        (("--dims", "4"), "dims must be 2 or 3"),
        (("--shape", "8", "8", "8"), "at least 16 voxels"),
    ):
        done = run("--out", str(tmp_path), *faulty)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_reading_parameters_of_another_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="is no phantom cohort"):
        read_parameters(tmp_path)
