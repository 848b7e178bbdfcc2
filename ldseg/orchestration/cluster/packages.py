"""Are the packages that are installed here those of constraints.txt?

Also a program of its own, by its path and without any package: `python ldseg/orchestration/cluster/packages.py
constraints.txt`.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def differences(constraints: Path) -> list[str]:
    """What is installed otherwise than it is locked, a few words for each package."""
    found = []
    for line in constraints.read_text().splitlines():
        name, exact, version = line.partition("#")[0].strip().partition("==")
        if not exact:
            continue
        try:
            here = metadata.version(name).partition("+")[0]  # torch names its build there
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != version:
            found.append(f"{name} {here} and not {version}")
    return found


def in_words(found: list[str], most: int = 3) -> str:
    """The first few differences and how many more there are."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


if __name__ == "__main__":
    different = differences(Path(sys.argv[1]))
    if different:
        print(f"ldseg: {in_words(different)}")
    sys.exit(1 if different else 0)
