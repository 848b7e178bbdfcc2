"""What an evaluation's rows come to: tables, summaries, coverage, rankings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from scored import AFFINE, RANKS, tiny_bundle, write_case
from tiny import some_calibration

from ldseg.calibration.conformal import VolumeIntervals
from ldseg.data.cohort import Case
from ldseg.data.volume import read_volume
from ldseg.evaluation.evaluate import Scoring, evaluate
from ldseg.metrics.coverage import coverage
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior


def test_tables_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    bundle, broken = tiny_bundle(tmp_path / "b", 2), write_case(tmp_path, "broken", 2)
    broken.image.write_bytes(b"no image")
    cases = [broken, *[write_case(tmp_path, f"case{n}", 2, seed=n) for n in range(3)]]
    result = evaluate(bundle, cases, Draws(1))
    paths = result.write(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(paths)
    rows = pq.read_table(paths["cases.parquet"]).to_pylist()
    assert [row["case"] for row in rows] == ["broken", "case0", "case1", "case2"]
    assert rows[0]["error"] == result.rows[0]["error"] and rows[0]["dice"] is None and rows[1]["error"] is None
    assert [row["dice_organ"] for row in rows[1:]] == [row["dice_organ"] for row in result.rows[1:]]
    summary = json.loads(paths["summary.json"].read_text())
    values = [row["dice_organ"] for row in result.rows[1:]]
    assert summary["metrics"]["dice_organ"]["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert summary["metrics"]["dice_organ"]["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert summary["metrics"]["sample_diversity"]["mean"] is None, "one sample has no pair; JSON has no NaN"
    by_metric = {row["metric"]: row for row in pq.read_table(paths["summary.parquet"]).to_pylist()}
    assert by_metric["dice_organ"]["n"] == 3 and set(by_metric) == set(summary["metrics"])
    assert sum(summary["reliability"]["counts"]) == 3 * 13 * 15


def test_distances_to_a_missed_structure_are_counted_beside_the_mean(tmp_path: Path) -> None:
    bundle, cases = tiny_bundle(tmp_path / "b", 2), [write_case(tmp_path, f"case{n}", 2, seed=n) for n in range(2)]
    volume = read_volume(cases[0].image, case="case0", spatial_dims=2)
    found = set(np.unique(Posterior(bundle).segment(volume, samples=2).label)) - {0}
    empty = np.zeros(volume.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, AFFINE), cases[0].labels[0])
    result = evaluate(bundle, cases, Draws(2))
    name = ("organ", "nodule")[int(min(found)) - 1]
    entry = result.summary["metrics"][f"hd95_{name}_mm"]
    assert result.rows[0][f"hd95_{name}_mm"] == math.inf and entry["infinite"] >= 1 and math.isfinite(entry["mean"])
    assert "1 missed" in result.table()


def test_the_table_has_a_line_for_each_structure_and_the_controls(tmp_path: Path) -> None:
    bundle, control = tiny_bundle(tmp_path / "b", 2), tiny_bundle(tmp_path / "c", 2, deterministic=True)
    table = evaluate(bundle, [write_case(tmp_path, "one", 2, raters=2)], Draws(2), control=control).table()
    lines = table.splitlines()
    assert lines[0].count("mean ± sd") == 1
    assert [line.split()[0] for line in lines[4:7]] == ["organ", "nodule", "mean"]
    for title in (
        "Dice",
        "HD95 mm",
        "agreement",
        "ceiling",
        "control",
        "GED",
        "diversity",
        "denoiser calls",
        "seconds",
    ):
        assert title in table, title
    assert max(len(line) for line in lines) <= 160


def test_the_summary_tells_how_well_the_scores_find_the_bad_cases(tmp_path: Path) -> None:
    bundle, bare = tiny_bundle(tmp_path / "b", 2), write_case(tmp_path, "bare", 2, seed=9)
    cases = [*[write_case(tmp_path, f"case{n}", 2, seed=n) for n in range(4)], Case(name="bare", image=bare.image)]
    result = evaluate(bundle, cases, Draws(2))
    found = json.loads(result.write(tmp_path / "out")["summary.json"].read_text())["failure_detection"]
    assert set(found) >= {"agreement", "soft_dice_confidence", "mean_entropy"}
    for name, sign in (("agreement", -1), ("soft_dice_confidence", -1), ("mean_entropy", 1)):
        pairs = sorted((sign * float(row[name]), 1 - float(row["dice"])) for row in result.rows[:4])
        kept = [np.mean([risk for _, risk in pairs[:k]]) for k in range(1, 5)]
        best = [np.mean(sorted(risk for _, risk in pairs)[:k]) for k in range(1, 5)]
        assert len({score for score, _ in pairs}) == 4, "no ties, or the order is not this one"
        assert found[name]["aurc"] == pytest.approx(np.mean(kept), rel=1e-10) and found[name]["n"] == 4
        assert found[name]["e_aurc"] == pytest.approx(np.mean(kept) - np.mean(best), abs=1e-10)
        assert -1 <= found[name]["spearman"] <= 1
        assert found[name]["worst_decile_risk"] == pytest.approx(pairs[-1][1], rel=1e-10)
    lines = [line for line in result.table().splitlines() if line.startswith("failures by")]
    assert len(lines) == len(found) and f"AURC {found['agreement']['aurc']:.4f}" in lines[0]
    assert "failures by" not in evaluate(bundle, cases[-1:], Draws(2)).table(), "no label, no failure"


@RANKS
def test_rows_tell_whether_the_intervals_hold_the_true_volume(tmp_path: Path, dims: int) -> None:
    bundle, cases = tiny_bundle(tmp_path / "b", dims), [write_case(tmp_path, f"c{n}", dims, seed=n) for n in range(3)]
    unit = "ml" if dims == 3 else "mm2"
    widest = some_calibration(bundle, unit=unit)
    widest = dataclasses.replace(widest, intervals=dataclasses.replace(widest.intervals, quantiles=(1e6, -1e6)))
    calibrated = dataclasses.replace(bundle, calibration=widest)
    result = evaluate(calibrated, [*cases, Case(name="bare", image=cases[0].image)], Draws(3))
    raw = []
    for row in result.rows[:3]:
        for name in ("organ", "nodule"):
            low, high, truth = (row[f"{name}_volume_{unit}_{end}"] for end in ("p05", "p95", "reference"))
            raw.append(int(low <= truth <= high))
            assert row[f"{name}_covered_raw"] == raw[-1]
        assert (row["organ_covered"], row["nodule_covered"]) == (1, 0)
    assert not any("covered" in name for name in result.rows[3]), "no label, nothing to cover"
    found = json.loads(result.write(tmp_path / "out")["summary.json"].read_text())["coverage"]
    assert found["conformal"]["structures"] == {"organ": 1, "nodule": 0} and found["conformal"]["overall"] == 0.5
    assert found["raw"]["overall"] == pytest.approx(np.mean(raw)) and found["raw"]["n"] == 3
    bare = evaluate(bundle, cases, Draws(3))
    assert [row["organ_covered_raw"] for row in bare.rows] == raw[::2] and set(bare.summary["coverage"]) == {"raw"}
    lines = [line for line in result.table().splitlines() if line.startswith("volume in")]
    assert len(lines) == 2 and "50.0% [50.0%, 50.0%] (organ 100.0%, nodule 0.0%)" in lines[1]
    assert max(map(len, lines)) <= 160


def test_the_band_of_a_coverage_is_what_the_promise_allows() -> None:
    """Raw: binomial, summed by hand. Conformal: simulated, calibration sets and new cases drawn together."""
    probability = [math.comb(40, k) * 0.9**k * 0.1 ** (40 - k) for k in range(41)]
    low, high = (next(k for k in range(41) if sum(probability[: k + 1]) >= tail) for tail in (0.025, 0.975))
    rows = [{"organ_covered": int(n < 30), "organ_covered_raw": 1} for n in range(40)] + [{"error": "no image"}]
    intervals = VolumeIntervals(0.1, ("organ",), (0.5,), (1.0,), 20, 8, 4, "sha256:0", "ml")
    found = coverage(rows, ["organ", "nodule"], intervals)
    assert found["raw"]["band"] == [low / 40, high / 40] == [0.8, 0.975]
    assert found["conformal"]["structures"] == {"organ": 0.75} and found["raw"]["overall"] == 1
    generator = np.random.default_rng(0)
    calibration, new = np.sort(generator.random((4000, 20))), generator.random((4000, 40))
    shares = (new <= calibration[:, 18:19]).mean(1)  # the 19th of 20: ceil(21 * 0.9)
    assert found["conformal"]["band"] == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.026)
    assert coverage([{"dice": 0.5}], ["organ"], intervals) == {}


def test_failures_are_also_ranked_by_the_mean_variance_of_the_samples(tmp_path: Path) -> None:
    bundle, cases = tiny_bundle(tmp_path / "b", 2), [write_case(tmp_path, f"c{n}", 2, seed=n) for n in range(2)]
    result = evaluate(bundle, cases, Draws(3))
    volume = read_volume(cases[0].image, case="c0", spatial_dims=2)
    expected = Posterior(bundle).segment(volume, samples=3).sample_variance.mean(dtype=np.float64)
    assert result.rows[0]["sample_variance"] == expected > 0
    wanted = {"agreement", "soft_dice_confidence", "mean_entropy", "sample_variance"}
    assert set(result.summary["failure_detection"]) == wanted


@RANKS
def test_means_have_intervals_over_cases_or_patients_and_ranks_a_histogram(tmp_path: Path, dims: int) -> None:
    bundle = tiny_bundle(tmp_path / "b", dims)
    cases = [write_case(tmp_path, f"c{n}", dims, raters=2, seed=n) for n in range(4)]
    result = evaluate(bundle, cases, Draws(3))
    summary = json.loads(result.write(tmp_path / "out")["summary.json"].read_text())
    for name in ("dice", "energy_score", "nll", "ged", "organ_covered_raw"):
        entry = summary["metrics"][name]
        assert entry["min"] <= entry["mean_low"] <= entry["mean"] <= entry["mean_high"] <= entry["max"], name
    assert 0 <= summary["coverage"]["raw"]["low"] <= summary["coverage"]["raw"]["overall"]
    names = [f"{structure}_{what}_rank" for structure in ("organ", "nodule") for what in ("volume", "boundary")]
    assert set(summary["ranks"]) == {name for name in names if name in summary["metrics"]} >= set(names[::2])
    for name, entry in summary["ranks"].items():
        assert sum(entry["bins"]) == pytest.approx(1) and entry["flat"] == 0.5 and entry["low"] <= entry["high"]
        assert entry["n"] == summary["metrics"][name]["n"] and 0 <= summary["metrics"][name]["mean"] <= 1
    lines = result.table().splitlines()
    dice = summary["metrics"]["dice"]
    assert any(f"[{dice['mean_low']:.3f}, {dice['mean_high']:.3f}]" in line for line in lines[4:7])
    for title in ("energy score", "NLL (nats), model", "GED² of the samples", "volume in 5-95 %", "organ volume rank"):
        assert "[" in next(line for line in lines if line.startswith(title)), title
    assert max(map(len, lines)) <= 160
    one = evaluate(bundle, cases, Draws(3), scoring=Scoring(groups=dict.fromkeys(("c0", "c1", "c2", "c3"), "p")))
    assert math.isnan(one.summary["metrics"]["dice"]["mean_low"]), "one patient says nothing of others"
    assert one.summary["metrics"]["dice"]["mean"] == result.summary["metrics"]["dice"]["mean"]


def test_two_equal_cases_of_each_patient_give_the_intervals_of_half_as_many_cases(tmp_path: Path) -> None:
    """A patient's cases are drawn together: the second of two equal ones adds nothing, and counts as nothing."""
    bundle = tiny_bundle(tmp_path / "b", 2)
    cases = [write_case(tmp_path, f"c{n}", 2, raters=2, seed=n) for n in range(5)]
    patients = [dataclasses.replace(case, patient=f"p{n}") for n, case in enumerate(cases)]
    again = [dataclasses.replace(case, name=f"{case.name}_again") for case in patients]
    half, alone = evaluate(bundle, cases, Draws(3)).summary, evaluate(bundle, patients, Draws(3)).summary
    result = evaluate(bundle, patients + again, Draws(3))
    for name in ("dice", "energy_score", "nll", "ged", "agreement"):
        for end in ("mean", "mean_low", "mean_high"):
            values = [found["metrics"][name][end] for found in (half, alone, result.summary)]
            assert values == pytest.approx([values[0]] * 3, rel=1e-10), name
    assert result.summary["coverage"]["raw"]["low"] == pytest.approx(half["coverage"]["raw"]["low"], rel=1e-10)
    for name, entry in result.summary["ranks"].items():
        assert [entry["low"], entry["high"]] == pytest.approx([half["ranks"][name][k] for k in ("low", "high")])
    assert [row["patient"] for row in result.rows] == [f"p{n}" for n in range(5)] * 2
    assert result.summary["resampled"] == {"what": "patients", "number": 5}
    assert half["resampled"] == alone["resampled"] == {"what": "cases", "number": 5}
    assert "10 cases, 10 labelled, 0 failed" in result.table() and "[95 % of means, over 5 patients]" in result.table()
    by_case = evaluate(bundle, patients + again, Draws(3), scoring=Scoring(groups={}))
    assert "[95 % of means, over 10 cases]" in by_case.table(), "groups that are given win"
    dice = by_case.summary["metrics"]["dice"]
    assert (
        dice["mean_high"] - dice["mean_low"]
        < half["metrics"]["dice"]["mean_high"] - half["metrics"]["dice"]["mean_low"]
    )


def test_unlabelled_and_broken_cases_are_no_patients_that_a_table_counts(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", 2)
    cases = [dataclasses.replace(write_case(tmp_path, f"c{n}", 2, seed=n), patient="pq"[n % 2]) for n in range(4)]
    bare = dataclasses.replace(cases[0], name="bare", labels=(), patient="r")
    broken = dataclasses.replace(write_case(tmp_path, "broken", 2), patient="s")
    broken.image.write_bytes(b"no image")
    result = evaluate(bundle, [*cases, bare, broken], Draws(2))
    assert result.summary["resampled"] == {"what": "patients", "number": 2}
    assert set(result.rows[-1]) == {"case", "error"} and result.rows[-2]["patient"] == "r"
    rows = pq.read_table(result.write(tmp_path / "out")["cases.parquet"]).to_pylist()
    assert [row["patient"] for row in rows] == ["p", "q", "p", "q", "r", None]
