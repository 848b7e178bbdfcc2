"""The names of columns, and what is said of each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny import random_bundle, some_calibration, tiny_config

from ldseg import columns
from ldseg.columns import COLUMNS, describe
from ldseg.data.cohort import read_cohort
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.evaluation.cases import known_posterior
from ldseg.evaluation.evaluate import Scoring, evaluate
from ldseg.posterior.draws import Draws


def test_every_column_of_an_evaluation_is_described(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "phantoms", PhantomConfig(dims=2, cases=4, raters=3, shape=(32, 32)))
    cohort = read_cohort(tmp_path / "phantoms")
    config = tiny_config(2, cohort.structures).with_overrides({"sampler.image_share": 0.5})
    bundle = random_bundle(tmp_path / "b", config)
    bundle = dataclasses.replace(bundle, calibration=some_calibration(bundle))
    control = random_bundle(tmp_path / "c", config.with_overrides({"loss.deterministic": True}))
    scoring = Scoring(known_posterior(tmp_path / "phantoms"))
    cases = [dataclasses.replace(cohort.cases[0], patient="p")]
    row = evaluate(bundle, cases, Draws(3), control=control, scoring=scoring).rows[0]
    assert [name for name in row if describe(name) is None] == [] and row["patient"] == "p"
    assert {"label_difference", "mean_dice"} <= set(row)
    assert describe("organ_volume_mm2_p50").meaning.startswith("median") and describe("hd95_organ_mm").unit == "mm"
    assert describe("ged_truth").where != describe("ged").where and describe("anything") is None


def test_no_column_is_described_twice() -> None:
    names = [column.name_pattern for column in COLUMNS]
    assert len(set(names)) == len(names) and all(column.meaning and column.where for column in COLUMNS)


@pytest.mark.parametrize("structure", ["organ", "left_volume_ml", "left ventricle/apex"])
def test_the_column_of_a_volume_is_taken_apart_as_it_was_composed(structure: str) -> None:
    for what in (*map(columns.percentile, columns.PERCENTILES), columns.LOW, columns.HIGH, columns.REFERENCE):
        assert columns.read_volume_column(columns.volume(structure, "ml", what)) == (structure, "ml", what)
    assert columns.read_volume_column("dice_organ") is None
    assert columns.stage_of(columns.seconds("read")) == "read" and columns.stage_of("seconds") == ""
