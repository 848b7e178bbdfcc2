"""A case's files: what other programs read, the same bytes again, single samples to flip through."""

import csv
import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from posteriors import DIMS, _posterior, _volume, samples_of
from tiny import random_bundle, tiny_config

from ldseg.config import DataConfig
from ldseg.data.formats.scaled import Scale
from ldseg.data.grid import Geometry, label_to_grid, prepare
from ldseg.data.volume import read_values, read_volume
from ldseg.posterior.accumulator import PosteriorAccumulator, grid_classes
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import kept_samples, write_summary

NAMES = ("organ", "nodule")


def drawn(tmp_path, dims, keep, samples=5):
    posterior, volume = _posterior(tmp_path, dims), _volume(tmp_path, dims)
    case = posterior.draw(volume, Draws(samples))
    return posterior, case.grid, posterior.summarise(case, keep_samples=keep), case.embedding


@DIMS
def test_maps_are_read_back_to_half_a_step_under_their_bids_names(tmp_path, dims):
    _, grid, summary, _ = drawn(tmp_path, dims, 2)
    paths = write_summary(summary, tmp_path / "out", grid.volume, NAMES)
    assert {key: path.name for key, path in paths.items()} == {
        "label": "a_dseg.nii.gz",
        "entropy": "a_desc-entropy_uncertainty.nii.gz",
        "variance": "a_desc-variance_uncertainty.nii.gz",
        "prob-organ": "a_label-organ_probseg.nii.gz",
        "prob-nodule": "a_label-nodule_probseg.nii.gz",
        "sample-0": "a_desc-sample0_dseg.nii.gz",
        "sample-1": "a_desc-sample1_dseg.nii.gz",
        "lookup": "a_dseg.tsv",
        "sidecar": "a_dseg.json",
    }
    reals = {
        "entropy": (summary.predictive_entropy, np.log(3)),
        "variance": (summary.sample_variance, 2 / 3),
        "prob-organ": (summary.mean_probability[0], 1.0),
        "prob-nodule": (summary.mean_probability[1], 1.0),
    }
    for key, (array, highest) in reals.items():
        found = nib.load(paths[key]).get_fdata()
        assert np.abs(found.reshape(array.shape) - array).max() <= Scale(highest).step / 2 * (1 + 1e-6)
        assert np.array_equal(read_values(paths[key], case="a"), found)
    integers = {"label": summary.label, "sample-0": summary.samples[0], "sample-1": summary.samples[1]}
    for key, array in integers.items():
        image = nib.load(paths[key])
        assert image.get_data_dtype() == np.uint8 and image.dataobj.slope == 1
        assert np.array_equal(np.asarray(image.dataobj).reshape(array.shape), array)


def test_the_sidecar_tells_how_the_case_was_drawn_and_what_each_file_holds(tmp_path):
    _, grid, summary, _ = drawn(tmp_path, 3, 1)
    paths = write_summary(summary, tmp_path / "out", grid.volume, NAMES)
    told = json.loads(paths["sidecar"].read_text())
    wanted = {"Case": "a", "Model": summary.model_digest, "Samples": 5, "Steps": 3, "Seed": 0}
    assert wanted.items() <= told.items() and told["Image"] == grid.volume.content_digest
    organ = told["Structures"][0]
    assert (organ["Name"], organ["Index"], organ["Unit"]) == ("organ", 1, "ml")
    assert organ["SampleVolumes"] == pytest.approx(summary.volumes["organ"].tolist(), rel=0)
    assert organ["SamplePercentiles"]["95"] == summary.numbers()["organ_volume_ml_p95"]
    assert set(told["Maps"]) == {path.name for key, path in paths.items() if key not in ("lookup", "sidecar")}
    entropy = told["Maps"]["a_desc-entropy_uncertainty.nii.gz"]
    assert entropy["Key"] == "entropy" and entropy["Step"] == nib.load(paths["entropy"]).dataobj.slope
    with paths["lookup"].open(newline="") as file:
        rows = [(row["index"], row["name"]) for row in csv.DictReader(file, delimiter="\t")]
    assert rows == [("0", "background"), ("1", "organ"), ("2", "nodule")]


