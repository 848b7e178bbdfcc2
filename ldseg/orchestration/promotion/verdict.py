"""From scores on held-out cases to the verdict of each gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldseg import columns
from ldseg.metrics.bootstrap import Comparison, Resampling, Statistic, compare, mean, worst_decile
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.tracking.registry import CHAMPION

NO_GATES = Gates()


Row = dict[str, Any]
MEASURE = "score it by --data DIR"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The verdict of one gate.

    Attributes:
        gate: its name.
        passed: whether it holds.
        words: what was found; where it does not hold, why.
        own, other: what the challenger and the champion have, None where there is no such number.
        difference, low, high: own - other (seconds: own / other) and its bootstrap interval.
        asked: the demand in words.
    """

    gate: str
    passed: bool
    words: str = ""
    own: float | None = None
    other: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    asked: str = ""


@dataclass(frozen=True)
class _Quantity:
    """A column of the scores with its demands; an infinite floor or allowance asks for nothing."""

    gate: str
    column: str
    floor: float
    allowance: float = math.inf
    higher_is_better: bool = True
    statistic: Statistic = mean
    ratio: bool = False
    since: str = ""  # the version of LDSeg whose scores have it first

    @property
    def limit(self) -> float | None:
        return None if self.floor == math.inf else self.floor

    @property
    def margin(self) -> float | None:
        return None if self.allowance == math.inf else self.allowance


def judge(own: Sequence[Row], other: Sequence[Row] | None, gates: Gates, structures: Sequence[str]) -> list[Check]:
    """The gates on scores.

    Args:
        own: the challenger's row of each held-out case, with the columns of `ldseg.evaluation.evaluate`.
        other: the champion's rows of the same cases in the same order; None without a champion.
        gates: the demands.
        structures: the challenger's.
    """
    enough, least = len(own) >= gates.cases.min_cases, f">= {gates.cases.min_cases}"
    words = "" if enough else f"too few labelled cases that no model has seen: {MEASURE}"
    count = Check(gate="cases", passed=enough, own=float(len(own)), asked=least, words=words)
    return [count, *(_check(quantity, own, other, gates) for quantity in _quantities(gates, structures) if own)]


def _quantities(gates: Gates, structures: Sequence[str]) -> list[_Quantity]:
    floors, margins = gates.floors, gates.margins
    tenth, structure = margins.worst_decile_dice, margins.structure_dice
    return [
        _Quantity("dice", "dice", floors.dice, margins.dice),
        _Quantity("dice, worst tenth", "dice", floors.worst_decile_dice, tenth, statistic=worst_decile),
        *(_Quantity(f"dice of {s}", columns.score("dice", s), floors.structure_dice, structure) for s in structures),
        _Quantity("energy score", "energy_score", floors.energy_score, margins.energy_score, False, since="0.2"),
        _Quantity("nll", "nll", floors.nll, margins.nll, False),
        _Quantity("ece", "ece", floors.ece, margins.ece, False),
        _Quantity("seconds a case", "seconds", floors.seconds, margins.seconds_factor, False, ratio=True),
    ]


def _check(quantity: _Quantity, own: Sequence[Row], other: Sequence[Row] | None, gates: Gates) -> Check:
    unscored = _scored_before(quantity, own, other) if other is not None else ""
    margin = quantity.margin if other is not None and not unscored else None
    asked = _asked(quantity, margin)
    values, champion = _column(own, quantity.column), _column(other or (), quantity.column)
    if values is None:
        needed = margin is not None or quantity.limit is not None
        why = f"not known of the challenger for every case: {MEASURE}" if needed else "not known, not asked for"
        words = why if needed or not unscored else unscored
        return Check(gate=quantity.gate, passed=not needed, words=words, asked=asked)
    own_value = float(quantity.statistic(values))
    why = _below_floor(quantity, own_value)
    if margin is None:
        return Check(gate=quantity.gate, passed=not why, words=why or unscored, own=own_value, asked=asked)
    if champion is None:
        why = f"not known of the champion for every case: {MEASURE}"
        return Check(gate=quantity.gate, passed=False, words=why, own=own_value, asked=asked)
    resampling = Resampling(
        resamples=gates.cases.resamples, seed=gates.cases.seed, confidence=gates.cases.confidence,
        groups=_patients(own, other or ()),
    )  # fmt: skip
    found = compare(values, champion, quantity.statistic, ratio=quantity.ratio, resampling=resampling)
    why = why or _worse(quantity, margin, found, gates)
    return Check(
        gate=quantity.gate, passed=not why, words=why, asked=asked, own=found.own, other=found.other,
        difference=_json(found.difference), low=_json(found.low), high=_json(found.high),
    )  # fmt: skip


