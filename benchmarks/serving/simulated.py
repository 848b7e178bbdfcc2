"""The service with samplers that take a fixed time for each chunk and compute nothing; all else is as it is.

As a program: python -m benchmarks.serving.simulated SECONDS [options of platform/serve_model.py]
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any


def simulated(chunk_s: float) -> Any:
    """A class of samplers: models are loaded, calls taken, chunks added and answers sent as by the real one."""
    import torch

    from ldseg.posterior.accumulator import PosteriorAccumulator
    from serve.sampling.sampler import Sampler

    class Simulated(Sampler):
        async def _encode(self, posterior: Any, grid: Any, reply: Any) -> Any:
            model = posterior.config.model
            latent = [size // factor for size, factor in zip(grid.image.shape[1:], model.downsampling, strict=True)]
            return torch.zeros(1, model.embedding_channels, *latent)

        async def _draw(self, case: Any, posterior: Any, embedding: Any, indices: Any) -> Any:
            await self._work(lambda: time.sleep(chunk_s))
            classes, shape = posterior.config.data.num_classes, tuple(case.grid.inside.shape)
            total = PosteriorAccumulator.create(classes, shape, case.grid.inside)
            drawn = torch.zeros(len(indices), classes, *shape)
            drawn[:, 0], drawn[:, 1, : shape[0] // 2] = 0.25, 0.75
            total.add(drawn)
            return total

    return Simulated


def main() -> int:
    """Serve until SIGINT."""
    from ldseg.commands.serve import main as serve_model
    from serve import app

    app.build = partial(app.Ingress.bind, sampler=simulated(float(sys.argv[1])))
    return serve_model(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
