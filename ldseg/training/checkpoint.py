"""Checkpoints on disk: whole or absent, each with its digest beside it."""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from ldseg.files import DiskFullError, as_disk_error, writing

logger = logging.getLogger(__name__)

STATE, DIGEST = "state.pt", "state.pt.sha256"  # `sha256sum -c state.pt.sha256` checks it
KEPT = 2  # the newest, and the one before in case that the newest is damaged


class CheckpointError(OSError):
    """A checkpoint that is damaged or missing; the message names the file."""


class _Hashed:
    """A file being written that knows the digest of what went in, and the first error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            written = self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(content)
        return written

    def flush(self) -> None:
        self.file.flush()


def write_state(folder: Path, content: dict[str, Any]) -> None:
    """Write state.pt, readable with weights_only=True, and its digest; both are on the disk on return.

    Raises:
        DiskFullError: the disk is full.
        OSError: it is away.
    """
    folder = Path(folder)
    try:
        with writing(folder / STATE) as file:
            hashed = _Hashed(file)
            try:
                torch.save(content, cast(IO[bytes], hashed))  # all it needs is write and flush
            except RuntimeError as error:  # torch hides what the disk said
                raise hashed.error or error from error
        with writing(folder / DIGEST) as beside:
            beside.write(f"{hashed.digest.hexdigest()}  {STATE}\n".encode())
    except OSError as error:
        raise as_disk_error(error, folder) from error


def read_state(folder: Path, device: str = "cpu") -> dict[str, Any]:
    """What `write_state` wrote. A checkpoint without a digest (of an earlier version) is taken if it can be read.

    Raises:
        CheckpointError: it is missing, cut off or changed.
        OSError: the disk is away.
    """
    path, beside = Path(folder) / STATE, Path(folder) / DIGEST
    try:
        with open(path, "rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(f"the checkpoint {path} is missing") from error
    if beside.exists():
        if beside.read_text().split()[:1] != [own]:
            raise CheckpointError(f"the checkpoint {path} is damaged: its digest is another")
        return dict(torch.load(path, map_location=device, weights_only=True))
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged and has no digest") from error


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return sorted(Path(run).glob("checkpoint_[0-9]*"), reverse=True)


def add_checkpoint(run: Path, save: Callable[[Path], None]) -> Path:
    """Add a checkpoint to a run and delete all but the newest two; whatever happens, it is whole or absent.

    Args:
        run: the run's folder.
        save: writes the files into the folder it is given.

    Returns:
        Its folder, named by the time.

    Raises:
        DiskFullError: those that were there are still there.
    """
    name = datetime.now().strftime("checkpoint_%Y-%m-%d_%H-%M-%S.%f")
    temporary = _temporary(run)
    try:
        temporary.mkdir(parents=True)
        save(temporary)
        temporary.rename(Path(run) / name)
    except DiskFullError:
        raise
    except OSError as error:
        raise as_disk_error(error, Path(run)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(run)[KEPT:]:
        _delete(run, old)
    return Path(run) / name


def newest_whole(run: Path, load: Callable[[Path], None], warn: Callable[[str], None] = logger.warning) -> Path | None:
    """Load the newest checkpoint that is whole; each one that isn't is told in a line and set aside as damaged_*.

    Also clears away what a process that was killed left half-written.

    Returns:
        Its folder; None if there is none, and the training starts anew.
    """
    for torn in Path(run).glob(".*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    found = checkpoints(run)
    for place, path in enumerate(found):
        try:
            load(path)
        except CheckpointError as error:
            warn(f"{error}; {'the one before is used' if place + 1 < len(found) else 'none is left: starting anew'}")
            path.rename(path.with_name(path.name.replace("checkpoint", "damaged", 1)))
        else:
            return path
    return None


def _delete(run: Path, path: Path) -> None:
    """At once for whoever looks for checkpoints, whenever the process is killed."""
    temporary = _temporary(run)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _temporary(run: Path) -> Path:
    return Path(run) / f".{uuid.uuid4().hex}.tmp"
