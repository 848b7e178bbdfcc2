"""How MLflow loads a registered bundle: safetensors and JSON, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldseg.bundle import load_bundle
from ldseg.posterior.sampling import sample_probabilities


class MeanProbability:
    """Mean class probability of samples for images on the working grid, as a pyfunc model."""

    def __init__(self, folder: Path, samples: int = 8) -> None:
        self.bundle, self.samples = load_bundle(folder), samples

    @torch.inference_mode()
    def predict(self, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Normalised images (B, C, *grid) float32 -> (B, num_classes, *grid) float32; seeded by position."""
        means = []
        for index, image in enumerate(torch.from_numpy(np.array(model_input, dtype=np.float32))):
            generator = torch.Generator().manual_seed(index)
            shape = self.bundle.model.latent_shape(tuple(image.shape[1:]))
            starts = torch.randn((self.samples, *shape), generator=generator)
            models = [part.model for part in self.bundle.drawn_by][: self.samples]
            drawn = [
                sample_probabilities(model, model.encode_image(image[None]), starts[m :: len(models)], generator)
                for m, model in enumerate(models)
            ]
            means.append(torch.cat(drawn).mean(0))
        return torch.stack(means).numpy()


def _load_pyfunc(data_path: str, model_config: dict[str, Any] | None = None) -> MeanProbability:
    return MeanProbability(Path(data_path), **(model_config or {}))
