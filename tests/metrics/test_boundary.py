"""Calibration near the boundary and of each structure, against fields whose calibration is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ldseg.metrics.boundary import Reliability, StructureCalibration, boundary_band, probability_scores
from ldseg.pictures.reliability import draw_reliability

STEPS = np.array([0.25, 0.5, 0.75])  # probability of the three columns where the boundary may lie


def columns(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Half-planes whose boundary lies, row by row, at one of four places: labels and their true probability."""
    shift = np.random.default_rng(seed).integers(0, 4, rows)
    label = (np.arange(40) >= 17 + shift[:, None]).astype(np.uint8)
    truth = np.concatenate([np.zeros(17), STEPS, np.ones(20)])
    return label, np.broadcast_to(truth, (rows, 40)).copy()


def test_the_band_is_what_distances_of_all_pairs_say() -> None:
    generator = np.random.default_rng(0)
    label = np.zeros((9, 8, 7), np.uint8)
    label[3:6, 2:5, 2:6], label[4, 3, 3] = 1, 2
    label[tuple(generator.integers(0, n) for n in label.shape)] = 1
    spacing = (0.7, 1.1, 1.9)
    points = np.argwhere(np.ones_like(label))
    edge = [p for p in points if any(
        0 <= p[a] + s < label.shape[a] and label[tuple(p)] != label[tuple(p + s * np.eye(3, dtype=int)[a])]
        for a in range(3) for s in (-1, 1)
    )]  # fmt: skip
    distance = np.sqrt((((points[:, None] - np.array(edge)[None]) * spacing) ** 2).sum(-1)).min(1)
    expected = (distance <= 1.5).reshape(label.shape)
    assert np.array_equal(boundary_band([label], spacing, 1.5), expected) and 0 < expected.sum() < label.size
    assert np.array_equal(boundary_band([label], spacing, 0), (distance == 0).reshape(label.shape))


@pytest.mark.parametrize("width", [0, 1.4, 3])
def test_slabs_give_the_band_of_the_whole(width: float) -> None:
    label = (np.random.default_rng(1).random((23, 11, 9)) > 0.995).astype(np.uint8)
    whole = boundary_band([label], (0.7, 1.0, 1.3), width)
    for voxels in (1, 99, 250):
        assert np.array_equal(boundary_band([label], (0.7, 1.0, 1.3), width, voxels_at_once=voxels), whole)


def test_the_band_holds_every_raters_boundary_on_both_sides_and_no_edge_of_the_image() -> None:
    one, other, full = (np.zeros(12, np.uint8) for _ in range(3))
    one[4:], other[9:], full[:] = 1, 1, 1
    assert np.flatnonzero(boundary_band([one], (1.0,), 1)).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(boundary_band([one, other], (1.0,), 1)).tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert np.flatnonzero(boundary_band([one], (5.0,), 2)).tolist() == [3, 4], "thick slices keep their boundary"
    assert not boundary_band([full], (1.0,), 3).any()
    for labels, spacing, width in (([], (1.0,), 1), ([one], (1.0, 1.0), 1), ([one], (0.0,), 1), ([one], (1.0,), -1)):
        with pytest.raises(ValueError, match="spacing|width"):
            boundary_band(labels, spacing, width)


def test_along_time_there_is_no_near() -> None:
    film = np.zeros((10, 10, 3), np.uint8)
    film[4:, :, 1] = 1
    band = boundary_band([film], (1.0, 1.0, math.inf), 1)
    assert not band[..., [0, 2]].any()
    assert np.array_equal(band[..., 1], boundary_band([film[..., 1]], (1.0, 1.0), 1))


