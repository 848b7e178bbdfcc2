"""The authors' released HDF5 files -> networks of `ldseg.networks.authors`. Only h5py is needed, no TensorFlow.

Keras 2 stores the weights of a network layer by layer in topological order; the layers' names depend on the session
that made the file, so weights are taken by position, and every shape is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from torch import nn

from ldseg.config import Config, ConfigError
from ldseg.model import LDSeg
from ldseg.networks.authors import PositionNorm

Layer = tuple[str, list[np.ndarray]]
DENOISER_WIDTHS = (16, 32, 64)  # the authors'; their trained weights are not published
MAX_WEIGHTS = 100_000_000  # of one file; the authors' largest has 2 million


def read_layers(path: Path) -> list[Layer]:
    """The layers of a file that have weights, in the stored order: name and float32 arrays.

    Raises:
        ConfigError: the file can't be read, is no Keras 2 weight file, or holds what is no weight.
    """
    try:
        with h5py.File(path, "r") as file:
            names = [_text(name) for name in file.attrs["layer_names"]]
            layers = [(name, _arrays(file[name])) for name in names]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no Keras 2 weight file ({type(error).__name__}: {error}); give one that save_weights wrote"
        ) from error
    kept = [(name, arrays) for name, arrays in layers if arrays]
    for name, arrays in kept:
        if not all(np.isfinite(array).all() for array in arrays):
            raise ConfigError(f"{path}: the weights of {name} are not all finite; the file is damaged")
    return kept


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _arrays(group: h5py.Group) -> list[np.ndarray]:
    found = []
    for name in group.attrs["weight_names"]:
        entry = group[_text(name)]
        if math.prod(entry.shape) > MAX_WEIGHTS:
            raise ValueError(f"{_text(name)} has {math.prod(entry.shape)} entries")
        found.append(np.asarray(entry, dtype=np.float32))
    return found


@dataclass(frozen=True)
class Sizes:
    """What the files say about the networks; `latent` is the size that the label encoder is bound to."""

    dims: int
    in_channels: int
    num_classes: int
    latent: tuple[int, ...]
    autoencoder_widths: tuple[int, ...]
    image_widths: tuple[int, ...]
    denoiser_widths: tuple[int, ...]


def read_sizes(encoder: list[Layer], decoder: list[Layer], image: list[Layer], denoiser: list[Layer]) -> Sizes:
    """Sizes of four networks from the shapes of their weights; without a denoiser its widths are the authors'.

    Raises:
        ConfigError: a list is not of the network that its place asks for.
    """
    try:
        dims = encoder[0][1][0].ndim - 2
        stride = 6 if dims == 2 else 7
        widths = tuple(arrays[0].shape[-1] for _, arrays in encoder[: len(encoder) - 2 : stride])
        first, blocks = image[0][1][0], [layer for layer in image[1:] if len(layer[1]) == 2 and layer[1][0].ndim > 1]
        per_block = 4 if dims == 2 else 3
        image_widths = (first.shape[-1], *(a[0].shape[-1] for _, a in blocks[: 4 * per_block : per_block]))
        times = [a[0].shape[1] for _, a in denoiser if a[0].ndim == 2 and len(a) == 2][2:]
        levels = (len(times) - 2) // (5 if dims == 2 else 4) if denoiser else 0
        return Sizes(
            dims=dims,
            in_channels=first.shape[-2],
            num_classes=decoder[-2][1][0].shape[-1],
            latent=encoder[-1][1][0].shape[:-1],
            autoencoder_widths=widths,
            image_widths=image_widths,
            denoiser_widths=tuple(times[: 2 * levels : 2]) or DENOISER_WIDTHS,
        )
    except IndexError as error:
        raise ConfigError(
            "the four files are not a label encoder, label decoder, image encoder and denoiser of one model; "
            "give each file to its own option"
        ) from error


def authors_config(sizes: Sizes, structures: Sequence[str]) -> Config:
    """The authors' settings: what their networks are fed with, trained by and sampled by (their cfg.ini and code).

    Args:
        sizes: of the networks.
        structures: a name for each class but the background.

    Raises:
        ConfigError: there are more or fewer names than classes.
    """
    if len(structures) != sizes.num_classes - 1:
        raise ConfigError(f"the decoder has {sizes.num_classes - 1} structures, got the names {', '.join(structures)}")
    levels = len(sizes.autoencoder_widths) - 1
    halvings = [2**levels] * sizes.dims
    return Config.from_dict(
        {
            "data": {
                "spatial_dims": sizes.dims,
                "shape": [n * 2**levels for n in sizes.latent],
                "fit": "stretch",
                "in_channels": sizes.in_channels,
                "label_values": list(range(sizes.num_classes)),
                "structures": list(structures),
                "foreground_only": sizes.num_classes == 2,
                "flip_axes": [0, 1] if sizes.dims == 2 else [],
                "intensity": "minmax",
                "axes": "itk" if sizes.dims == 3 else "canonical",
                "augment": sizes.dims == 2,
                "augment_intensity": False,
            },
            "model": {
                "family": "authors",
                "downsampling": halvings,
                "patch": [1] * sizes.dims,
                "latent_channels": 1,
                "embedding_channels": 1,
                "autoencoder_widths": list(sizes.autoencoder_widths),
                "image_widths": list(sizes.image_widths),
                "denoiser_widths": list(sizes.denoiser_widths),
                "label_input": "value",
            },
            "diffusion": {"prediction_type": "epsilon", "input_scale": "none"},
            "loss": {
                "reconstruction": 0.0,
                "detach_target": False,
                "latent_noise": 0.0,
                "shared_noise": True,
                "decoded_estimate": "difference",
            },
            "optim": {"batch_size": 4, "ema_scope": "denoiser", "shuffle": False, "weight_decay": 0.0},
            "sampler": {"num_sample_steps": 15, "standardise": "batch", "schedule": "authors"},
        }
    )


def import_authors(files: Mapping[str, Path], structures: Sequence[str]) -> tuple[LDSeg, dict[str, Any]]:
    """A model of the authors' weights, in faithful mode.

    Without a denoiser (the authors have published none) the model is the no-diffusion control: the standardised image
    embedding is decoded directly, with the sign that the published embeddings have: their 3D embedding is the negated
    label latent.

    Args:
        files: label_encoder, label_decoder, image_encoder and perhaps denoiser.
        structures: a name for each class but the background.

    Returns:
        The model, and what its card says about its origin, with the digest of each file.

    Raises:
        ConfigError: a file is damaged or of another network.
    """
    layers = {name: read_layers(path) for name, path in files.items()}
    denoiser = layers.get("denoiser", [])
    sizes = read_sizes(layers["label_encoder"], layers["label_decoder"], layers["image_encoder"], denoiser)
    config = authors_config(sizes, structures).with_overrides({"loss.deterministic": not denoiser})
    model = LDSeg(config).eval()
    for name, path in files.items():
        load_network(getattr(model, name), layers[name], path)
    if model.direct is not None:
        direct = cast(Any, model.direct)
        nn.init.constant_(direct.weight, 1.0 if sizes.dims == 2 else -1.0)
        nn.init.zeros_(direct.bias)
    origin = {
        name: {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()} for name, path in files.items()
    }
    return model, {"origin": "weights of the authors of LDSeg (github.com/FahimZaman/LDSeg)", "files": origin}


def load_network(network: nn.Module, layers: list[Layer], path: Path) -> None:
    """Fill a network with the weights of a file.

    Raises:
        ConfigError: a shape or the number of weights differs; the message names the file and the layer.
    """
    stored = [(name, array) for name, arrays in layers for array in arrays]
    wanted = list(_slots(network))
    for (name, array), (place, tensor) in zip(stored, wanted, strict=False):
        fitted = _to_torch(array, tensor)
        if fitted.shape != tuple(tensor.shape):
            raise ConfigError(
                f"{path}: {name} has the shape {array.shape}, but {place} needs {tuple(tensor.shape)}; "
                "is it the file of another network?"
            )
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(fitted)))
    if len(stored) != len(wanted):
        raise ConfigError(f"{path} holds {len(stored)} arrays and the network has {len(wanted)}; is it of another one?")


def _slots(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that Keras stores, in its order."""
    for place, module in network.named_modules():
        names = ["weight", "bias"]
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            names += ["running_mean", "running_var"]
        kinds = nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm
        if isinstance(module, (*kinds, PositionNorm)):
            yield from ((f"{place}.{name}", getattr(module, name)) for name in names)


def _to_torch(array: np.ndarray, like: torch.Tensor) -> np.ndarray:
    """Keras keeps channels last: (k..., in, out), transposed (k..., out, in), dense (in, out); per position: flat."""
    if like.ndim == 1:
        return array.reshape(-1)
    return array.transpose(-1, -2, *range(array.ndim - 2)) if array.ndim > 1 else array
