"""PNG, BMP, TIFF and JPEG images by Pillow: the size is checked before a pixel is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ldseg.data.errors import CaseError
from ldseg.data.formats.regular import open_regular

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")

_PLAIN_MODES = {"LA": "L", "La": "L"} | dict.fromkeys(("P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr"), "RGB")

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_raster(path: Path, *, case: str, max_voxels: int, label: bool = False) -> np.ndarray:
    """Pixels as (rows, columns) or (rows, columns, channels); transparency is dropped.

    A palette is looked up for images and left as its indices for labels.

    Raises:
        CaseError: missing, unreadable, truncated, several pages, or more than `max_voxels` pixels.
    """
    try:
        with open_regular(path, case=case) as file, Image.open(file) as image:
            if image.width * image.height > max_voxels:
                raise CaseError(case, f"{path} claims {image.width} x {image.height} pixels", "crop it")
            pages = int(getattr(image, "n_frames", 1))
            if pages > 1:
                raise CaseError(case, f"{path} holds {pages} pages", "export the one page as its own file")
            return np.asarray(image if label and image.mode == "P" else _plain(image))
    except CaseError:
        raise
    except UNREADABLE as error:
        cure = "copy or convert the file again (PNG, BMP or TIFF)"
        raise CaseError(case, f"{path} can't be read ({error})", cure) from error


def encode_raster(array: np.ndarray) -> tuple[bytes, str]:
    """(rows, columns) as a PNG (integers up to 65535) or a 32-bit TIFF, and the file name's ending."""
    buffer = io.BytesIO()
    if array.dtype.kind == "f" or array.min() < 0 or array.max() > 65535:
        Image.fromarray(array.astype(np.float32 if array.dtype.kind == "f" else np.int32)).save(buffer, format="TIFF")
        return buffer.getvalue(), ".tif"
    Image.fromarray(array.astype(np.uint8 if array.max() < 256 else np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue(), ".png"


def _plain(image: Image.Image) -> Image.Image:
    if image.mode == "1":
        return image.convert("L").point(lambda value: value // 255)
    return image.convert(_PLAIN_MODES[image.mode]) if image.mode in _PLAIN_MODES else image
