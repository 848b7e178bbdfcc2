"""What a run was made of: code, packages, data, machine; logged as tags of every run, so that it can be made again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from ldseg import ROOT
from ldseg.data.content import _sha256
from ldseg.files import write_atomically

COMMIT, LOCK, MACHINE, HOST, DATA, PLAN = (
    "ldseg.commit", "ldseg.lock", "ldseg.machine", "ldseg.host", "ldseg.data", "ldseg.plan",
)  # fmt: skip


def surroundings() -> dict[str, str]:
    """Tags of the code, the packages and the machine."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {COMMIT: commit(), LOCK: lock(), HOST: platform.node(), MACHINE: machine}


def machine() -> str:
    """Host, kind of machine and number of cores: seconds are compared only with those of the same."""
    tags = surroundings()
    return f"{tags[HOST]}, {tags[MACHINE]}"


def commit() -> str:
    """The code's commit, with "+changes" if the tree differs from it; "unknown" outside a checkout of its own.

    A copy of the tree that was brought to a cluster has no history: who brought it tells by LDSEG_COMMIT.
    """
    if told := os.environ.get("LDSEG_COMMIT"):
        return told
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"  # installed somewhere inside another repository
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def lock() -> str:
    """ "sha256:..." of the names and versions of all installed packages."""
    found = {f"{entry.name.lower().replace('_', '-')}=={entry.version}" for entry in metadata.distributions()}
    return _sha256("\n".join(sorted(found)).encode())


def write_digests(folder: Path, digests: dict[str, str]) -> None:
    """Keep the cases' digests as data.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "data.json", json.dumps(digests, indent=1, sort_keys=True).encode())


def read_digests(folder: Path) -> dict[str, str]:
    """What `write_digests` kept; nothing where it kept nothing."""
    path = folder / "data.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
