"""A copy on object storage of what is trained: checkpoints, bundles, studies, MLflow's and Optuna's databases.

Run on the head of a cluster: `python -m ldseg.orchestration.mirror HOME s3://bucket/folder`; with --restore the other
way round, into an empty home. Trainings themselves read and write the shared file system only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pyarrow import fs

from ldseg.data.remote import bring, copy, list_files, opened
from ldseg.files import write_atomically

logger = logging.getLogger(__name__)
LEFT_OUT = ("cache", "phantoms", "service")  # of the home: made again, or kept elsewhere
CHECKPOINT = "checkpoint_"


def _kept(home: Path) -> Iterator[Path]:
    """The files to copy; a checkpoint's digest comes after what it is the digest of."""
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        hidden = any(part.startswith((".", "tune-", "damaged_")) for part in parts)
        if parts[0] not in LEFT_OUT and not hidden and path.suffix not in (".db-wal", ".db-shm") and path.is_file():
            yield path


@contextmanager
def _still(path: Path) -> Iterator[Path]:
    """A file that does not change while it is read: of a database a copy made by SQLite itself."""
    if path.suffix != ".db":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source, closing(sqlite3.connect(copy)) as to:
            source.backup(to)
        yield copy


def keep(home: Path, url: str) -> int:
    """Copy what is new or has changed, and take away the checkpoints that their training has replaced.

    Args:
        home: of all runs.
        url: s3://..., gs://... or file://...

    Returns:
        How many files were copied.

    Raises:
        OSError: the storage does not take them.
    """
    storage, root = opened(url)
    there, record, copied = list_files(storage, root), _record(home, url), 0
    had = json.loads(record.read_text()) if record.is_file() else {}
    for path in _kept(home):
        name = path.relative_to(home).as_posix()
        try:
            now = _stamp(path)
            if name in there and had.get(name) == now:
                continue
            with _still(path) as source:
                copy(fs.LocalFileSystem(), str(source), storage, f"{root}/{name}")
        except FileNotFoundError:
            continue  # its training has replaced it meanwhile
        had[name], copied = now, copied + 1
    if copied:
        write_atomically(record, json.dumps(had).encode())
    for folder in {name.rpartition("/")[0] for name in there if f"/{CHECKPOINT}" in name}:
        if (home / folder).parent.is_dir() and not (home / folder).exists():
            storage.delete_dir(f"{root}/{folder}")
    return copied


def restore(url: str, home: Path) -> int:
    """Copy everything back that the home does not have; returns how many files."""
    storage, root = opened(url)
    new = [name for name in list_files(storage, root) if not (home / name).exists() and name[0] != "."]
    for name in new:
        bring(storage, f"{root}/{name}", home / name)
    if new:
        write_atomically(_record(home, url), json.dumps({name: _stamp(home / name) for name in new}).encode())
    return len(new)


def _record(home: Path, url: str) -> Path:
    """Which state of each file lies there: the two machines' clocks may differ."""
    return home / f".kept-{hashlib.sha256(url.encode()).hexdigest()[:12]}.json"


def _stamp(path: Path) -> list[int]:
    """Another one whenever the file has changed; what is new in a database lies beside it at first."""
    files = [path, path.with_name(f"{path.name}-wal")] if path.suffix == ".db" else [path]
    found = [file.stat() for file in files if file == path or file.exists()]
    return [number for info in found for number in (info.st_size, info.st_mtime_ns)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy every minute until the process is ended; with --restore once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="of all runs")
    parser.add_argument("url", help="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or file:///FOLDER")
    parser.add_argument("--restore", action="store_true", help="from there to HOME, once")
    parser.add_argument("--every", type=float, default=60.0, help="seconds; 0 for once (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.restore:
        print(f"{restore(options.url, options.home)} files", flush=True)
        return 0
    while True:
        try:
            copied = keep(options.home, options.url)
        except (OSError, sqlite3.Error) as error:  # the storage may be away for a while
            if not options.every:
                print(f"keep: {' '.join(str(error).split())[:300]}", file=sys.stderr)
                return 1
            logger.warning("%s can't be written, it will be tried again: %s", options.url, error)
        else:
            if copied:
                print(f"{time.strftime('%H:%M:%S')} {copied} files", flush=True)
        if not options.every:
            return 0
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
