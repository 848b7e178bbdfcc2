"""PNG, BMP, TIFF and JPEG images by Pillow: the size is checked before a pixel is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ldseg.data.errors import CaseError

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_raster(path: Path, *, case: str, max_voxels: int, label: bool = False) -> np.ndarray:
    """Pixels as (rows, columns) or (rows, columns, channels); transparency is dropped.

    A palette is looked up for images and left as its indices for labels.

    Raises:
        CaseError: missing, unreadable, truncated, several pages, or more than `max_voxels` pixels.
    """
    if not path.is_file():
        raise CaseError(case, f"there is no file {path}", "correct the path or put the file there")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_voxels:
                raise CaseError(case, f"{path} claims {image.width} x {image.height} pixels", "crop it")
            if getattr(image, "n_frames", 1) > 1:
                raise CaseError(case, f"{path} holds {image.n_frames} pages", "export the one page as its own file")
            return np.asarray(image if label and image.mode == "P" else _plain(image))
    except CaseError:
        raise
    except UNREADABLE as error:
        raise CaseError(case, f"{path} can't be read ({error})", "copy or convert the file again (PNG, BMP or TIFF)") from error


def _plain(image: Image.Image) -> Image.Image:
    targets = {"1": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
    if image.mode == "1":
        return image.convert("L").point(lambda value: value // 255)
    return image.convert(targets[image.mode]) if image.mode in targets else image
