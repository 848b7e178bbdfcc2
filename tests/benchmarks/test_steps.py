"""Samplers side by side: a row for each, and the best of them by the energy score."""

import subprocess
import sys

import pyarrow.parquet as pq
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.data.cohort import read_cohort


def test_every_schedule_scale_and_number_of_steps_is_a_row_and_the_best_is_named(phantoms, tmp_path):
    structures = read_cohort(phantoms).structures
    random_bundle(tmp_path / "model", tiny_config(2, structures))
    options = ["--samples", "2", "--limit", "2", "--split", "all", "--steps", "1", "2", "--noise-scale", "1", "1.5"]
    options += ["--schedule", "even", "quadratic", "--method", "dpm++2m", "--out", tmp_path / "out"]
    command = [sys.executable, "benchmarks/quality/steps.py", "--model", tmp_path / "model", "--data", phantoms]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "steps.parquet").to_pylist()
    assert [(r["schedule"], r["noise_scale"], r["steps"]) for r in rows] == [
        (schedule, scale, steps) for schedule in ("even", "quadratic") for scale in (1.0, 1.5) for steps in (1, 2)
    ]
    assert {r["method"] for r in rows} == {"dpm++2m"} and all(0 <= r["raw_coverage"] <= 1 for r in rows)
    assert rows[1]["sample_distance"] != rows[3]["sample_distance"], "one step sees no noise, two do"
    best = min(rows, key=lambda r: r["energy_score"])
    assert done.stdout.splitlines()[-1] == (
        f"best energy score: {best['energy_score']:.4f} with dpm++2m, {best['schedule']}, "
        f"noise_scale {best['noise_scale']:g}, {best['steps']} steps"
    )
