"""Folders that appear on disk as a whole: never half, and never gone while one takes another's place.

They go as a whole too, whoever publishes just then: `ldseg.results.removal`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume
from ldseg.files import sync, writing
from ldseg.posterior import derivatives
from ldseg.posterior.ensemble import EnsembleSummary, write_ensemble
from ldseg.posterior.summary import PosteriorSummary, write_summary
from ldseg.results.removal import ABANDONED_S, FULL, REMOVED, clear, removed, unless_removed

Summary = PosteriorSummary | EnsembleSummary
STAGING, ASIDE = ".staging-", ".aside-"
MANIFEST = "manifest.json"
RENAME_EXCHANGE, AT_FDCWD = 2, -100
# what a kernel or a file system says that can't exchange two names
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)


class DiskFull(OSError):
    """There is no room for a case's files; nothing of them is left behind. Its text is one sentence with the cure."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to write into; what is left of it afterwards goes away.

    Raises:
        DiskFull: in place of the OSError that a full disk gives.
    """
    staging = folder.parent / f"{STAGING}{uuid.uuid4().hex}"
    try:
        is_first = not folder.parent.exists()
        staging.mkdir(parents=True)
        if is_first:
            sync(folder.parent.parent)
        yield staging
    except OSError as error:
        if error.errno not in FULL:
            raise
        cure = "free some space there and ask for the case again"
        sentence = f"{folder.name}: the disk of {folder.parent} is full, its results can't be kept; {cure}"
        raise DiskFull(error.errno or errno.ENOSPC, sentence) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(staging: Path, files: dict[str, dict[str, Any]]) -> Path:
    """Write the manifest, the last file: by name each file's size and sha256.

    Args:
        staging: a folder whose files are on disk already.
        files: `bytes` and `sha256` by file name.
    """
    path = staging / MANIFEST
    with writing(path) as file:
        file.write((json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n").encode())
    sync(staging)
    return path


def put_in_place(staging: Path, folder: Path) -> bool:
    """Give a sealed folder its name; False if the folder that has the name already is the same and was left alone.

    Another one is exchanged in one step: whoever looks, or is killed, at any instant, finds the old or the new one. On
    a file system that can't do this the old one is set aside first, and `recover` brings it back after a kill.
    """
    while not is_same(staging, folder):
        try:
            staging.rename(folder)  # fails on a folder that isn't empty
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if not _replace(staging, folder):
                continue  # it has just gone
        sync(folder.parent)
        return True
    return False


def is_same(one: Path, other: Path) -> bool:
    """Whether both have the same manifest, and the other one all of its files."""
    try:
        content = (one / MANIFEST).read_bytes()
        if content != (other / MANIFEST).read_bytes():
            return False
        files = json.loads(content)["files"]
        return all((other / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def recover(parent: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what a kill left of publications into `parent`, and bring back what was set aside for a new one.

    Args:
        older_than_s: what is younger stays: others may be publishing there just now. 0 only while nobody does.
    """
    limit = time.time() - older_than_s
    for aside in parent.glob(f"{ASIDE}*"):
        folder = parent / aside.name.removeprefix(ASIDE)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(folder)
    for left in (*parent.glob(f"{STAGING}*"), *parent.glob(".*.tmp")):
        try:
            if left.stat().st_mtime > limit:
                continue
        except FileNotFoundError:  # it was published meanwhile
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _replace(staging: Path, folder: Path) -> bool:
    """Put a folder in the place of another; False if there is no other."""
    try:
        if _exchange(staging, folder):
            return True  # the old one has the staging's name now, and goes away with it
        aside = folder.with_name(f"{ASIDE}{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    except FileNotFoundError:
        return False
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def is_complete(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file has the size and checksum that are told of it."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"])


def publish(summary: Summary, like: Volume, structures: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write a case's files such that the folder is whole or absent, also after a crash.

    The folder gets its name when every file is on disk, the manifest as the last one (`ldseg.results.publication`).
    Called again with the same results it leaves the folder as it is; with others it exchanges it in one step. The
    folder above becomes a BIDS derivative.

    Returns:
        `describe` of the case.

    Raises:
        CaseError: the case is called like something else that lies beside the cases.
        DiskFull: there is no room; nothing is left behind.
        Removed: the folder above was removed; nothing is left behind.
    """
    with unless_removed(folder.parent):
        return _publish(summary, like, structures, folder)


def _publish(summary: Summary, like: Volume, structures: Sequence[str], folder: Path) -> dict[str, Any]:
    if folder.name == derivatives.DESCRIPTION or folder.name.startswith((STAGING, ASIDE, REMOVED)):
        raise CaseError(summary.case, "its name is kept for something else in the results", "call the case otherwise")
    with staged(folder) as staging:
        derivatives.write_description(folder.parent)
        if isinstance(summary, EnsembleSummary):
            files = write_ensemble(summary, staging, like, structures)
        else:
            files = write_summary(summary, staging, like, structures)
        described = describe(summary, files)
        entries = described["files"]
        manifest = seal(staging, {e["name"]: {"bytes": e["bytes"], "sha256": e["sha256"]} for e in entries.values()})
        entries["manifest"] = fingerprint(manifest)
        put_in_place(staging, folder)
    return described


def describe(summary: Summary, files: dict[str, Path]) -> dict[str, Any]:
    """All numbers of a case, and its files with size and checksum, as JSON."""
    return {
        "numbers": summary.numbers(),
        "volumes": {name: values.tolist() for name, values in summary.volumes.items()},
        "unit": summary.unit,
        "agreement": summary.agreement["mean"],
        "agreements": summary.agreement,
        "confidences": summary.confidence,
        "seconds": summary.seconds,
        "files": {key: fingerprint(path) for key, path in files.items()},
    }


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def sweep(results: Path, *, older_than_s: float = ABANDONED_S) -> None:
    """Mend what a crash left half-written in the folders of all cohorts; another service may be at work there."""
    for parent in removed(results):
        clear(parent)
    for parent in results.glob("*/"):
        if not parent.name.startswith(REMOVED):
            recover(parent, older_than_s=older_than_s)
