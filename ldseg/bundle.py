"""A model on disk: weights.safetensors + config.json + card.json, named by one digest; never a pickle.

Beside them lies a calibration.json where the model was calibrated, see `ldseg.calibration.file`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ldseg.calibration.file import Calibration, read_calibration
from ldseg.config import Config, ConfigError
from ldseg.files import writing
from ldseg.model import LDSeg

WEIGHTS, CONFIG, CARD = "weights.safetensors", "config.json", "card.json"


class BundleError(ValueError):
    """A bundle that is incomplete, changed or of another shape; the message names the file and the cure."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model with what it needs to be used and trusted.

    Attributes:
        digest: "sha256:..." of the weights and the configuration; the card and the calibration are no part of it.
        card: where the model comes from: data, split by case name, command, metrics.
        calibration: volume intervals and temperature, None for a model that was not calibrated.
    """

    config: Config
    model: LDSeg
    digest: str
    card: dict[str, Any]
    path: Path
    calibration: Calibration | None = None

    @property
    def identity(self) -> dict[str, str]:
        """All that its numbers depend on: "digest", and "calibration", the digest of that if there is one."""
        calibration = {} if self.calibration is None else {"calibration": self.calibration.digest}
        return {"digest": self.digest, **calibration}


def _digest(weights: bytes, config: bytes) -> str:
    return "sha256:" + hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(config).digest()).hexdigest()


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def save_bundle(
    path: Path, model: LDSeg, config: Config, card: dict[str, Any], *, dtype: torch.dtype = torch.float32
) -> str:
    """Write a bundle folder atomically: it appears whole, or replaces an older one whole, with its calibration.

    Args:
        dtype: how the weights are stored; torch.float16 halves the files. They are computed with as float32.

    Returns:
        The digest, which is also stored in the card under "digest".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()})
    settings = _json(config.to_dict())
    digest = _digest(weights, settings)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    for name, content in ((WEIGHTS, weights), (CONFIG, settings), (CARD, _json({**card, "digest": digest}))):
        with writing(staging / name) as file:
            file.write(content)
    staging.chmod(0o755)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(old / path.name)
        staging.rename(path)
        shutil.rmtree(old)
    else:
        staging.rename(path)
    return digest


def load_bundle(path: Path) -> Bundle:
    """Read, verify and build a model for inference.

    Raises:
        BundleError: a file is missing or unreadable, the digest differs from the card's, the weights don't fit, or the
            calibration was changed or is another model's.
    """
    path = Path(path)
    try:
        weights, settings = (path / WEIGHTS).read_bytes(), (path / CONFIG).read_bytes()
        card = json.loads((path / CARD).read_bytes())
        config = Config.from_dict(json.loads(settings))
    except OSError as error:
        problem = f"{path} is no model bundle: {error.strerror} ({error.filename})"
        raise BundleError(f"{problem}; a bundle is a folder with {WEIGHTS}, {CONFIG} and {CARD}") from error
    except (json.JSONDecodeError, ConfigError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {CONFIG} or {CARD} can't be used ({error}); copy the bundle again") from error
    digest = _digest(weights, settings)
    if not isinstance(card, dict) or card.get("digest") != digest:
        raise BundleError(f"{path}: the files don't match the digest in {CARD}; copy or export the bundle anew")
    model = LDSeg(config)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        problem = f"{path}: the weights don't fit {CONFIG} ({str(error).splitlines()[0]})"
        raise BundleError(f"{problem}; export the bundle anew") from error
    model.eval().requires_grad_(False)
    try:
        calibration = read_calibration(path, digest, config.data.structures)
    except ValueError as error:
        raise BundleError(str(error)) from error
    return Bundle(config, model.channels_last(), digest, card, path, calibration)
