"""Which rows of a table a benchmark's --only asks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def wanted(name: str, only: Sequence[str] | None, names: Collection[str]) -> bool:
    """Whether a row is asked for: by its whole name if one of the words is the name of a row, else by a word in it."""
    if not only or name in only:
        return True
    return not any(word in names for word in only) and any(word in name for word in only)
