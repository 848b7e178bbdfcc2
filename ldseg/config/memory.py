"""How much memory there is, and how much of it one case may take."""

from __future__ import annotations

import math
import os
from pathlib import Path

SHARE = 0.8  # of the memory, for cases; the rest is for libraries and whatever else runs
VARIABLE = "LDSEG_CASE_GB"


def machine_bytes() -> int:
    """Main memory of the machine, or what this process's control group (a container's) may have, where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / path).read_text().strip()
        except OSError:
            continue
        found += [int(text)] if text.isdigit() else []
    return min(found)


def case_bytes() -> int:
    """Memory that one case may take: LDSEG_CASE_GB (in 2**30 bytes) of the environment, else a share of the machine's.

    Raises:
        ValueError: the variable is no number above 0.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return int(SHARE * machine_bytes())
    try:
        wanted = float(text)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted < math.inf:
        raise ValueError(f"{VARIABLE} must be a number above 0, of 2**30 bytes, got {text[:40]!r}")
    return int(wanted * 2**30)


def gigabytes(size: float) -> str:
    """As people read it: "11.6 GB"."""
    return f"{size / 1e9:.3g} GB"
