"""What a case takes of the machine's memory, told from its shape and the model before anything of it is made."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ldseg.config import DataConfig
from ldseg.config.memory import case_bytes, gigabytes
from ldseg.data.errors import CaseError
from ldseg.model import LDSeg

LIBRARIES = 1.25  # times what our tensors take: what convolutions need for themselves, and holes in the heap


def check_memory(
    case: str, needed: int, limit: int | None, device: str, *, grid: tuple[int, ...], samples: int
) -> None:
    """Compare what a case takes with what it may have, both in bytes.

    Args:
        limit: None is `ldseg.config.memory.case_bytes`, and no more than a GPU has.

    Raises:
        CaseError: it takes more.
    """
    most = case_bytes() if limit is None else limit
    if limit is None and device.startswith("cuda"):
        most = min(most, torch.cuda.get_device_properties(device).total_memory)
    if needed > most:
        shape = "x".join(str(size) for size in grid)
        problem = f"its working grid of {shape} voxels takes {gigabytes(needed)} of memory with {samples} samples"
        cure = "crop or coarsen the image, or take fewer samples"
        raise CaseError(case, f"{problem}, and a case may have {gigabytes(most)}", cure)


def needed_bytes(
    data: DataConfig, networks: float, *, voxels: int, grid_voxels: int, samples: int, members: int = 1
) -> int:
    """Memory that a case takes at most: image, networks, sums over the samples, maps.

    Args:
        networks: bytes for each voxel of the working grid, of `bytes_per_voxel`.
        voxels: of the image.
        members: of the model; each of several has a sum of its own, and their maps come beside the others.
    """
    several = members > 1
    image = 4 * data.in_channels
    sums = 8 * ((2 + members * several) * data.num_classes + 1)  # float32, of all chunks and of the last
    masks = samples * (data.num_classes - 1) / 4  # a bit for each, of all and of those that are added
    maps = 12 * (data.num_classes + 2 + 3 * several)  # float32, on their way from the grid and as they are written
    return int(LIBRARIES * ((networks + image + sums + masks) * grid_voxels + (image + maps) * voxels))


def most_voxels(data: DataConfig, limit: int) -> int:
    """Voxels of an image that would take all of `limit` bytes, whatever its working grid: told before it is read."""
    return int(limit / needed_bytes(data, 0.0, voxels=2**20, grid_voxels=0, samples=1) * 2**20)


@torch.inference_mode()
def bytes_per_voxel(model: LDSeg, device: str, arithmetic: AbstractContextManager[Any], chunk_size: int) -> float:
    """Memory that the networks take at most for each voxel of the working grid, measured on two small grids.

    An image is encoded, `chunk_size` latents are drawn and one is decoded. Their difference tells: what does not grow
    with the grid (weights) is not counted, nor is what libraries take for themselves.
    """
    small = tuple(2 * m for m in model.config.model.multiple)
    large = (2 * small[0], *small[1:])
    peaks = [_peak(model, grid, device, arithmetic, chunk_size) for grid in (small, large)]
    return (peaks[1] - peaks[0]) / (math.prod(large) - math.prod(small))


@torch.inference_mode()
def embedding_bytes(model: LDSeg, device: str) -> float:
    """Memory of a case's embedding for each voxel of the working grid."""
    grid = tuple(2 * m for m in model.config.model.multiple)
    embedding = model.encode_image(torch.ones(1, model.config.data.in_channels, *grid, device=device))
    return 4 * embedding.numel() / math.prod(grid)


def _peak(
    model: LDSeg, grid: tuple[int, ...], device: str, arithmetic: AbstractContextManager[Any], chunk_size: int
) -> int:
    shape = (chunk_size, *model.latent_shape(grid))
    sampler = dataclasses.replace(model.config.sampler, num_sample_steps=2)

    def noise() -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(shape, device=device)

    with _Allocated(model) as allocated, arithmetic:
        embedding = model.encode_image(torch.ones(1, model.config.data.in_channels, *grid, device=device)).float()
        latents = model.sample_latents(embedding.expand(chunk_size, *embedding.shape[1:]), noise(), sampler)
        model.decode(latents[:1], model.hand_over(embedding)).softmax(1, dtype=torch.float32)
    return allocated.most


class _Allocated(TorchDispatchMode):
    """Bytes of the tensors that are made inside and not yet gone: `most` at any time.

    Weights, and what is made of them alone, such as their rounded copies, don't count.
    """

    def __init__(self, model: LDSeg) -> None:
        super().__init__()
        self.now = self.most = 0
        self.counted: set[int] = set()  # of the storages that are there: an address may come again
        self.weights = {_key(weight) for weight in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = ([t for t in tree_iter(tree) if isinstance(t, torch.Tensor)] for tree in (args, result))
        of_weights = bool(given) and all(_key(tensor) in self.weights for tensor in given)
        for tensor in made:
            if _key(tensor) not in self.weights | self.counted:
                self._add(tensor.untyped_storage(), of_weights)
        return result

    def _add(self, storage: torch.UntypedStorage, of_weights: bool) -> None:
        size, kept = 0 if of_weights else storage.nbytes(), self.weights if of_weights else self.counted
        key = int(storage._cdata)
        kept.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def remove() -> None:
            kept.discard(key)
            self.now -= size

        weakref.finalize(storage, remove)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
