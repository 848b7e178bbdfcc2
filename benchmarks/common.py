"""The rows of a benchmark's table: which of them --only asks for, and how they are printed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def wanted(name: str, only: Sequence[str] | None, names: Collection[str]) -> bool:
    """Whether a row is asked for: by its whole name if one of the words is the name of a row, else by a word in it."""
    if not only or name in only:
        return True
    return not any(word in names for word in only) and any(word in name for word in only)


def table(rows: Sequence[dict[str, Any]], key: str, columns: Sequence[str]) -> str:
    """Markdown: a line for each row, which `key` names, with the columns that any row has; "nan" where one has none."""
    names = [name for name in columns if any(name in row for row in rows)]

    def cell(value: float) -> str:
        return f"{value:.0f}" if value > 100 else f"{value:.3f}"

    lines = ["| | " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {r[key]} | " + " | ".join(cell(r.get(n, float("nan"))) for n in names) + " |" for r in rows]
    return "\n".join(lines)
