"""A zip of a DICOM study becomes a NIfTI on arrival: what names the patient is not kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ldseg.data.errors import CaseError, CohortError
from ldseg.data.formats import nifti
from ldseg.data.formats.dicom import series
from ldseg.data.formats.dicom.packed import unpack
from ldseg.data.layouts import list_series
from ldseg.files import write_atomically
from serve.http.problems import Problem
from serve.settings import Settings

SUFFIX = ".zip"


def as_nifti(path: Path, pattern: str, settings: Settings) -> Path:
    """Put a NIfTI of one series in the place of a zip, which goes away.

    Args:
        pattern: names the series, as `--series` does; "" for the only one.

    Returns:
        The NIfTI, called like the zip, in the same folder.

    Raises:
        Problem: it can't be unpacked, or holds no series or several, or the series is no volume.
        OSError: the disk is full.
    """
    unpacked, name = path.parent / "unpacked", path.name[: -len(SUFFIX)]
    try:
        folder = unpack(path, unpacked, most=settings.max_upload_bytes)
        listing = list_series(folder, pattern)
        if len(listing.cases) != 1:
            first = f" ({listing.problems[0].problem})" if listing.problems else ""
            problem = f"the zip holds {len(listing.cases)} usable series of DICOM{first}"
            raise CaseError(name, problem, "send one study, and name its series in the field series")
        array, header, _ = series.read(listing.cases[0].image, case=name, max_voxels=settings.max_voxels)
        target = path.with_name(f"{name}.nii.gz")
        write_atomically(target, nifti.compress(nifti.encode_nifti(array, header, "none")))
    except (CaseError, CohortError) as error:
        text = str(error).replace(f"{unpacked}{os.sep}", "").replace(str(path), path.name)
        raise Problem("invalid-image", text) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    path.unlink()
    return target
