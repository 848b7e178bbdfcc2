"""The models that a sampler holds: loaded when a call names them, by path and digest, the least used one dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cachetools import LRUCache

from ldseg.bundle import BundleError, load_bundle
from ldseg.posterior.sampling import Posterior


class ModelError(RuntimeError):
    """A model that can't be used; only the calls that name it fail."""


@dataclass(frozen=True)
class ModelRef:
    """Names a model: where its bundle lies for every sampler, and which one it must be.

    Attributes:
        digest: "sha256:..." of the weights and the configuration.
    """

    path: str
    digest: str


class Models:
    """Models by digest, ready to sample; what was damaged is tried anew at the next call.

    Args:
        device: where they compute.
        chunk_size: samples that are denoised as one batch.
        held: how many are kept; one more drops the one that was not used for longest.
        before_step: see `Posterior`.
    """

    def __init__(self, device: str, chunk_size: int, held: int, before_step: Callable[[], None] = lambda: None) -> None:
        if held < 1:
            raise ValueError(f"at least one model must be held, got {held}")
        self.device, self.chunk_size, self.held, self._before_step = device, chunk_size, held, before_step
        self._loaded: LRUCache[str, Posterior] = LRUCache(held)

    def __contains__(self, ref: ModelRef) -> bool:
        return ref.digest in self._loaded

    def get(self, ref: ModelRef) -> Posterior:
        """A model, loaded, verified and tested if it is not there yet.

        Raises:
            ModelError: it is damaged, it is another one than the call names, or it gives numbers that are not finite.
        """
        found = self._loaded.get(ref.digest)
        if found is None:
            self.shed(self.held - 1)  # before loading: the new one may need the place
            found = self._load(ref)
            self._loaded[ref.digest] = found
        return found

    def shed(self, held: int) -> None:
        """Drop all but the `held` models used last; a case that is being drawn keeps its own until it ends."""
        while len(self._loaded) > held:
            self._loaded.popitem()

    def _load(self, ref: ModelRef) -> Posterior:
        try:
            bundle = load_bundle(Path(ref.path))
        except BundleError as error:
            raise ModelError(str(error)) from error
        if bundle.digest != ref.digest:
            problem = f"{ref.path} holds the model {bundle.digest}, not {ref.digest}"
            raise ModelError(f"{problem}; put the bundle back, or name the model anew")
        posterior = Posterior(bundle, device=self.device, chunk_size=self.chunk_size, before_step=self._before_step)
        test(posterior)
        _ = posterior.precision  # chosen now, by a trial, and not with the first case
        return posterior


@torch.inference_mode()
def test(posterior: Posterior) -> None:
    """See that a model gives probabilities.

    Raises:
        ModelError: it does not.
    """
    data = posterior.config.data
    shape = tuple(data.shape)
    image = torch.zeros((1, data.in_channels, *shape), device=posterior.device)
    latent = torch.zeros((1, *posterior.model.latent_shape(shape)), device=posterior.device)
    for model in posterior.models:
        embedding = model.encode_image(image)
        probabilities = model.decode(latent, embedding).float().softmax(1)
        if not torch.isfinite(embedding).all() or not torch.isfinite(probabilities).all():
            raise ModelError(f"{posterior.bundle.path}: the model gives numbers that are not finite; export it anew")


def release(device: str) -> None:
    """Give back what is allocated and not in use."""
    gc.collect()
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()
