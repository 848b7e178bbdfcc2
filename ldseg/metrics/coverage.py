"""How often a cohort's true volumes lie in the intervals that were told for them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import betabinom, binom

from ldseg import columns
from ldseg.calibration.conformal import VolumeIntervals
from ldseg.metrics.bootstrap import interval

Row = dict[str, float | int | str]

BAND = 0.95
RAW_LEVEL = 0.9
"""What the 5th to 95th percentile of the samples would cover if the model were calibrated."""

KINDS = {"raw": "covered_raw", "conformal": "covered"}


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
        named = functools.partial(columns.volume, name, unit)
        truth, ends = row[named(columns.REFERENCE)], (named(columns.LOW), named(columns.HIGH))
        low, high = (row[named(columns.percentile(p))] for p in (5, 95))
        found[columns.quality(name, KINDS["raw"])] = int(low <= truth <= high)
        if ends[0] in row:
            found[columns.quality(name, KINDS["conformal"])] = int(row[ends[0]] <= truth <= row[ends[1]])
    return found


def coverage(
    rows: Sequence[Mapping[str, Any]],
    structures: Sequence[str],
    intervals: VolumeIntervals | None,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Shares of `covered` over a cohort.

    Args:
        rows: of an evaluation; those without the columns don't count.
        structures: their names.
        intervals: those of the model, None without.
        groups: case -> what it belongs to, see `ldseg.metrics.bootstrap.interval`.

    Returns:
        "raw" and, where rows have it, "conformal": level (what is promised), structures (the share for each), overall
        (over all structures and cases), low and high (its bootstrap interval over cases), n (cases) and band: between
        what shares the coverage lies in 95 % of draws if the promise holds. For the samples' percentiles that is
        binomial; for conformal intervals it is beta-binomial, with the luck of the calibration cases (Vovk 2012): of m
        of them and the score of rank k BetaBinomial(n, k, m + 1 - k), which lies higher where the promise comes with a
        `confidence`. For intervals from folds that is what is found and not proven. The structures of a case are no
        independent draws: the band of `overall` is that of n cases too, and the bootstrap draws them together.
    """
    raw = binom(n, RAW_LEVEL) if (n := _count(rows, structures, KINDS["raw"])) else None
    found = {"raw": _shares(rows, structures, KINDS["raw"], RAW_LEVEL, raw, groups)} if raw else {}
    if intervals is not None and (n := _count(rows, structures, KINDS["conformal"])):
        inside = intervals.rank
        # with too few calibration cases the intervals are unbounded and hold everything
        promised = betabinom(n, inside, intervals.cases + 1 - inside) if inside <= intervals.cases else binom(n, 1.0)
        level = 1 - intervals.alpha
        found["conformal"] = _shares(rows, structures, KINDS["conformal"], level, promised, groups)
        found["conformal"] |= {"confidence": intervals.confidence}
    return found


def coverage_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each kind of interval, for a terminal."""
    titles = {"raw": "volume in 5-95 % of the samples", "conformal": "volume in the conformal interval"}
    return [
        f"{titles[kind]:<36}{entry['overall']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}] ("
        + ", ".join(f"{name} {share:.1%}" for name, share in entry["structures"].items())
        + f"); {_promise(entry)} of {entry['n']} cases: {entry['band'][0]:.1%} to {entry['band'][1]:.1%}"
        for kind, entry in found.items()
    ]


def _promise(entry: Mapping[str, Any]) -> str:
    confidence = entry.get("confidence", 0.0)
    return f"at least {entry['level']:.0%} with {confidence:.0%} confidence" if confidence else f"{entry['level']:.0%}"


def _hits(rows: Sequence[Mapping[str, Any]], structures: Sequence[str], column: str) -> dict[str, list[int]]:
    named = {name: columns.quality(name, column) for name in structures}
    hits = {name: [row[own] for row in rows if own in row] for name, own in named.items()}
    return {name: values for name, values in hits.items() if values}


def _count(rows: Sequence[Mapping[str, Any]], structures: Sequence[str], column: str) -> int:
    return max((len(values) for values in _hits(rows, structures, column).values()), default=0)


def _shares(
    rows: Sequence[Mapping[str, Any]],
    structures: Sequence[str],
    column: str,
    level: float,
    promised: Any,
    groups: Mapping[str, str] | None,
) -> dict[str, Any]:
    """`promised`: scipy's distribution of the number of cases covered."""
    hits, n = _hits(rows, structures, column), _count(rows, structures, column)
    low, high = promised.interval(BAND)
    names = [str(row.get("case", number)) for number, row in enumerate(rows)]
    columns_of = [columns.quality(structure, column) for structure in structures]
    pairs = [(row[c], name) for row, name in zip(rows, names, strict=True) for c in columns_of if c in row]
    values = np.array([value for value, _ in pairs], dtype=np.float64)
    ends = interval(values, [(groups or {}).get(name, name) for _, name in pairs], confidence=BAND)
    return {
        "level": level,
        "structures": {name: float(np.mean(values)) for name, values in hits.items()},
        "overall": float(values.mean()),
        "low": ends[0],
        "high": ends[1],
        "n": n,
        "band": [float(low) / n, float(high) / n],
    }
