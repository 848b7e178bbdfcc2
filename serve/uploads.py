"""Bodies of a bounded size, and uploaded volumes."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ldseg.data.volume import is_image, stem
from serve.problems import Problem, from_validation
from serve.schemas import UploadRequest, check_name
from serve.settings import Settings
from serve.store import JobStore, NewCohort, SamplePlan

FORM_BYTES = 2**16  # beside the file


async def limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces.

    Raises:
        Problem: it is larger than `most` bytes; known from Content-Length, or when that much has come.
    """
    too_large = Problem("too-large", f"at most {most} bytes are taken in one request")
    declared = request.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise too_large
        yield chunk


async def receive(
    request: Request, settings: Settings, most_steps: int, uploads: Path, store: JobStore
) -> tuple[str, str]:
    """Take in one uploaded volume and queue it.

    Returns:
        The id of its one-case cohort and the case's name.

    Raises:
        Problem: the form or the file can't be used.
    """
    if not request.headers.get("Content-Type", "").startswith("multipart/form-data"):
        raise Problem("invalid-request", "send multipart/form-data with the volume in the field 'image'")
    stream = limited(request, settings.max_upload_bytes + FORM_BYTES)
    try:
        form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=8, max_part_size=4096).parse()
    except MultiPartException as error:
        raise Problem("invalid-request", f"the form can't be read: {error.message}") from error
    image = form.get("image")
    try:
        if not isinstance(image, UploadFile) or not image.filename:
            raise Problem("invalid-request", "image: the field with the volume's file is missing")
        fields = {key: value for key, value in form.items() if key != "image"}
        wanted = UploadRequest.model_validate_strings(fields)
        wanted.check(settings, most_steps)
        target = _target(image.filename, uploads)
        name = wanted.name or check_name(stem(target))
        await asyncio.to_thread(_copy, image, target)
    except ValidationError as error:
        raise from_validation(error) from error
    finally:
        await form.close()
    plan = SamplePlan.fixed(wanted.samples)
    new = NewCohort(owner="", plan=plan, steps=wanted.steps, seed=wanted.seed, upload=True)
    cohort, _ = await asyncio.to_thread(store.add, new, [(name, str(target))])
    return cohort, name


def _target(filename: str, uploads: Path) -> Path:
    """A new folder for the file, which keeps its ending and the harmless letters of its name."""
    plain = re.sub(r"[^\w.-]", "_", filename.replace("\\", "/").rpartition("/")[2]).lstrip(".")[-100:].lstrip(".")
    if not plain or not is_image(Path(plain)):
        raise Problem("invalid-request", f"image: {filename[:100]!r} is no .nii, .nii.gz, .png, .bmp or .tiff file")
    return uploads / secrets.token_hex(8) / (plain if stem(Path(plain)) else f"volume{plain}")


def _copy(image: UploadFile, target: Path) -> None:
    target.parent.mkdir(parents=True)
    with target.open("wb") as file:
        shutil.copyfileobj(image.file, file, 2**20)
