"""The reliability diagram of an evaluation: how often the model is right when it says how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_reliability(reliability: Mapping[str, Any], path: Path) -> Path:
    """Accuracy against confidence in bins, and how many voxels each bin has (Guo et al. 2017, figure 1), as PNG.

    Args:
        reliability: "counts", "hits" and "confidence" (sums over the voxels of each bin) and "ece" of the most likely
            class, as `EvaluationResult.summary["reliability"]` has them.
        path: of the picture.
    """
    counts, hits, confidence = (
        np.asarray(reliability[name], dtype=np.float64) for name in ("counts", "hits", "confidence")
    )
    used = counts > 0
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as sure as right")
    above.plot(confidence[used] / counts[used], hits[used] / counts[used], "o-", label="model")
    above.set_ylabel("share of voxels that are right")
    above.set_title(f"expected calibration error {reliability['ece']:.4f}", fontsize=10)
    above.legend(frameon=False)
    edges = np.linspace(0, 1, len(counts) + 1)
    below.bar((edges[:-1] + edges[1:]) / 2, counts / counts.sum(), width=1 / len(counts), edgecolor="white")
    below.set_yscale("log")
    below.set_ylabel("share of voxels")
    below.set_xlabel("probability of the most likely class")
    below.set_xlim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return path
