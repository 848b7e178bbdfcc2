"""Segmenting in this process: the files, and the summary that is put together from them again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from service import write_image
from tiny import random_bundle, some_calibration, tiny_config

from ldseg.bundle import load_bundle
from ldseg.calibration.familiarity import Judgement
from ldseg.calibration.file import save_calibration
from ldseg.data.cohort import Case
from ldseg.data.formats.scaled import Scale
from ldseg.data.volume import read_volume
from ldseg.pictures.case import _volume
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.results.segment import load_summary, segment_here

NAMES = ("organ", "nodule")


@pytest.mark.parametrize("case", ["head 1", "sub-01_T1w"])
def test_a_summary_read_from_its_files_is_the_one_that_was_written(tmp_path: Path, case: str) -> None:
    bundle = random_bundle(tmp_path / "bundle", tiny_config(3, NAMES))
    image = write_image(tmp_path / "image.nii.gz")
    rows = segment_here(bundle, [Case(name=case, image=image)], Draws(3, None, 7), tmp_path / "out", lambda *_: None)
    assert rows.to_pylist()[0]["state"] == "done"
    folder = tmp_path / "out" / "maps" / case
    document = json.loads((tmp_path / "out" / "cases" / f"{case}.json").read_text())
    assert {path.name for path in folder.iterdir()} == {entry["name"] for entry in document["files"].values()}
    assert (folder.parent / "dataset_description.json").is_file()
    model = {"structures": NAMES, "spatial_dims": 3, "in_channels": 1}
    volume, found = load_summary(tmp_path / "out", Case(name=case, image=image), model)
    made = Posterior(bundle).segment(read_volume(image, case=case, spatial_dims=3), samples=3, seed=7)
    assert volume.content_digest == read_volume(image, case=case, spatial_dims=3).content_digest
    assert np.array_equal(found.label, made.label) and found.label.dtype == made.label.dtype
    for name, highest in (("mean_probability", 1.0), ("predictive_entropy", math.log(3)), ("sample_variance", 2 / 3)):
        assert np.abs(getattr(found, name) - getattr(made, name)).max() <= Scale(highest).step / 2 + 1e-6, name
    for name in ("agreement", "soft_dice_confidence", f"{NAMES[0]}_soft_dice_confidence"):
        assert found.numbers()[name] == made.numbers()[name], name


def test_the_interval_with_a_promise_comes_first_in_the_sidecar_and_is_read_back(tmp_path: Path) -> None:
    bare = random_bundle(tmp_path / "bundle", tiny_config(3, NAMES))
    save_calibration(bare.path, some_calibration(bare))
    image = write_image(tmp_path / "image.nii.gz")
    case, out = Case(name="a", image=image), tmp_path / "out"
    row = segment_here(load_bundle(bare.path), [case], Draws(3, None, 7), out, lambda *_: None).to_pylist()[0]
    ends = (row["organ_volume_ml_low"], row["organ_volume_ml_high"])
    organ = json.loads((out / "maps" / "a" / "a_dseg.json").read_text())["Structures"][0]
    assert list(organ)[4:6] == ["Interval", "SamplePercentiles"]
    assert organ["Interval"] == {"Low": ends[0], "High": ends[1], "Promised": True, "Coverage": 0.9}
    _, found = load_summary(out, case, {"structures": NAMES, "spatial_dims": 3, "in_channels": 1})
    assert found.interval("organ") == ends and not found.unfamiliar
    strange = dataclasses.replace(found, judgement=Judgement(9.0, 0.01, True))
    assert [_volume(one, "organ").split()[1] for one in (found, strange)] == ["calibrated", "not"]
    assert "5th to 95th percentile" in _volume(found, "organ")
