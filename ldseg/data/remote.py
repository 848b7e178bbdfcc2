"""Files on object storage (s3://, gs://, abfss:// and what else pyarrow knows), and cohorts copied from there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.data.errors import CohortError
from ldseg.data.formats.dicom.packed import unpack
from ldseg.files import locked, write_atomically

if TYPE_CHECKING:
    from pyarrow import fs

INDEX = ".index.json"  # of a copy: size and time of each file as the storage had them
CONNECTIONS = 8
MANIFESTS = (".csv", ".tsv", ".parquet")


def is_url(place: Path | str) -> bool:
    """Whether it is an address such as s3://bucket/folder and no path."""
    return isinstance(place, str) and re.match(r"[a-z][a-z0-9+.-]+://", place) is not None


def location(text: str) -> Path | str:
    """An option's value: an address as it is, a path as a Path."""
    return text.rstrip("/") if is_url(text) else Path(text)


def absolute(place: Path | str) -> str:
    """A path from the root on; an address as it is."""
    return str(place) if is_url(place) else str(Path(place).resolve())


def opened(url: str) -> tuple[fs.FileSystem, str]:
    """The storage of an address, and the path in it.

    Raises:
        OSError: the address means nothing, or the storage can't be reached.
    """
    from pyarrow import ArrowInvalid, fs  # a tenth of a second, which most programs' options need not wait for

    try:
        return fs.FileSystem.from_uri(url)
    except (ArrowInvalid, NotImplementedError) as error:
        raise OSError(f"{url} is no address of files ({error}); give s3://BUCKET/FOLDER, gs://... or a path") from error


def list_files(storage: fs.FileSystem, root: str) -> dict[str, fs.FileInfo]:
    """All files below a folder by their names from there; none if it is not there.

    Raises:
        OSError: the storage can't be read, or a name would lead out of a copy's folder.
    """
    from pyarrow import fs

    found = storage.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    files = {info.path[len(root) + 1 :]: info for info in found if info.is_file}
    for name in files:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise OSError(f"{root} holds {name!r}, which would lie outside of its copy; rename it")
    return files


def copy(source: fs.FileSystem, name: str, target: fs.FileSystem, to: str) -> None:
    """Copy one file, and make the folder that it goes to."""
    from pyarrow import fs

    target.create_dir(to.rpartition("/")[0], recursive=True)
    fs.copy_files(name, to, source, target)


def bring(storage: fs.FileSystem, name: str, path: Path) -> None:
    """Copy one file to this machine's disk, where it is there as a whole or not at all."""
    from pyarrow import fs

    part = path.with_name(f".{path.name}.part")
    copy(storage, name, fs.LocalFileSystem(), str(part))
    part.rename(path)


def unreadable_reason(url: str) -> str:
    """Why this machine can't read what lies at an address; empty if it can."""
    try:
        storage, root = opened(url)
        return "" if storage.get_file_info(root).type.name != "NotFound" else "nothing lies there"
    except OSError as error:
        return " ".join(str(error).split())[:300]


def local_path(place: Path | str) -> Path:
    """A cohort's path on this machine: what lies at an address is copied (`fetch`), a .zip unpacked."""
    path = fetch(str(place)) if is_url(place) else Path(place)
    return unpack(path, _base() / "unpacked") if path.suffix.lower() == ".zip" and path.is_file() else path


def fetch(url: str) -> Path:
    """A copy of a cohort on this machine's disk, brought up to date; only what is new or has changed is copied.

    Copies lie under LDSEG_CACHE (default: ~/.cache/ldseg), one for each address; processes wait for one another.

    Args:
        url: of a folder, of a manifest, with which the folder around it comes, or of an image.

    Raises:
        CohortError: nothing lies there, or the storage can't be read.
    """
    try:
        storage, root = opened(url)
        info = storage.get_file_info(root)
        around, _, name = url.rpartition("/")
        if info.is_file and Path(name).suffix in MANIFESTS:
            return fetch(around) / name
        if info.is_file:
            root, files, folder = root.rpartition("/")[0], {name: info}, _folder(url).parent
        else:
            files, folder = list_files(storage, root), _folder(url)
        if not files:
            raise CohortError(f"nothing lies at {url}; look for a typing error")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / "lock"):
            _update(storage, root, files, folder)
        return folder / name if info.is_file else folder
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        raise CohortError(f"{url} can't be read ({reason}); try again, or give the path of a copy") from error


def _base() -> Path:
    return Path(os.environ.get("LDSEG_CACHE") or Path.home() / ".cache" / "ldseg")


def _folder(url: str) -> Path:
    # the last folder's name is the cohort's
    return _base() / "data" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rpartition("/")[2]


def _update(storage: fs.FileSystem, root: str, files: dict[str, fs.FileInfo], folder: Path) -> None:
    index = folder / INDEX
    had = json.loads(index.read_text()) if index.is_file() else {}
    has = {name: [info.size, info.mtime_ns] for name, info in files.items()}
    for name in had.keys() - has.keys():
        (folder / name).unlink(missing_ok=True)
    new = [name for name in has if had.get(name) != has[name] or not (folder / name).is_file()]
    if new:
        # what changes is not in the index while it does
        kept = {name: value for name, value in has.items() if name not in new}
        write_atomically(index, json.dumps(kept).encode())
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda name: bring(storage, f"{root}/{name}", folder / name), new))
    if had != has:
        write_atomically(index, json.dumps(has).encode())
