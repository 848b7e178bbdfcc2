"""The service with samplers that take a fixed time for each chunk and compute nothing; all else is as it is.

As a program: python benchmarks/serving/simulated.py SETTINGS PORT SECONDS
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ldseg.orchestration.cluster import connection  # noqa: E402


def simulated(service_s: float) -> Any:
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
            await self._work(lambda: time.sleep(service_s))
            classes, shape = posterior.config.data.num_classes, tuple(case.grid.inside.shape)
            total = PosteriorAccumulator.create(classes, shape, case.grid.inside)
            drawn = torch.zeros(len(indices), classes, *shape)
            drawn[:, 0], drawn[:, 1, : shape[0] // 2] = 0.25, 0.75
            total.add(drawn)
            return total

    return Simulated


def main() -> int:
    """Until SIGINT."""
    settings, port, service_s = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    from serve import backpressure
    from serve.app import Ingress
    from serve.settings import Settings

    own, stop = Settings.from_dict({"cpus_per_replica": 0.5, **settings}), threading.Event()
    backpressure.announce()
    connection.connect(num_cpus=own.replicas + 2, dashboard=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    from ray import serve

    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        application = Ingress.bind(own.to_dict(), simulated(service_s))  # type: ignore[attr-defined]
        serve.run(application, name="ldseg", route_prefix="/")
        while not stop.wait(1):
            pass
        serve.delete("ldseg")
    finally:
        connection.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
