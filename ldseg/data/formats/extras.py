"""Libraries of the package's extras: loaded when a file asks for them, named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from ldseg.data.errors import CaseError

EXTRAS = {"pydicom": "dicom", "highdicom": "dicom", "SimpleITK": "itk"}  # the extra of pyproject.toml that brings it


def load(module: str, *, case: str, what: str) -> Any:
    """A module of a library that is installed by an extra.

    Args:
        what: a sentence's subject that needs it, such as "scan.nrrd".

    Raises:
        CaseError: the library is not installed.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        cure = f"pip install 'ldseg[{EXTRAS[library]}]'"
        raise CaseError(case, f"{what} needs {library}, which is not installed", cure) from error
