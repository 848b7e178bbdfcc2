"""Cases, models and their samples as drawn alone in this process: what samplers are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldseg.bundle import Bundle
from ldseg.data.grid import GridCase
from ldseg.data.volume import Volume
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.adaptive import Drawing
from ldseg.posterior.plan import SamplePlan
from ldseg.posterior.sampling import Posterior
from serve.sampling.models import ModelRef

CHUNK = 4
TOLERANCE = {2: 0.05, 3: 0.012}  # by rank: the tiny models' cases settle after some chunks, not at once


def ref(bundle: Bundle) -> ModelRef:
    return ModelRef(str(bundle.path), bundle.digest)


def case(bundle: Bundle, seed: int = 0, shape: tuple[int, ...] = (13, 15, 11)) -> GridCase:
    """An image of noise on the model's grid."""
    dims = bundle.config.data.spatial_dims
    image = np.random.default_rng(seed).normal(size=(1, *shape[:dims])).astype(np.float32)
    volume = Volume(f"case_{seed}", image, np.eye(4), Path("none"), None, dims, f"sha256:{seed}")
    return Posterior(bundle).prepare(volume)


def alone(
    bundles: Sequence[Bundle], grid: GridCase, plan: SamplePlan, *, seed: int = 0, num_steps: int | None = None
) -> list[PosteriorAccumulator]:
    """The samples of each model, drawn one chunk after the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        posteriors = [Posterior(bundle, chunk_size=CHUNK) for bundle in bundles]
        embeddings = [posterior.encode(grid) for posterior in posteriors]
        drawing = Drawing(plan, CHUNK, len(bundles))
        for k, indices in drawing.chunks():
            draws = {"seed": seed, "indices": indices, "num_steps": num_steps}
            if drawing.take(posteriors[k].accumulate(grid, embeddings[k], **draws)):
                break
        return drawing.totals
    finally:
        torch.set_num_threads(threads)


def same(found: Sequence[PosteriorAccumulator], expected: Sequence[PosteriorAccumulator]) -> bool:
    """Whether all arrays are equal to the bit."""

    def content(total: PosteriorAccumulator) -> dict[str, Any]:
        return {name: (values.shape, values.dtype, values.tobytes()) for name, values in total.to_arrays().items()}

    return [content(total) for total in found] == [content(total) for total in expected]
