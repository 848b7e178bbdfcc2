"""How often a cohort's true volumes lie in the intervals that were told for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

Row = dict[str, float | int | str]

BAND = 0.95
RAW_LEVEL = 0.9
"""What the 5th to 95th percentile of the samples would cover if the model were calibrated."""

KINDS = {"raw": "_covered_raw", "conformal": "_covered"}


def covered(row: Mapping[str, Any], structures: Sequence[str], unit: str) -> Row:
    """Which intervals of a labelled row hold the true volume, ends included.

    Args:
        row: of `ldseg.evaluation.evaluate`, with {structure}_volume_{unit}_p05, _p95 and _reference, and _low and
            _high where the model is calibrated.

    Returns:
        {structure}_covered_raw, 0 or 1, for the samples' percentiles; {structure}_covered for the conformal interval
        where there is one.
    """
    found: Row = {}
    for name in structures:
        volume = f"{name}_volume_{unit}"
        truth = row[f"{volume}_reference"]
        found[f"{name}_covered_raw"] = int(row[f"{volume}_p05"] <= truth <= row[f"{volume}_p95"])
        if f"{volume}_low" in row:
            found[f"{name}_covered"] = int(row[f"{volume}_low"] <= truth <= row[f"{volume}_high"])
    return found


def coverage(rows: Sequence[Mapping[str, Any]], structures: Sequence[str], alpha: float | None) -> dict[str, Any]:
    """Shares of `covered` over a cohort.

    Args:
        rows: of an evaluation; those without the columns don't count.
        structures: their names.
        alpha: of the conformal intervals, None without them.

    Returns:
        "raw" and, where rows have it, "conformal": level (what is promised), structures (the share for each), overall
        (over all structures and cases), n (cases) and band: between what shares a coverage at exactly `level` would
        lie in 95 % of draws of n cases (binomial). The structures of a case are no independent draws, so that the band
        of `overall` is that of n cases too. The band knows nothing of the luck of the calibration cases.
    """
    levels = {"raw": RAW_LEVEL} | ({} if alpha is None else {"conformal": 1 - alpha})
    return {kind: entry for kind, level in levels.items() if (entry := _shares(rows, structures, KINDS[kind], level))}


def coverage_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each kind of interval, for a terminal."""
    titles = {"raw": "volume in 5-95 % of the samples", "conformal": "volume in the conformal interval"}
    return [
        f"{titles[kind]:<36}{entry['overall']:.1%} ("
        + ", ".join(f"{name} {share:.1%}" for name, share in entry["structures"].items())
        + f"); {entry['level']:.0%} of {entry['n']} cases: {entry['band'][0]:.1%} to {entry['band'][1]:.1%}"
        for kind, entry in found.items()
    ]


def _shares(rows: Sequence[Mapping[str, Any]], structures: Sequence[str], column: str, level: float) -> dict[str, Any]:
    hits = {name: [row[f"{name}{column}"] for row in rows if f"{name}{column}" in row] for name in structures}
    hits = {name: values for name, values in hits.items() if values}
    if not hits:
        return {}
    n = max(len(values) for values in hits.values())
    low, high = binom.interval(BAND, n, level)
    return {
        "level": level,
        "structures": {name: float(np.mean(values)) for name, values in hits.items()},
        "overall": float(np.mean([value for values in hits.values() for value in values])),
        "n": n,
        "band": [float(low) / n, float(high) / n],
    }
