"""Folders of cases that go for good, also while somebody publishes into them.

There is one order. Who removes says so first, by a mark, and removes then. Who publishes gives a folder its name
first, and looks for the mark then. Whatever the instant, the later of the two finds what the other one has done and
removes it; whichever of them is killed, the mark is found at the next start.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldseg.files import sync

FULL = (errno.ENOSPC, errno.EDQUOT)
ABANDONED_S = 3600.0  # no publication takes so long
REMOVED = ".removed-"  # a mark is a folder beside the one that it marks, and empty in the end


class Removed(RuntimeError):
    """The folder was removed while something was published into it; nothing of it is left behind."""


@contextmanager
def unless_removed(parent: Path) -> Iterator[None]:
    """Publish into a folder; what has come there is removed again where the folder was removed meanwhile.

    Raises:
        Removed: it was removed, before or meanwhile.
    """
    if is_removed(parent):
        raise Removed(f"{parent.name} was removed, nothing can be published there")
    try:
        yield
    finally:  # also after an error: it was removed under the hands of who wrote
        if is_removed(parent):
            clear(parent)
            raise Removed(f"{parent.name} was removed, nothing can be published there")


def remove(parent: Path) -> None:
    """Remove a folder of cases for good, at whatever others publish into it; they are told by `Removed`.

    The mark stays until `unmark`, so that also who is killed over it leaves nothing that isn't found.

    Raises:
        OSError: it can't be removed: the file system can't be written to, or is not there.
    """
    mark = _mark(parent)
    try:
        parent.rename(mark)  # takes all away at once, and needs no room
    except FileNotFoundError:
        try:
            mark.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return  # nothing of it is there, and nobody has room to publish
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # a removal that was not finished
            raise
    os.utime(mark)
    sync(parent.parent)
    clear(parent)


def clear(parent: Path) -> None:
    """Remove what lies in a folder that has been removed, or was put there since."""
    shutil.rmtree(parent, ignore_errors=True)
    for left in _mark(parent).glob("*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def unmark(parent: Path, *, older_than_s: float = ABANDONED_S) -> bool:
    """Remove the mark of a removed folder when nobody can still be publishing into it; False if it stays."""
    mark = _mark(parent)
    clear(parent)
    try:
        if time.time() - mark.stat().st_mtime < older_than_s:
            return False
        mark.rmdir()
    except OSError:  # something in it can't be removed, or another service was first
        return False
    return True


def removed(results: Path) -> list[Path]:
    """The folders under `results` that have a mark."""
    return [results / mark.name.removeprefix(REMOVED) for mark in results.glob(f"{REMOVED}*")]


def is_removed(parent: Path) -> bool:
    """Whether a folder has a mark."""
    return _mark(parent).exists()


def _mark(parent: Path) -> Path:
    return parent.parent / f"{REMOVED}{parent.name}"
