"""Which cases a person should look at first, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WORST = 0.1  # of the cases that are done: so many have the worst intervals, and as many the worst agreement
FEW = 5  # below so many cases none is the worst of them
REASONS = {
    "unfamiliar": "unlike the cases that the model was trained on",
    "failed": "it could not be segmented",
    "wide-interval": "among the widest intervals of this cohort",
    "low-agreement": "among the cases of this cohort whose samples agree least",
}
"""Every reason in the order in which the cases are listed, with what it means."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is compared of a case.

    Attributes:
        number: grows in the order in which the cases were posted.
        agreement: of the samples; None where it is not known.
        width: of the widest interval, over its middle; None where there is none.
    """

    number: int
    name: str
    state: str
    agreement: float | None = None
    unfamiliar: bool | None = None
    width: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The cases of a cohort as a reviewer meets them.

    Attributes:
        order: numbers of all cases: those that need review first, the others by their agreement.
        reasons: of each case that needs review, by name; the first is the gravest.
    """

    order: tuple[int, ...]
    reasons: dict[str, tuple[str, ...]]


def rank(lines: Sequence[Line]) -> Attention:
    """Order a cohort's cases for review.

    Unfamiliar cases and failed ones always need it. Of the others the worst tenth by the width of their interval, and
    the worst tenth by the agreement of their samples; in a cohort of fewer than five such cases none is the worst.
    """
    familiar = [line for line in lines if line.state == "done" and not line.unfamiliar]
    wide = _worst(familiar, lambda line: None if line.width is None else -line.width)
    apart = _worst(familiar, lambda line: line.agreement)
    reasons = {}
    for line in lines:
        holds = {
            "unfamiliar": line.state == "done" and bool(line.unfamiliar),
            "failed": line.state == "failed",
            "wide-interval": line.number in wide,
            "low-agreement": line.number in apart,
        }
        if any(holds.values()):
            reasons[line.name] = tuple(reason for reason in REASONS if holds[reason])
    places = {reason: place for place, reason in enumerate(REASONS)}

    def place(line: Line) -> tuple[int, float, int]:
        first = places[reasons[line.name][0]] if line.name in reasons else len(places) + (line.state != "done")
        return first, math.inf if line.agreement is None else line.agreement, line.number

    return Attention(order=tuple(line.number for line in sorted(lines, key=place)), reasons=reasons)


def _worst(lines: Sequence[Line], value: Callable[[Line], float | None]) -> set[int]:
    """Numbers of the tenth with the lowest values; those that are as good as the best are not among them."""
    known = sorted((found, line.number) for line in lines if (found := value(line)) is not None)
    if len(known) < FEW:
        return set()
    best = known[-1][0]
    return {number for found, number in known[: math.ceil(WORST * len(known))] if found < best}