def test_a_case_drawn_twice_has_the_same_bytes_in_every_file(tmp_path):
    contents = []
    for name in ("one", "two"):
        posterior = _posterior(tmp_path / name, 3)
        volume = _volume(tmp_path / name, 3)
        summary = posterior.segment(volume, samples=3)
        summary.seconds["read"] += 1.0  # times differ from one drawing to the next
        paths = write_summary(summary, tmp_path / name / "out", volume, NAMES)
        contents.append({key: path.read_bytes() for key, path in paths.items()})
    assert contents[0] == contents[1]


def test_structures_of_any_name_get_names_that_every_file_system_takes(tmp_path):
    names = ("left ventricle/apex", "Left-Ventricle apex")
    bundle = random_bundle(tmp_path / "b", tiny_config(3, names))
    volume = _volume(tmp_path, 3)
    summary = Posterior(bundle).segment(volume, samples=2)
    paths = write_summary(summary, tmp_path / "out", volume, names)
    assert paths["prob-left ventricle/apex"].name == "a_label-leftventricleapex_probseg.nii.gz"
    assert paths["prob-Left-Ventricle apex"].name == "a_label-LeftVentricleapexx2_probseg.nii.gz"
    assert names[0] in paths["lookup"].read_text()
    assert [entry["Name"] for entry in json.loads(paths["sidecar"].read_text())["Structures"]] == list(names)


@DIMS
def test_kept_samples_are_the_samples(tmp_path, dims):
    posterior, grid, summary, embedding = drawn(tmp_path, dims, 3)
    assert grid.geometry.is_exact, "so that nothing is interpolated"
    expected = samples_of(posterior, grid, embedding, seed=0, indices=range(3)) * grid.inside
    assert np.array_equal(summary.samples, grid.to_native(expected))
    assert len({sample.tobytes() for sample in summary.samples}) == 3
    assert drawn(tmp_path / "more", dims, 9)[2].samples.shape[0] == 5, "no more than there are"
    assert drawn(tmp_path / "none", dims, 0)[2].samples is None
    with pytest.raises(ValueError, match="at least 0"):
        drawn(tmp_path / "bad", dims, -1)


def test_kept_samples_take_the_label_maps_way_where_the_grid_is_another(tmp_path):
    """Of one sample the label map is the sample: both resample the classes and take the largest."""
    affine = np.diag((0.9, 1.3, 2.1, 1.0))
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 17, 9)).astype(np.float32), affine)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=3)
    data = DataConfig(shape=(16, 16, 16), spacing_mm=(1.2, 1.2, 1.2), label_values=(0, 5, 300), structures=("a", "b"))
    grid = prepare(volume, data, (8, 8, 8))
    native = np.zeros(volume.shape, np.uint8)
    native[4:12, 3:13, 1:7], native[6:9, 5:9, 2:5] = 1, 2
    classes = label_to_grid(native, grid)
    one_hot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()
    accumulator = PosteriorAccumulator.create(3, tuple(classes.shape), grid.inside)
    accumulator.add(one_hot[None])
    assert not grid.geometry.is_exact and torch.equal(grid_classes(accumulator, 0).long(), classes)
    kept = kept_samples(grid, accumulator, 1, data.label_values)
    expected = np.asarray(data.label_values)[grid.to_native(accumulator.mean_probability()).argmax(0)]
    assert kept.dtype == np.int16 and np.array_equal(kept[0], expected) and set(np.unique(kept)) == {0, 5, 300}


def test_maps_are_resampled_once_whatever_the_number_of_samples(tmp_path, monkeypatch):
    counts, resample = [], Geometry.resample_back

    def counted(self, maps):
        counts.append(len(maps))
        return resample(self, maps)

    monkeypatch.setattr(Geometry, "resample_back", counted)
    for samples in (1, 12):
        _posterior(tmp_path / str(samples), 3).segment(_volume(tmp_path, 3), samples=samples)
    assert counts == [5, 5], "three classes, entropy and variance"


def test_a_summary_without_label_values_counts_from_zero(tmp_path):
    _, grid, summary, _ = drawn(tmp_path, 3, 0)
    old = dataclasses.replace(summary, label_values=())
    first = write_summary(old, tmp_path / "old", grid.volume, NAMES)
    second = write_summary(summary, tmp_path / "new", grid.volume, NAMES)
    assert all(first[key].read_bytes() == second[key].read_bytes() for key in first)
