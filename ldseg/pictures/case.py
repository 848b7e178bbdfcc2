"""Pictures of cases: image, segmentation, mean probability and entropy side by side, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter

from ldseg.data.volume import Volume
from ldseg.files import write_atomically
from ldseg.pictures.slice import Slice, cut
from ldseg.posterior.summary import PosteriorSummary

COLOURS = ("#35c9ff", "#ffb02e", "#ff5c8a", "#7ee081", "#b79cff", "#ff8a5c", "#5ce1c6", "#f2e863")
PAGE, TEXT, FAINT, TRUTH = "#0d1117", "#e6edf3", "#8b949e", "#ffffff"
PANELS = ("Image", "Segmentation", "Mean probability", "Predictive entropy")
WIDTH, MARGIN, GAP, BAR = 13.2, 0.22, 0.14, 0.78  # inches
PANEL = (WIDTH - 2 * MARGIN - BAR - 3 * GAP) / 4
HEADLINE, CAPTION, LEGEND_LINE, LETTER = 0.46, 0.40, 0.25, 0.087
OPACITY = 0.78  # of a structure that is certain


@dataclass(frozen=True)
class PictureCase:
    """What a row of a picture shows.

    Attributes:
        volume: the image.
        summary: what the samples say about it.
        truth: (*native) class indices, drawn as a dashed contour; None for an unlabelled case.
    """

    volume: Volume
    summary: PosteriorSummary
    truth: np.ndarray | None = None


def draw_case(volume: Volume, summary: PosteriorSummary, path: Path, truth: np.ndarray | None = None) -> Path:
    """Draw one case; see `draw_cohort`."""
    return draw_cohort([PictureCase(volume, summary, truth)], path)


def draw_cohort(cases: Sequence[PictureCase], path: Path, *, dpi: int = 130) -> Path:
    """Draw a row for each case: image, segmentation with the truth dashed, mean probability, predictive entropy.

    The entropy's colours run from 0 to ln 2 nats, which is an even doubt between two classes. Contours are smoothed by
    half a voxel. Which slice is shown: `ldseg.pictures.slice.cut`.

    Args:
        cases: at least one; all of one model.
        path: of the PNG, written atomically.
        dpi: pixels an inch; the picture is 13.2 inches wide.

    Raises:
        ValueError: there is no case, or a truth has another shape than its case.
    """
    if not cases:
        raise ValueError("there is no case to draw")
    slices = [cut(case.volume, case.summary, case.truth) for case in cases]
    heights = [float(np.clip(PANEL / part.ratio, 1.2, 3.5)) for part in slices]
    captions = [_caption_height(case) for case in cases]
    total = HEADLINE + sum(heights) + sum(captions)
    figure = Figure(figsize=(WIDTH, total), facecolor=PAGE)
    FigureCanvasAgg(figure)
    top = total - HEADLINE
    for case, part, height, caption in zip(cases, slices, heights, captions, strict=True):
        axes = _panels(figure, top, height, total)
        _draw_panels(axes, part)
        _draw_caption(figure, case, part, (top - height) / total, total)
        top -= height + caption
    for column, title in enumerate(PANELS):
        x = (MARGIN + column * (PANEL + GAP) + PANEL / 2) / WIDTH
        figure.text(x, 1 - 0.27 / total, title, color=TEXT, size=12.5, weight="bold", ha="center", va="center")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor=PAGE)
    write_atomically(Path(path), content.getvalue())
    return Path(path)


def _panels(figure: Figure, top: float, height: float, total: float) -> list[Axes]:
    """Four panels and the place of the colour bar; positions in inches from the bottom left."""
    axes = []
    for column in range(5):
        x, width = MARGIN + column * (PANEL + GAP), PANEL if column < 4 else 0.13
        box = (x / WIDTH, (top - height) / total, width / WIDTH, height / total)
        axes.append(figure.add_axes(box, facecolor=PAGE))
    for panel in axes[:4]:
        panel.set_axis_off()
    return axes


def _draw_panels(axes: Sequence[Axes], part: Slice) -> None:
    rows, columns = part.window
    zoomed = rows != slice(0, part.label.shape[0]) or columns != slice(0, part.label.shape[1])
    grey = part.image if part.image.ndim == 3 else np.repeat(part.image[..., None], 3, axis=-1)
    colours = _colours(len(part.probability))
    share = OPACITY * np.clip(part.probability, 0, 1)[..., None]
    blended = grey * (1 - share.sum(axis=0)).clip(0, 1) + (share * colours[:, None, None]).sum(axis=0)
    maps = (grey, grey * 0.85, blended.clip(0, 1), part.entropy)
    for panel, shown in zip(axes, maps, strict=False):
        panel.imshow(
            shown, aspect=part.pixel[0] / part.pixel[1], interpolation="bicubic" if shown.ndim == 3 else "bilinear",
            cmap="inferno", vmin=0, vmax=math.log(2),
        )  # fmt: skip
        if panel is not axes[0]:
            panel.set_xlim(columns.start - 0.5, columns.stop - 0.5)
            panel.set_ylim(rows.stop - 0.5, rows.start - 0.5)
    if zoomed:
        corner, size = (columns.start - 0.5, rows.start - 0.5), (columns.stop - columns.start, rows.stop - rows.start)
        axes[0].add_patch(Rectangle(corner, *size, fill=False, edgecolor=FAINT, linewidth=1))
    _letters(axes[0], part)
    for index, colour in enumerate(colours, start=1):
        _contour(axes[1], part.label == index, colour, fill=0.38, linewidths=1.6)
        if part.truth is not None:
            _contour(axes[1], part.truth == index, to_rgb(TRUTH), linewidths=1.1, linestyles=[(0, (3, 2.2))])
    _colour_bar(axes[4])


def _contour(
    panel: Axes, mask: np.ndarray, colour: np.ndarray | tuple[float, float, float], fill: float = 0.0, **line: Any
) -> None:
    """Outline a mask; a structure of a pixel or two keeps its outline."""
    if not mask.any():
        return
    smooth = gaussian_filter(np.pad(mask, 2).astype(np.float64), 0.55)
    level = 0.5 * min(1.0, float(smooth.max()))
    rows, columns = (np.arange(n) - 2 for n in smooth.shape)
    limits = panel.get_xlim(), panel.get_ylim()
    if fill:
        panel.contourf(columns, rows, smooth, levels=[level, 2.0], colors=[tuple(colour)], alpha=fill)
    panel.contour(columns, rows, smooth, levels=[level], colors=[tuple(colour)], **line)
    panel.set_xlim(limits[0])
    panel.set_ylim(limits[1])


def _letters(panel: Axes, part: Slice) -> None:
    edge = [withStroke(linewidth=2.5, foreground=PAGE)]
    style: dict[str, Any] = {
        "color": TEXT,
        "size": 8.5,
        "weight": "bold",
        "transform": panel.transAxes,
        "path_effects": edge,
    }
    panel.text(0.015, 0.5, part.left, ha="left", va="center", **style)
    panel.text(0.5, 0.985, part.top, ha="center", va="top", **style)


def _colour_bar(place: Axes) -> None:
    scale = ScalarMappable(Normalize(0, math.log(2)), "inferno")
    bar = place.figure.colorbar(scale, cax=place, extend="max", extendfrac=0.04)
    bar.set_ticks([0, 0.2, 0.4, 0.6, math.log(2)], labels=["0", "0.2", "0.4", "0.6", "ln 2"])
    bar.ax.tick_params(colors=FAINT, labelsize=8.5, length=2)
    bar.set_label("nats", color=FAINT, size=9, labelpad=2)
    bar.outline.set_edgecolor(FAINT)
    bar.outline.set_linewidth(0.5)


def _colours(count: int) -> np.ndarray:
    return np.array([to_rgb(COLOURS[k % len(COLOURS)]) for k in range(count)])


def _legend(case: PictureCase) -> tuple[list[Line2D], int]:
    """A handle for each structure, with its interval and what the samples say; and the columns."""
    summary = case.summary
    handles = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=4, label=_volume(summary, name))
        for k, name in enumerate(summary.volumes)
    ]
    if case.truth is not None:
        handles.append(Line2D([], [], color=TRUTH, linewidth=1.2, linestyle=(0, (3, 2.2)), label="truth"))
    widest = 0.7 + LETTER * max(len(str(handle.get_label())) for handle in handles)
    return handles, max(1, min(len(handles), int((WIDTH - 2 * MARGIN) / widest)))


def _caption_height(case: PictureCase) -> float:
    handles, columns = _legend(case)
    return CAPTION + LEGEND_LINE * math.ceil(len(handles) / columns) + 0.1


def _draw_caption(figure: Figure, case: PictureCase, part: Slice, bottom: float, total: float) -> None:
    summary = case.summary
    words = [part.title, f"agreement of {summary.num_samples} samples {summary.agreement['mean']:.3f}"]
    y = bottom - 0.2 / total
    left, right = MARGIN / WIDTH, (WIDTH - MARGIN - BAR) / WIDTH
    figure.text(left, y, summary.case, color=TEXT, size=11, weight="bold", ha="left", va="center")
    figure.text(right, y, "   ·   ".join(word for word in words if word), color=FAINT, size=10, ha="right", va="center")
    handles, columns = _legend(case)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left, y - 0.15 / total), ncols=columns, frameon=False,
        labelcolor=TEXT, fontsize=10, borderaxespad=0, borderpad=0, handlelength=1.6, columnspacing=2.2,
    )  # fmt: skip


def _volume(summary: PosteriorSummary, name: str) -> str:
    """The interval with a promise first, where there is one, then the median and percentiles of the samples."""
    low, middle, high = np.percentile(summary.volumes[name], (5, 50, 95))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    unit = {"mm2": "mm²"}.get(summary.unit, summary.unit)
    samples = f"{middle:,.{digits}f} {unit}  (samples' 5th to 95th percentile {low:,.{digits}f}–{high:,.{digits}f})"
    ends = summary.interval(name)
    kind = "not promised" if summary.unfamiliar else "calibrated"
    told = "" if ends is None else f"{kind} {ends[0]:,.{digits}f}–{ends[1]:,.{digits}f} {unit},  "
    return f"{name.replace('_', ' ')}  {told}{samples}"
