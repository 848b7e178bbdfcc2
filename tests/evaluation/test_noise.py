import dataclasses

import numpy as np
import pytest
from tiny import random_bundle, tiny_config

from ldseg.data.cohort import read_cohort
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.data.volume import read_volume
from ldseg.evaluation.damage import add_noise, read_levels, robustness, robustness_table, write_robustness
from ldseg.posterior.draws import Draws


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomConfig(dims=2, cases=3, raters=1, shape=(32, 32)))
    return read_cohort(folder)


def test_noise_has_the_asked_share_of_the_range_and_a_case_has_its_own(phantoms):
    one, two = (read_volume(case.image, case=case.name, spatial_dims=2) for case in phantoms.cases[:2])
    big = dataclasses.replace(one, array=np.tile(one.array, (1, 20, 20)))
    added = add_noise(big, 0.1).array - big.array
    assert added.std() == pytest.approx(0.1 * float(np.ptp(big.array)), rel=0.01)
    assert abs(added.mean()) < 0.01 * np.ptp(big.array)
    assert np.array_equal(add_noise(one, 0.1).array, add_noise(one, 0.1).array)
    assert not np.array_equal(add_noise(one, 0.1).array, add_noise(one, 0.1, seed=1).array)
    shares = [(add_noise(v, 0.1).array - v.array) / np.ptp(v.array) for v in (one, two)]
    assert abs(np.corrcoef(shares[0].ravel(), shares[1].ravel())[0, 1]) < 0.2
    assert add_noise(one, 0.0) is one


def test_levels_are_a_range_with_both_ends_or_a_list():
    assert read_levels("0:0.2:0.02") == pytest.approx([0.02 * i for i in range(11)])
    assert read_levels("0,0.05,0.1") == [0, 0.05, 0.1]
    for wrong in ("", "a", "0:0.2", "0:0.2:0", "0.2:0:0.1", "-1,0", "nan", "0:1:1e-9"):
        with pytest.raises(ValueError, match="START:STOP:STEP"):
            read_levels(wrong)


def test_every_level_is_scored_on_the_same_cases_beside_the_control(phantoms, tmp_path):
    config = tiny_config(2, phantoms.structures)
    bundle = random_bundle(tmp_path / "model", config)
    control = random_bundle(tmp_path / "control", config.with_overrides({"loss.deterministic": True}))
    rows = robustness(bundle, phantoms.cases[:2], [0.0, 0.3], Draws(2), control=control)
    assert [(row["sigma"], row["cases"]) for row in rows] == [(0.0, 2), (0.3, 2)]
    assert rows[0]["nll"] != rows[1]["nll"] and rows[0]["control_nll"] != rows[1]["control_nll"]
    text = robustness_table(rows)
    assert text.count("\n") == 3 and f"{rows[1]['control_dice']:.3f}" in text
    paths = write_robustness(rows, tmp_path)
    assert paths["noise.png"].read_bytes().startswith(b"\x89PNG") and paths["noise.parquet"].stat().st_size > 500
