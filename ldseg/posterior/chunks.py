"""A piece of a case's samples, drawn also where the memory is short."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ldseg.data.grid import GridCase
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.stopwatch import Stopwatch

T = TypeVar("T")
# torch's allocator on the CPU; oneDNN, which names no reason, and for a tested model has no other; cuDNN and cuBLAS
NO_MEMORY = ("can't allocate memory", "could not create a primitive", "STATUS_ALLOC_FAILED")


class CaseTooLarge(MemoryError):
    """A case for which the memory does not suffice, one sample at a time either; only that case fails."""


def draw_chunk(
    posterior: Posterior,
    grid: GridCase,
    embedding: Tensor,
    *,
    seed: int,
    indices: Sequence[int],
    num_steps: int | None,
    make_room: Callable[[], None],
) -> tuple[PosteriorAccumulator, dict[str, float]]:
    """The samples with the given indices, added up, on the CPU; a second time one by one if the memory runs out.

    Args:
        indices: at most `posterior.chunk_size`: one batch of the denoiser.
        make_room: called before the second time.

    Returns:
        The samples, and the wall time by stage.

    Raises:
        CaseTooLarge: it runs out again.
    """
    watch = Stopwatch()

    def together() -> PosteriorAccumulator:
        drawn = posterior.accumulate(grid, embedding, seed=seed, indices=indices, num_steps=num_steps, watch=watch)
        return _on_cpu(drawn)

    def one_by_one() -> PosteriorAccumulator:
        latents = posterior.latents(grid, embedding, seed=seed, indices=indices, num_steps=num_steps, watch=watch)
        return _one_by_one(posterior, grid, embedding, list(zip(indices, latents.cpu(), strict=True)), watch)

    return _twice(together, one_by_one, grid, make_room), watch.seconds


def encode_case(posterior: Posterior, grid: GridCase, make_room: Callable[[], None]) -> tuple[Tensor, dict[str, float]]:
    """The image's embedding, a second time if the memory runs out, and the wall time by stage.

    Raises:
        CaseTooLarge: it runs out again.
    """
    watch = Stopwatch()
    attempt = functools.partial(posterior.encode, grid, watch)
    return _twice(attempt, attempt, grid, make_room), watch.seconds


def _twice(first: Callable[[], T], second: Callable[[], T], grid: GridCase, make_room: Callable[[], None]) -> T:
    for attempt in (first, second):
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        make_room()  # not in the handler: there the error still holds what was allocated
    shape = "x".join(str(size) for size in grid.inside.shape)
    cure = "crop or coarsen the image, or give the samplers more memory"
    raise CaseTooLarge(f"{grid.case}: the memory does not suffice for its grid of {shape} voxels; {cure}")


@torch.inference_mode()
def _one_by_one(
    posterior: Posterior, grid: GridCase, embedding: Tensor, drawn: Sequence[tuple[int, Tensor]], watch: Stopwatch
) -> PosteriorAccumulator:
    """The numbers of `accumulate`, with the sums and the waiting latents on the CPU: the device holds one sample.

    The latents are denoised as one batch all the same. They are a small fraction of one decoded sample, and a batch of
    another size differs from it in the last bits.
    """
    total: PosteriorAccumulator | None = None
    for probabilities, member in posterior.decoded(embedding, drawn, watch):
        shape = tuple(grid.image.shape[1:])
        one = PosteriorAccumulator.create(posterior.config.data.num_classes, shape, grid.inside, posterior.device)
        one.add(probabilities, member)
        one = _on_cpu(one)
        total = one if total is None else total.include(one)
    if total is None:
        raise ValueError("there are no samples to draw")
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of the device ran out; some libraries say so in their text alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)


def _on_cpu(total: PosteriorAccumulator) -> PosteriorAccumulator:
    if total.inside.device.type == "cpu":
        return total
    return PosteriorAccumulator.from_arrays(total.to_arrays())
