"""The reliability diagram of an evaluation: how often the model is right when it says how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldseg.files import replacing


def draw_reliability(reliability: Mapping[str, Any], path: Path) -> Path:
    """Accuracy against confidence in bins, and how many voxels each bin has (Guo et al. 2017, figure 1), as PNG.

    Args:
        reliability: "counts", "hits" and "confidence" (sums over the voxels of each bin) and "ece" of the most likely
            class, as `EvaluationResult.summary["reliability"]` has them; with "boundary", the same of the voxels near
            the boundary, there is a second curve.
        path: of the picture.
    """
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as sure as right")
    near = reliability.get("boundary", {"counts": [0]})
    curves = {"all voxels": reliability} | ({"near the boundary": near} if sum(near["counts"]) else {})
    for offset, (name, values) in enumerate(curves.items()):
        counts, hits, confidence = (np.asarray(values[key], float) for key in ("counts", "hits", "confidence"))
        used, size = counts > 0, 1 / (len(counts) * len(curves))
        label = f"{name}, ECE {values['ece']:.4f}"
        above.plot(confidence[used] / counts[used], hits[used] / counts[used], "os"[offset] + "-", label=label)
        left = np.arange(len(counts)) / len(counts) + offset * size
        below.bar(left, counts / counts.sum(), width=size, align="edge", edgecolor="white", linewidth=0.4)
    above.set_ylabel("share of voxels that are right")
    above.set_title("expected calibration error", fontsize=10)
    above.legend(frameon=False, fontsize=8)
    below.set_yscale("log")
    below.set_ylabel("share of voxels")
    below.set_xlabel("probability of the most likely class")
    below.set_xlim(0, 1)
    with replacing(path) as file:
        canvas.print_png(file)
    return path
