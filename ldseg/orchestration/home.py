"""Where everything lives on disk, and an environment that keeps to itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

STUDIES_URL = "LDSEG_STUDIES_URL"  # a database for all studies, in place of a file for each


def home(path: Path | str | None = None) -> Path:
    """The folder of all runs, made if missing: `path`, else LDSEG_HOME, else runs/ in the working directory.

    Raises:
        ValueError: it is an address of object storage.
    """
    if isinstance(path, str) and "://" in path:
        raise ValueError(f"{path} is no folder; runs lie on a file system, and `rclone sync` copies them to storage")
    folder = Path(path or os.environ.get("LDSEG_HOME") or "runs").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def phantoms(home: Path, cases: int = 48) -> Path:
    """The cohort for who names none: 2D phantoms in the home, written if missing (their manifest comes last)."""
    from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms

    folder = home / "phantoms"
    if not (folder / "manifest.csv").exists():
        write_phantoms(folder, PhantomConfig(dims=2, cases=cases))
    return folder


def without_password(text: str) -> str:
    """A text with the passwords of the addresses in it taken out: scheme://user:***@host."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)