def test_a_calibrated_field_has_no_error_near_the_boundary_and_an_overconfident_one_its_known_gap() -> None:
    """The columns of 0.25 and 0.75 are made half as far from 0 and 1 as they should be: off by 0.125; that of 0.5 is
    right. In 20000 rows a column's hits have a standard deviation of 71 voxels at most, so three of them 3 * 71."""
    label, truth = columns(20_000, 0)
    band = boundary_band([label], (1.0, 1.0), 2)
    assert band[:, 17:20].all(), "the choice of voxels knows nothing of how a row was drawn"
    calibrated, found = probability_scores(truth[None], [label], band, ["organ"])
    assert calibrated["ece_boundary"] < 3 * 3 * 71 / band.sum() < 0.005
    assert calibrated["ece_organ"] < 3 * 3 * 71 / label.sum()
    sharp = np.where(truth < 0.5, truth / 2, np.where(truth > 0.5, (1 + truth) / 2, truth))
    known, everywhere = 2 * 20_000 * 0.125, label.size
    scores = probability_scores(sharp[None], [label], band, ["organ"])[0]
    assert scores["ece_boundary"] == pytest.approx(known / band.sum(), abs=0.002)
    assert scores["ece"] == pytest.approx(known / everywhere, abs=0.002) and scores["ece"] < scores["ece_boundary"] / 2
    mass = np.maximum(sharp, label).sum()
    assert scores["ece_organ"] == pytest.approx(known / mass, abs=0.002)
    assert scores["nll_boundary"] > calibrated["nll_boundary"] > calibrated["nll"] > 0
    assert found.boundary.counts.sum() == band.sum()
    own = np.where(label == 1, truth, 1 - truth)[band]
    assert calibrated["nll_boundary"] == pytest.approx(-np.log(own).mean(), rel=1e-10)
    assert calibrated["brier_boundary"] == pytest.approx((2 * (1 - own) ** 2).mean(), rel=1e-10)


def test_background_dilutes_the_error_of_no_structure() -> None:
    label, truth = columns(500, 1)
    sharp, wide = np.clip(2 * truth - 0.5, 0, 1), ((0, 0), (300, 0))
    small = probability_scores(sharp[None], [label], np.ones_like(label, bool), ["organ"])[0]
    padded = np.pad(label, wide), np.pad(sharp, wide)
    large = probability_scores(padded[1][None], [padded[0]], np.ones_like(padded[0], bool), ["organ"])[0]
    assert large["ece_organ"] == pytest.approx(small["ece_organ"], rel=1e-10) and large["ece"] < small["ece"] / 5


def test_a_structures_error_runs_from_0_to_1_and_needs_a_probability_or_a_label() -> None:
    p, label = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0, 1, 1, 0])
    right, wrong, missed = (StructureCalibration() for _ in range(3))
    right.add(p, label)
    wrong.add(p, 1 - label)
    missed.add(np.zeros(4), label)
    assert (right.error, wrong.error, missed.error) == (0, 1, 1) and math.isnan(StructureCalibration().error)
    empty = probability_scores(np.zeros((1, 5)), [np.zeros(5, int)], np.zeros(5, bool), ["organ"])[0]
    assert all(math.isnan(empty[name]) for name in ("ece_boundary", "nll_boundary", "brier_boundary", "ece_organ"))


def test_merged_shards_are_the_whole_to_the_last_bit() -> None:
    """Probabilities in 64ths: sums of them are exact in float64, whatever the order."""
    generator = np.random.default_rng(3)
    p = generator.multinomial(64, [0.5, 0.3, 0.2], size=(30, 20)).transpose(2, 0, 1)[1:] / 64
    labels = generator.integers(0, 3, (2, 30, 20))
    band = generator.random((30, 20)) < 0.4
    whole, merged = Reliability.create(2), Reliability.create(2)
    for label in labels:
        whole.add(p, label, band)
        for rows in (slice(21, 30), slice(0, 8), slice(8, 21)):
            part = Reliability.create(2)
            part.add(p[:, rows], label[rows], band[rows])
            merged.merge(part)
    for one, other in zip(
        [whole.everywhere, whole.boundary, *[s.bins for s in whole.structures]],
        [merged.everywhere, merged.boundary, *[s.bins for s in merged.structures]],
        strict=True,
    ):
        for name in ("counts", "hits", "confidence"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert [s.mass for s in whole.structures] == [s.mass for s in merged.structures]
    assert whole.boundary.counts.sum() == 2 * band.sum()


def test_the_diagram_has_a_second_curve_for_the_boundary(tmp_path: Path) -> None:
    label, truth = columns(50, 0)
    found = probability_scores(truth[None], [label], boundary_band([label], (1.0, 1.0)), ["organ"])[1]

    def content(bins: object) -> dict[str, object]:
        return {name: getattr(bins, name) for name in ("counts", "hits", "confidence")} | {"ece": bins.error}

    alone = draw_reliability(content(found.everywhere), tmp_path / "alone.png")
    both = draw_reliability(content(found.everywhere) | {"boundary": content(found.boundary)}, tmp_path / "both.png")
    assert both.read_bytes().startswith(b"\x89PNG") and both.read_bytes() != alone.read_bytes()