def _scored_before(quantity: _Quantity, own: Sequence[Row], other: Sequence[Row]) -> str:
    """Which side was registered when there was no such score: nothing to compare, and no fault of the challenger."""
    sides = {"challenger": own, "champion": other} if quantity.since else {}
    lacking = [who for who, rows in sides.items() if all(row.get(quantity.column) is None for row in rows)]
    if not lacking:
        return ""
    return f"not comparable, the {' and the '.join(lacking)} was scored before LDSeg {quantity.since}: {MEASURE}"


def _asked(quantity: _Quantity, margin: float | None) -> str:
    sign = ">=" if quantity.higher_is_better else "<="
    demands = [] if quantity.limit is None else [f"{sign} {quantity.limit:g}"]
    if margin is not None and quantity.ratio:
        demands.append(f"<= {margin:g} times")
    elif margin is not None:
        demands.append(f"difference {sign} {-margin if quantity.higher_is_better else margin:+g}")
    return ", ".join(demands)


def _below_floor(quantity: _Quantity, value: float) -> str:
    if quantity.limit is None:
        return ""
    holds = value >= quantity.limit if quantity.higher_is_better else value <= quantity.limit
    return "" if holds else f"{value:.4g} does not reach the floor of {quantity.limit:g}"


def _worse(quantity: _Quantity, margin: float, found: Comparison, gates: Gates) -> str:
    """Why the challenger is worse by more than the margin, "" where it is not."""
    bound = found.low if quantity.higher_is_better else found.high
    judged = bound if gates.cases.judge_by == "bound" else found.difference
    holds = judged >= -margin if quantity.higher_is_better else judged <= margin
    what = "the end of the interval" if gates.cases.judge_by == "bound" else "the difference"
    return "" if holds else f"worse than the champion by more than the margin on {found.cases} cases ({what} decides)"


def _column(rows: Sequence[Row], name: str) -> np.ndarray | None:
    """The values of a column, None if any is missing or not finite: a gap must not improve a mean."""
    values = [row.get(name) for row in rows]
    if not values or not all(isinstance(v, float | int) and math.isfinite(v) for v in values):
        return None
    return np.array(values, dtype=np.float64)


def _patients(own: Sequence[Row], other: Sequence[Row]) -> list[str]:
    """What the bootstrap draws: a case's patient where both scorings name one, else the case."""
    return [
        str(a["patient"] if a.get("patient") and b.get("patient") else a["case"])
        for a, b in zip(own, other, strict=True)
    ]


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(checks: Sequence[Check], own: str, other: str, gates: Gates) -> str:
    """The verdicts as text for a terminal: the numbers first, then what is said in words.

    Args:
        own, other: headings of the two models' columns.
    """
    head = ["", "gate", own, other, f"difference [{gates.cases.confidence:.0%} interval]", "asked"]
    rows = [_cells(check) for check in checks if check.own is not None]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    numbers = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    sentences = [f"{'ok' if check.passed else 'NO'}  {check.gate}: {check.words}" for check in checks if check.words]
    return "\n".join([*(numbers if rows else []), *sentences])


def _cells(check: Check) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    spread = "-"
    if check.difference is not None or check.low is not None:
        times = check.gate.startswith("seconds")
        shown = [
            "inf" if v is None else f"{v:.2f}" if times else f"{v:+.4f}"
            for v in (check.difference, check.low, check.high)
        ]
        spread = f"{'x ' if times else ''}{shown[0]} [{shown[1]}, {shown[2]}]"
    return ["ok" if check.passed else "NO", check.gate, number(check.own), number(check.other), spread, check.asked]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided and why.

    Attributes:
        action: "promote", "refuse", "rollback" or "none" (it was there already).
        before: the version that had the alias.
        notes: what was found and mended before.
        source: where the scores come from.
    """

    name: str
    version: int
    before: int | None
    action: str
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    gates: Gates = NO_GATES
    dry_run: bool = False

    @property
    def passed(self) -> bool:
        """Whether the version has the alias now (of a dry run: would have it)."""
        return self.action != "refuse"

    def text(self) -> str:
        """For a terminal."""
        lines = [f"mended: {note}" if not self.dry_run else f"found: {note}" for note in self.notes]
        if self.source:
            cases = self.gates.cases
            how = f"{cases.resamples} resamples of the cases, seed {cases.seed}; gates: {self.gates.source}"
            lines.append(f"{self.source}; {how}")
        if self.checks:
            champion = f"version {self.before}" if self.before else "no champion"
            lines.append(table(self.checks, f"version {self.version}", champion, self.gates))
        return "\n".join([*lines, self._end()])

    def _end(self) -> str:
        now = f"{CHAMPION} of {self.name}"
        if self.action == "none":
            return f"{now} is version {self.version} already"
        if self.action == "refuse":
            stays = f"stays at version {self.before}" if self.before else "stays unset"
            return f"{now} {stays}: version {self.version} does not pass" + (" (dry run)" if self.dry_run else "")
        earlier = f", before it {self.before}" if self.before else ""
        if self.dry_run:
            return f"{now} would be version {self.version}{earlier} (dry run: nothing was changed)"
        return f"{now} is version {self.version}{earlier}"
