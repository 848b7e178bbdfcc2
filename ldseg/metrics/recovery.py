"""Do samples follow a distribution that is known? Sizes, presence, modes and their correlations, one case at a time.

Every number here is not zero even for exact draws, because there are only K of them. So `recovery` gives each one a
second time for K fresh draws of the truth: what can be expected at best.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import ks_2samp

from ldseg import columns

TWO_MODES = 2.0  # voxels, standard deviation of the true centroids from which on a structure has more than one place


def crps(draws: np.ndarray, values: np.ndarray) -> float:
    """Mean continuous ranked probability score of `values` under the distribution of `draws`, in their unit.

    E|X - y| - E|X - X'| / 2 with the pairs of distinct draws (Zamo & Naveau 2018, the fair estimator), so that its
    expectation does not depend on the number of draws; one draw scores its absolute error.
    """
    draws = np.asarray(draws, dtype=np.float64)
    error = np.abs(draws[:, None] - np.asarray(values, dtype=np.float64)[None]).mean()
    pairs = np.abs(draws[:, None] - draws[None]).sum()
    return float(error - pairs / max(2 * len(draws) * (len(draws) - 1), 1))


def recovery(
    samples: np.ndarray, fresh: np.ndarray, structures: Sequence[str], voxel_size: float = 1.0
) -> dict[str, float]:
    """How the samples of one case compare with the true distribution of its labels.

    Args:
        samples: (K, *grid) class indices, 0 background.
        fresh: (K + N, *grid) fresh draws of the truth: the last N stand for the true distribution, the first K for
            the best that K samples can do. N of a few hundred is enough.
        structures: the names of the classes from 1.
        voxel_size: of one grid voxel, in the unit that sizes are wanted in.

    Returns:
        For each structure {name}_size_ks, {name}_size_crps (in the unit of `voxel_size`), {name}_size_sd (of the draws
        over that of the truth; NaN if it is constant in truth), {name}_presence_error (|share of draws that have it -
        true share|) and {name}_mode_error (the same for the share on one side of the true centroids' mean, along
        their main axis: two modes are told apart by it; NaN where they spread by less than `TWO_MODES`), and for each
        pair {a}_{b}_size_correlation, of the size of a and b together (b may lie inside a) with that of b (NaN if one
        is constant). Each a second time with "_truth" for the K fresh draws.
    """
    count = len(samples)
    if len(fresh) < count + 2:
        raise ValueError(f"recovery needs more than {count + 1} fresh draws for {count} samples, got {len(fresh)}")
    own = _compare(samples, fresh[count:], structures, voxel_size)
    best = _compare(fresh[:count], fresh[count:], structures, voxel_size)
    return {key: value for name in own for key, value in ((name, own[name]), (columns.truth(name), best[name]))}


def recovery_lines(means: Mapping[str, float], structures: Sequence[str]) -> list[str]:
    """The cohort's mean numbers as a table for a terminal, each beside that of fresh true draws; [] if there are none.

    Args:
        means: of the columns that `recovery` gives.
        structures: in the order of the classes.
    """
    if columns.quality(structures[0], "size_ks") not in means:
        return []
    titles = {
        "size KS": "size_ks", "size CRPS": "size_crps", "size sd / true sd": "size_sd",
        "presence error": "presence_error", "mode error": "mode_error",
    }  # fmt: skip

    def cell(name: str) -> str:
        values = [means.get(key, np.nan) for key in (name, columns.truth(name))]
        return "-" if np.isnan(values).all() else " / ".join(f"{value:.3f}" for value in values)

    rows = [["samples / fresh draws", *titles]]
    rows += [[name, *[cell(columns.quality(name, column)) for column in titles.values()]] for name in structures]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    pairs = [columns.quality(f"{a}_{b}", "size_correlation") for a, b in itertools.combinations(structures, 2)]
    text += [f"{pair.replace('_', ' ')}: {cell(pair)}" for pair in pairs if pair in means]
    return ["", "the known posterior, recovered:", *text]


def _compare(
    draws: np.ndarray, reference: np.ndarray, structures: Sequence[str], voxel_size: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    sizes = []
    for index, name in enumerate(structures, start=1):
        masks, truth = draws == index, reference == index
        own, other = (m.reshape(len(m), -1).sum(1) * voxel_size for m in (masks, truth))
        sizes.append(own)
        found[columns.quality(name, "size_ks")] = float(ks_2samp(own, other, method="asymp").statistic)
        found[columns.quality(name, "size_crps")] = crps(own, other)
        spread = float(other.std(ddof=1))
        found[columns.quality(name, "size_sd")] = float(own.std(ddof=1)) / spread if spread and len(own) > 1 else np.nan
        found[columns.quality(name, "presence_error")] = abs(float((own > 0).mean() - (other > 0).mean()))
        found[columns.quality(name, "mode_error")] = _mode_error(masks, truth)
    for (a, x), (b, y) in itertools.combinations(zip(structures, sizes, strict=True), 2):
        varies = len(x) > 1 and (x + y).std() > 0 and y.std() > 0
        found[columns.quality(f"{a}_{b}", "size_correlation")] = (
            float(np.corrcoef(x + y, y)[0, 1]) if varies else np.nan
        )
    return found


def _mode_error(masks: np.ndarray, truth: np.ndarray) -> float:
    """|share of the draws on one side - true share| among those that have the structure; 1 if none of them has it."""
    own, other = _centroids(masks), _centroids(truth)
    if not len(other):
        return np.nan
    middle = other.mean(0)
    _, lengths, axes = np.linalg.svd(other - middle, full_matrices=False)
    if lengths[0] / len(other) ** 0.5 < TWO_MODES:
        return np.nan
    if not len(own):
        return 1.0
    axis = axes[0]
    return abs(float(((own - middle) @ axis > 0).mean() - ((other - middle) @ axis > 0).mean()))


def _centroids(masks: np.ndarray) -> np.ndarray:
    """(masks that are not empty, dims) in voxels."""
    return np.array([np.argwhere(mask).mean(0) for mask in masks if mask.any()])
