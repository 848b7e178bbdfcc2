"""What a run was made of: code, packages, data, machine; logged as tags of every run, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ldseg.config import DataConfig
from ldseg.data.cohort import Case
from ldseg.data.content import labels_digest
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_label, read_volume, write_atomically

ROOT = Path(__file__).resolve().parents[2]
COMMIT, LOCK, MACHINE, HOST, DATA, PLAN = (
    "ldseg.commit", "ldseg.lock", "ldseg.machine", "ldseg.host", "ldseg.data", "ldseg.plan",
)  # fmt: skip


def surroundings() -> dict[str, str]:
    """Tags of the code, the packages and the machine."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {COMMIT: commit(), LOCK: lock(), HOST: platform.node(), MACHINE: machine}


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


def data_digests(cases: Iterable[Case], data: DataConfig) -> dict[str, str]:
    """ "sha256:..." of each case's split, image and labels by the case's name, or "unreadable".

    Every image and label is read once, which a training does anyway.
    """
    found = {}
    for case in cases:
        try:
            volume = read_volume(
                case.image, case=case.name, spatial_dims=data.spatial_dims, in_channels=data.in_channels
            )
            raters = [read_label(path, volume, data) for path in case.labels]
        except CaseError:
            found[case.name] = "unreadable"
            continue
        found[case.name] = _sha256(f"{case.split} {volume.content_digest} {labels_digest(raters)}".encode())
    return found


def data_digest(digests: dict[str, str]) -> str:
    """One digest of all cases'."""
    return _sha256(json.dumps(digests, sort_keys=True).encode())


def write_digests(folder: Path, digests: dict[str, str]) -> None:
    """Keep the cases' digests as data.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "data.json", json.dumps(digests, indent=1, sort_keys=True).encode())


def read_digests(folder: Path) -> dict[str, str]:
    """What `write_digests` kept; nothing where it kept nothing."""
    path = folder / "data.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
