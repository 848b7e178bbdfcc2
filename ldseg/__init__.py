"""LDSeg: segmentation of medical images by diffusion in a small latent space (Zaman et al., arXiv 2407.12952).

    import ldseg

    model = ldseg.load("models/hippocampus")
    result = model.segment("case.nii.gz", samples=8)
    result.label, result.probability["anterior"], result.entropy, result.volumes

Importing it costs nothing: PyTorch and the rest are loaded when one of its names is first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldseg.api import Model as Model
    from ldseg.api import Result as Result
    from ldseg.api import StructureVolume as StructureVolume
    from ldseg.api import evaluate as evaluate
    from ldseg.api import load as load
    from ldseg.api import read_cohort as read_cohort

__version__ = "0.2.0"

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages; in a checkout also of platform/, models/ and constraints.txt."""

_FACE = ("Model", "Result", "StructureVolume", "evaluate", "load", "read_cohort")


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("ldseg.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
