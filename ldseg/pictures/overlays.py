"""Pictures of single planes as PNG: the image with one map over it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

COLOURS = ("#35c9ff", "#ffb02e", "#ff5c8a", "#7ee081", "#b79cff", "#ff8a5c", "#5ce1c6", "#f2e863")
"""Of the structures, in their order; those of `ldseg.pictures.case`."""

HEAT = ("#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4")
"""Equally spaced colours from the least to the most uncertain; light grows all the way."""

HIGHEST = {"variance": 0.5}  # of a map's values; entropies end at an even doubt between two classes
FADED_BELOW = 0.15  # of the highest value: smaller ones fade, so that the image is seen where there is no doubt
LINE_SHARE = 220  # lines that fit into a picture's longer side
DASHES = ((1, 0), (5, 3), (2, 2))  # lengths of a contour's strokes and gaps, in widths of the line
MIN_LETTER, LETTER_SHARE = 13, 26  # pixels, and letters that fit into a picture's height


@dataclass(frozen=True)
class Structure:
    """What a label map names.

    Attributes:
        value: in the label map.
    """

    name: str
    value: int
    colour: str


def structures(names: tuple[str, ...], values: tuple[int, ...]) -> tuple[Structure, ...]:
    """Each structure with its value in label maps and its colour."""
    of_structures = values[1:] if len(values) == len(names) + 1 else range(1, len(names) + 1)
    pairs = zip(names, of_structures, strict=True)
    return tuple(Structure(name, int(value), COLOURS[k % len(COLOURS)]) for k, (name, value) in enumerate(pairs))


def highest(key: str) -> float:
    """The value of a map that gets the last colour: 1 for a probability or a mask, ln 2 nats for an entropy."""
    return 1.0 if key.startswith(("prob-", "cautious-")) else HIGHEST.get(key, math.log(2))


def overlay(key: str, values: np.ndarray, structures: tuple[Structure, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A map's colours.

    Args:
        key: of the file: label, sample-N, prob-NAME, cautious-NAME; anything else is an amount of doubt.
        values: (rows, columns).
        structures: what the values stand for.

    Returns:
        (rows, columns, 3) colours in 0 to 255, and (rows, columns) how much they cover, 0 to 1, at full opacity.
    """
    if key == "label" or key.startswith("sample-"):
        colours, cover = np.zeros((*values.shape, 3)), np.zeros(values.shape)
        for structure in structures:
            mask = values == structure.value
            colours[mask], cover[mask] = rgb(structure.colour), 1.0
        return colours, cover
    for structure in structures:
        if key in (f"prob-{structure.name}", f"cautious-{structure.name}"):
            cover = np.clip(np.nan_to_num(values.astype(np.float64)), 0, 1)
            return np.broadcast_to(rgb(structure.colour), (*values.shape, 3)), cover
    share = np.clip(np.nan_to_num(values.astype(np.float64)) / highest(key), 0, 1)
    stops = np.array([rgb(colour) for colour in HEAT])
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(share, places, stops[:, k]) for k in range(3)], axis=-1)
    return colours, np.clip(share / FADED_BELOW, 0, 1)


def grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) to (rows, columns, 3) in 0 to 255: `low` is black, `high` is white."""
    shown = np.clip((np.nan_to_num(plane.astype(np.float64)) - low) / (high - low), 0, 1) * 255
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=-1)


def blend(base: np.ndarray, colours: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) with the colours over the base."""
    return np.asarray(base * (1 - cover[..., None]) + colours * cover[..., None])


def outline(picture: np.ndarray, labels: np.ndarray, structures: tuple[Structure, ...]) -> np.ndarray:
    """Contours of a label map over a picture, on the picture's own pixels.

    A line inside the structure has its colour, one outside is dark, so that both are seen on any grey. The lines of
    the structures are solid, dashed and dotted in turn, so that they can be told apart without colours.

    Args:
        picture: (rows, columns, 3) in 0 to 255.
        labels: (rows, columns) label values.
    """
    drawn, width = picture.copy(), max(2, round(max(labels.shape) / LINE_SHARE))
    stripes = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1])) // width
    for k, structure in enumerate(structures):
        mask = labels == structure.value
        if not mask.any():
            continue
        drawn[binary_dilation(mask, iterations=max(1, width // 2)) & ~mask] = 0
        line = mask & ~binary_erosion(mask, iterations=width, border_value=1)
        drawn[line] = rgb(structure.colour)
        length, gap = DASHES[k % len(DASHES)]
        drawn[line & (stripes % (length + gap) >= length)] = 0
    return drawn


def encode(
    pixels: np.ndarray,
    pixel: tuple[float, float],
    size: int,
    letters: tuple[str, str, str, str],
    outlined: tuple[np.ndarray, tuple[Structure, ...]] | None = None,
) -> bytes:
    """A PNG in which every voxel is a rectangle of its own proportions.

    Args:
        pixels: (rows, columns, 3) in 0 to 255.
        pixel: height and width of a voxel in one unit.
        size: of the longer side, in pixels.
        letters: the patient's side on the left, right, top and bottom; empty ones are left out.
        outlined: (rows, columns) label values whose contours are drawn, and what they stand for.
    """
    height, width = extent(pixels.shape[:2], pixel, size)
    rows = nearest(pixels.shape[0], height)
    columns = nearest(pixels.shape[1], width)
    enlarged = np.rint(pixels).astype(np.uint8)[rows[:, None], columns[None]]
    if outlined is not None:
        enlarged = outline(enlarged, outlined[0][rows[:, None], columns[None]], outlined[1])
    picture = Image.fromarray(enlarged)
    _draw_letters(picture, letters)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def extent(shape: tuple[int, ...], pixel: tuple[float, float], size: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side has `size` pixels."""
    height, width = shape[0] * pixel[0], shape[1] * pixel[1]
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def nearest(count: int, size: int) -> np.ndarray:
    """The voxel that each of `size` pixels shows."""
    return np.minimum(((np.arange(size) + 0.5) * count / size).astype(int), count - 1)


def rgb(colour: str) -> np.ndarray:
    """(3,) in 0 to 255 of "#rrggbb"."""
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], dtype=np.float64)


def _draw_letters(picture: Image.Image, letters: tuple[str, str, str, str]) -> None:
    width, height = picture.size
    size = max(MIN_LETTER, min(width, height) // LETTER_SHARE)
    draw, font, gap = ImageDraw.Draw(picture), ImageFont.load_default(size), size // 3
    places = (
        (gap, height // 2, "lm"),
        (width - gap, height // 2, "rm"),
        (width // 2, gap, "mt"),
        (width // 2, height - gap, "mb"),
    )
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        if letter:
            draw.text((x, y), letter, fill="#ffffff", font=font, anchor=anchor, stroke_width=2, stroke_fill="#000000")
