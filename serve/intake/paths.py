"""What the service may read for a client: files under its roots, uploads of the same owner, URLs it was given."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import fsspec

from ldseg.data.errors import CaseError
from ldseg.data.formats.readers import made_of
from ldseg.data.layouts import list_series
from serve.http.problems import Problem
from serve.settings import Settings

UPLOAD = "upload:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def is_url(image: str) -> bool:
    """Whether an image is named by a URL (or a chain of them)."""
    return "::" in image or bool(_SCHEME.match(image))


def check_url(url: str, settings: Settings) -> str:
    """A URL that begins with an allowed prefix and can't leave it.

    Raises:
        ValueError: it is not allowed. Nothing was read.
    """
    plain = unquote(unquote(url))
    leaves = "::" in url or "\\" in plain or any(part in (".", "..") for part in plain.split("/"))
    if leaves or not any(url.startswith(prefix) and url != prefix for prefix in settings.allow_urls):
        known = ", ".join(settings.allow_urls) or "none"
        cure = "start the service with --allow-url for its folder, or upload the image"
        raise ValueError(f"{url[:200]!r} is no URL that this service may read (allowed: {known}); {cure}")
    return url


def resolve(image: str, settings: Settings, owner: str) -> str:
    """What a client named as an image, as a real path or an allowed URL.

    Args:
        image: a path under an allowed root, upload:ID, or a URL.
        owner: of the request.

    Raises:
        Problem: it is not allowed; no image was read.
    """
    if image.startswith(UPLOAD):
        from serve.intake.uploads import find_upload

        return str(find_upload(image.removeprefix(UPLOAD), settings, owner))
    try:
        if is_url(image):
            return check_url(image, settings)
        path = resolve_image(image, settings.allow_roots)
        own = settings.folder.resolve()  # a root may lie above it; what is in it has owners
        if path.is_dir() and not path.is_relative_to(own):
            path = resolve_image(str(_of_series(path)), settings.allow_roots)
        if any(part.resolve().is_relative_to(own) for part in (made_of(path) if path.is_file() else [path])):
            raise ValueError(f"{image!r} lies in the service's own folder; name an upload as upload:ID")
        return str(path)
    except (ValueError, OSError) as error:
        raise Problem("path-not-allowed", str(error)) from error


def _of_series(folder: Path) -> Path:
    """A file of the one DICOM series that a folder holds.

    Raises:
        ValueError: it holds none, or several.
    """
    listing = list_series(folder, "")
    if len(listing.cases) != 1:
        raise ValueError(
            f"{folder} is a folder with {len(listing.cases)} usable series of DICOM; name one that has one"
        )
    return listing.cases[0].image


@contextmanager
def local_image(image: str, settings: Settings, case: str, *, upload: bool = False) -> Iterator[Path]:
    """A case's image as a local file, checked again: what was a file when it was posted may be a link by now.

    A URL is fetched into a temporary file of at most `max_upload_bytes`.

    Args:
        upload: it came with the request and lies where the service itself put it.

    Raises:
        CaseError: it is no longer allowed, or can't be fetched.
    """
    local: Path | None = None
    try:
        if upload or not is_url(image):
            roots = (str(settings.uploads.resolve()),) if upload else settings.readable_roots
            local = resolve_image(image, roots)
        else:
            check_url(image, settings)
    except (ValueError, OSError) as error:
        raise CaseError(case, str(error), "post the cohort again") from error
    if local is not None:  # not in the try: what the reader raises is his own
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="ldseg-fetched-") as folder:
        yield _fetch(image, Path(folder), settings.max_upload_bytes, case)


def _fetch(url: str, folder: Path, most: int, case: str) -> Path:
    target = folder / re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])[-100:]
    cure = "check the address and the service's access to it"
    try:
        with fsspec.open(url, "rb") as source, target.open("wb") as file:
            while chunk := source.read(2**20):
                file.write(chunk)
                if file.tell() > most:
                    raise CaseError(case, f"{url} is larger than {most} bytes", "crop it")
    except CaseError:
        raise
    except Exception as error:  # each of fsspec's backends has errors of its own
        raise CaseError(case, f"{url} can't be fetched ({type(error).__name__})", cure) from error
    return target


def resolve_image(image: str, roots: tuple[str, ...]) -> Path:
    """A case's image as a real path, symbolic links followed.

    Raises:
        ValueError: it, or a file beside it that it is made of, lies outside the allowed roots, is a loop of links, or
            is no path at all.
    """
    path = Path(image)
    candidates = [path] if path.is_absolute() else [Path(root) / path for root in roots]
    try:
        resolved = [candidate.resolve() for candidate in candidates]
    except RuntimeError as error:  # so Python before 3.13 tells of a loop
        raise ValueError(f"{image!r} is a symbolic link that leads to itself; name the file it should be") from error
    allowed = [path for path in resolved if any(path.is_relative_to(root) for root in roots)]
    if not allowed:
        cure = "put it there, or start the service with --allow-root for its folder"
        raise ValueError(f"{image!r} does not lie under a folder that this service may read; {cure}")
    found = next((path for path in allowed if path.is_file()), allowed[0])
    for part in made_of(found)[1:] if found.is_file() else ():  # a series' other slices, the voxels of a header
        if not any(part.resolve().is_relative_to(root) for root in roots):
            cure = "put the file itself there"
            raise ValueError(f"{part.name!r}, beside {image!r}, leads out of what this service may read; {cure}")
    return found


def without_folders(text: str, image: str | Path, settings: Settings) -> str:
    """A sentence for a client: files are named in it, the folders of this machine that they lie in are not.

    Args:
        image: of the case that it is about, as a path or a URL.
    """
    path = Path(image)
    roots = [Path(root) for root in (*settings.allow_roots, str(settings.folder), settings.home)]
    folders = [root for root in roots if root.name] + ([path.parent] if path.is_absolute() else [])
    for folder in sorted(folders, key=lambda folder: -len(str(folder))):
        text = text.replace(f"{folder}/", "").replace(f"{folder.resolve()}/", "")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/(ldseg-fetched-[^/]+/)?", "", text)
