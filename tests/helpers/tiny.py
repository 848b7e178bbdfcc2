"""Models small enough that a test may build, train and serve them."""

from pathlib import Path

import torch

from ldseg.bundle import Bundle, load_bundle, save_bundle
from ldseg.calibration.conformal import VolumeIntervals
from ldseg.calibration.file import Calibration
from ldseg.calibration.temperature import TemperatureFit
from ldseg.config import Config
from ldseg.model import LDSeg


def tiny_config(dims: int = 3, structures: tuple[str, ...] = ("organ", "nodule")) -> Config:
    """A working grid of 16 voxels an axis, a latent of 4, some thousand weights."""
    return Config.from_dict(
        {
            "data": {
                "spatial_dims": dims,
                "shape": [16] * dims,
                "label_values": list(range(len(structures) + 1)),
                "structures": list(structures),
            },
            "model": {
                "downsampling": [4] * dims,
                "patch": [2] * dims,
                "latent_channels": 2,
                "embedding_channels": 8,
                "autoencoder_widths": [8, 8],
                "image_widths": [8, 8, 16],
                "denoiser_widths": [8, 16],
                "denoiser_context": True,
                "image_logits": True,
            },
            "optim": {"epochs": 2, "batch_size": 2},
            "sampler": {"num_sample_steps": 3},
        }
    )


def random_bundle(folder: Path, config: Config, seed: int = 0) -> Bundle:
    """A bundle of random weights, spread enough that its samples differ."""
    torch.manual_seed(seed)
    model = LDSeg(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and float(parameter.detach().abs().max()) == 0:
            torch.nn.init.normal_(parameter, std=0.02 if "skips" in name else 0.1)
        if name == f"label_decoder.layers.{len(model.label_decoder.layers) - 1}.weight":
            parameter.data *= 5
    save_bundle(folder, model, config, {"name": folder.name, "split": {"train": [], "validation": [], "test": []}})
    return load_bundle(folder)


def some_calibration(bundle: Bundle, temperature: float = 2.0, samples: int = 3, unit: str = "ml") -> Calibration:
    """Made-up numbers: the samples' percentiles widened by half their width, and the model less sure."""
    structures = bundle.config.data.structures
    quantiles, floors = (0.5,) * len(structures), (0.01,) * len(structures)
    steps = bundle.config.sampler.num_sample_steps
    intervals = VolumeIntervals(0.1, structures, quantiles, floors, 9, samples, steps, "sha256:cases", unit)
    return Calibration(intervals, TemperatureFit(temperature, 0.2, 0.1, 9, 900), bundle.digest)
