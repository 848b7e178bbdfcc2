"""Runs on object storage: a home here, brought from there, and copied there while a program works and at its end.

What trains reads and writes the home here; on a cluster it lies on a file system that the machines share (LDSEG_HOME).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from ldseg.data.remote import is_url, opened
from ldseg.orchestration.home import home
from ldseg.orchestration.mirror import keep, restore

logger = logging.getLogger(__name__)
OWNER, OWN = ".owner.json", ".id"  # there: who writes; here: which home this is
EVERY_S, STALE_S = 60.0, 300.0


@contextmanager
def runs_at(place: Path | str | None) -> Iterator[Path]:
    """The home of all runs while the block runs: a folder, or for s3://... the one here that is copied there.

    One program at a time works with an address: it writes its name there, which is old after five minutes without a
    sign. The storage can't compare and swap, so two that begin within the same second may both go ahead.

    Raises:
        OSError: another program works with it, or the storage can't be read, or not be written at the end.
    """
    if place is None or not is_url(place):
        yield home(None if place is None else Path(place))
        return
    url = str(place)
    folder = _folder(url)
    here = _claim(url, folder)
    ended = threading.Event()
    copying = threading.Thread(target=_copy_until, args=(ended, url, folder, here), daemon=True)
    copying.start()
    try:
        yield folder
    finally:
        ended.set()
        copying.join()
        try:
            _put(url, folder, here | {"ended": True})
        except (OSError, sqlite3.Error) as error:
            words = " ".join(str(error).split())[:300]
            raise OSError(f"{url} can't be written ({words}); what was made lies in {folder}") from error


def _folder(url: str) -> Path:
    base = Path(os.environ.get("LDSEG_HOME") or Path.home() / ".cache" / "ldseg")
    return home(base / "stored" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}")


def _claim(url: str, folder: Path) -> dict[str, Any]:
    """Become the one that writes there, with everything that lies there."""
    before, own = _owner(url), _own(folder)
    if before and not before["ended"] and _lives(before):
        age = time.time() - before["time"]
        raise OSError(
            f"{url} is in use by process {before['pid']} on {before['host']} ({age:.0f} s ago); end that, "
            f"or wait {STALE_S / 60:.0f} minutes after its end"
        )
    if before and before["home"] != own:  # what lies here is older
        if any(path.name != OWN for path in folder.iterdir()):
            folder.rename(folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}"))
            folder.mkdir()
        own = _own(folder)
        print(f"{restore(url, folder)} files from {url}", flush=True)
        if before["path"] != str(folder):
            print(
                f"made in {before['path']}, which MLflow's addresses of models name; set LDSEG_HOME so that it is the "
                f"same here, now it is {folder}",
                file=sys.stderr,
            )
    elif not before:
        restore(url, folder)
    here = {"home": own, "path": str(folder), "host": socket.gethostname(), "pid": os.getpid(), "ended": False}
    _write_owner(url, here)
    return here


def _own(folder: Path) -> str:
    path = folder / OWN
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def _lives(owner: dict[str, Any]) -> bool:
    """Whether it may still write: it has given a sign, and if it was on this machine its process is there."""
    fresh = time.time() - owner["time"] < STALE_S
    return fresh and (owner["host"] != socket.gethostname() or Path(f"/proc/{owner['pid']}").exists())


def _owner(url: str) -> dict[str, Any] | None:
    storage, root = opened(url)
    if storage.get_file_info(f"{root}/{OWNER}").type != fs.FileType.File:
        return None
    with storage.open_input_stream(f"{root}/{OWNER}") as file:
        found: dict[str, Any] = json.loads(file.read())
    return found


def _write_owner(url: str, owner: dict[str, Any]) -> None:
    storage, root = opened(url)
    storage.create_dir(root, recursive=True)
    with storage.open_output_stream(f"{root}/{OWNER}") as file:
        file.write(json.dumps(owner | {"time": time.time()}).encode())


def _put(url: str, folder: Path, here: dict[str, Any]) -> None:
    """Copy there what is new, unless another program has taken it over while this one could not reach it."""
    now = _owner(url)
    if now is not None and (now["home"], now["pid"]) != (here["home"], here["pid"]):
        raise OSError(f"process {now['pid']} on {now['host']} has taken it over")
    keep(folder, url)
    _write_owner(url, here)


def _copy_until(ended: threading.Event, url: str, folder: Path, here: dict[str, Any]) -> None:
    while not ended.wait(EVERY_S):
        try:
            _put(url, folder, here)
        except (OSError, sqlite3.Error) as error:  # the storage may be away for a while
            logger.warning("%s can't be written, it will be tried again: %s", url, " ".join(str(error).split())[:300])
