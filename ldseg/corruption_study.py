"""Does a model warn of damage? Cases as they are and once for each kind of damage, scored alike, ranked together."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldseg.bundle import Bundle
from ldseg.corruptions import CORRUPTIONS, corrupt
from ldseg.data.cohort import Case
from ldseg.data.volume import write_atomically
from ldseg.evaluation import EvaluatedCase, evaluate
from ldseg.evaluation_result import Row, parquet, without_nan
from ldseg.failure import failure_detection, failure_lines

NONE = "none"
DAMAGE_COLUMNS = {
    "dice": "Dice", "control_dice": "control: Dice", "agreement": "agreement", "nll": "NLL", "distance": "distance",
    "unfamiliar": "unfamiliar",
}  # fmt: skip


def read_corruptions(text: str) -> list[str]:
    """Names from a list with commas.

    Raises:
        ValueError: one is unknown or there twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(CORRUPTIONS) or len(set(names)) < len(names):
        raise ValueError(f"--corrupt {text!r} must be a list of some of {','.join(CORRUPTIONS)}, each at most once")
    return names


@dataclass(frozen=True)
class CorruptionStudy:
    """What damage does to a model, and whether it shows without a label.

    Attributes:
        rows: of `ldseg.evaluation.evaluate`, with "corruption" ("none" for a case as it is); a broken case has "error".
        summary: "severity"; "corruptions": for each kind and for none the number of cases and the means over them of
            dice, control_dice, agreement, nll, distance and unfamiliar (those that the rows have);
            "failure_detection": how well the scores rank the cases of all kinds together, see `ldseg.failure`.
    """

    rows: list[Row]
    summary: dict[str, Any]

    def table(self) -> str:
        """The summary as text for a terminal: Markdown, and a line for each score."""
        found = self.summary["corruptions"]
        names = [name for name in DAMAGE_COLUMNS if any(name in entry for entry in found.values())]
        head = ["corruption", "cases", *(DAMAGE_COLUMNS[name] for name in names)]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for kind, entry in found.items():
            cells = [f"{entry[name]:.3f}" if name in entry else "-" for name in names]
            lines.append(f"| {' | '.join([kind, str(entry['cases']), *cells])} |")
        return "\n".join([*lines, "", *failure_lines(self.summary["failure_detection"])])

    def write(self, folder: Path) -> dict[str, Path]:
        """Write corruption.parquet (the rows) and corruption.json (the summary), each whole or not at all."""
        folder = Path(folder)
        text = json.dumps(without_nan(self.summary), indent=2, allow_nan=False) + "\n"
        content = {"corruption.parquet": parquet(self.rows), "corruption.json": text.encode()}
        for name, data in content.items():
            write_atomically(folder / name, data)
        return {name: folder / name for name in content}


def corruption_study(
    bundle: Bundle,
    cases: Sequence[Case],
    names: Sequence[str],
    *,
    severity: float = 1.0,
    seed: int = 0,
    progress: Callable[[str, EvaluatedCase], None] | None = None,
    **options: Any,
) -> CorruptionStudy:
    """Score a model on cases as they are and with each kind of damage; the labels stay.

    Args:
        bundle, cases: as in `ldseg.evaluation.evaluate`.
        names: of `ldseg.corruptions.CORRUPTIONS`.
        severity: of each, in [0, 1].
        seed: of the samples and of the damage.
        progress: called with the kind after each case.
        options: further ones of `evaluate`: samples, num_steps, device, control.

    Raises:
        ValueError: see `ldseg.corruptions.corrupt` and `evaluate`.
    """
    if not 0 <= severity <= 1:  # told before the drawing, which takes minutes
        raise ValueError(f"the severity must lie in [0, 1], got {severity}")
    rows: list[Row] = []
    for name in (NONE, *names):
        change = None if name == NONE else functools.partial(corrupt, name=name, severity=severity, seed=seed)
        told = None if progress is None else functools.partial(progress, name)
        result = evaluate(bundle, cases, seed=seed, change=change, progress=told, **options)
        rows += [{"corruption": name, **row} for row in result.rows]
    found = {name: _means([row for row in rows if row["corruption"] == name]) for name in (NONE, *names)}
    good = [row for row in rows if "error" not in row]
    summary = {"severity": severity, "corruptions": found, "failure_detection": failure_detection(good)}
    return CorruptionStudy(rows, summary)


def _means(rows: Sequence[Row]) -> dict[str, float | int]:
    """Over the cases that have a finite number."""
    means: dict[str, float | int] = {"cases": sum("error" not in row for row in rows)}
    for name in DAMAGE_COLUMNS:
        values = np.array([row[name] for row in rows if name in row], dtype=np.float64)
        if np.isfinite(values).any():
            means[name] = float(values[np.isfinite(values)].mean())
    return means
