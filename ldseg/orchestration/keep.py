"""A copy on object storage of what is trained: checkpoints, bundles, studies, MLflow's and Optuna's databases.

Run on the head of a cluster: `python -m ldseg.orchestration.keep HOME s3://bucket/folder`; with --restore the other way
round, into an empty home. Trainings themselves read and write the shared file system only.
"""

from __future__ import annotations

import argparse
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pyarrow import fs

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
    storage, root = fs.FileSystem.from_uri(url)
    there = {info.path[len(root) + 1 :]: info for info in _list(storage, root)}
    copied = 0
    for path in _kept(home):
        name = path.relative_to(home).as_posix()
        try:
            known, now = there.get(name), path.stat()
            # a database's copy may have another size than its file
            if known is not None and known.mtime_ns >= now.st_mtime_ns:
                if known.size == now.st_size or path.suffix == ".db":
                    continue
            with _still(path) as source:
                _copy(fs.LocalFileSystem(), str(source), storage, f"{root}/{name}")
            copied += 1
        except FileNotFoundError:
            continue  # its training has replaced it meanwhile
    for folder in {name.rpartition("/")[0] for name in there if f"/{CHECKPOINT}" in name}:
        if (home / folder).parent.is_dir() and not (home / folder).exists():
            storage.delete_dir(f"{root}/{folder}")
    return copied


def restore(url: str, home: Path) -> int:
    """Copy everything back that the home does not have; returns how many files."""
    storage, root = fs.FileSystem.from_uri(url)
    copied = 0
    for info in _list(storage, root):
        path = home / info.path[len(root) + 1 :]
        if not path.exists():
            part = path.with_name(f".{path.name}.part")
            _copy(storage, info.path, fs.LocalFileSystem(), str(part))
            part.rename(path)
            copied += 1
    return copied


def _list(storage: fs.FileSystem, root: str) -> list[fs.FileInfo]:
    found = storage.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    return [info for info in found if info.is_file]


def _copy(source: fs.FileSystem, name: str, target: fs.FileSystem, to: str) -> None:
    target.create_dir(to.rpartition("/")[0], recursive=True)
    with source.open_input_stream(name) as read, target.open_output_stream(to) as write:
        while piece := read.read(2**22):
            write.write(piece)


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
