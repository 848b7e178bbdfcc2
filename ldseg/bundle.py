"""A model on disk: weights.safetensors + config.json + card.json, named by one digest; never a pickle.

Beside them lies a calibration.json where the model was calibrated, see `ldseg.calibration.file`. A model of several
members has a folder of such files for each of them (members/0, members/1, ...) in place of weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ldseg.calibration.file import Calibration, read_calibration
from ldseg.config import Config, ConfigError
from ldseg.files import writing
from ldseg.model import LDSeg

WEIGHTS, CONFIG, CARD, MEMBERS = "weights.safetensors", "config.json", "card.json", "members"


class BundleError(ValueError):
    """A bundle that is incomplete, changed or of another shape; the message names the file and the cure."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model with what it needs to be used and trusted.

    Attributes:
        model: of several members the first one's; all have one configuration.
        digest: "sha256:..." of the weights and the configuration; the card and the calibration are no part of it.
        card: where the model comes from: data, split by case name, command, metrics.
        calibration: volume intervals and temperature, None for a model that was not calibrated.
        members: the bundles that it is made of; () where it has weights of its own.
    """

    config: Config
    model: LDSeg
    digest: str
    card: dict[str, Any]
    path: Path
    calibration: Calibration | None = None
    members: tuple[Bundle, ...] = ()

    @property
    def drawn_by(self) -> tuple[Bundle, ...]:
        """The bundles whose models draw its samples: its members, else itself."""
        return self.members or (self,)

    @property
    def identity(self) -> dict[str, str]:
        """All that its numbers depend on: "digest", and "calibration", the digest of that if there is one."""
        calibration = {} if self.calibration is None else {"calibration": self.calibration.digest}
        return {"digest": self.digest, **calibration}


def _digest(weights: bytes, config: bytes) -> str:
    return "sha256:" + hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(config).digest()).hexdigest()


def _members_digest(members: Sequence[str]) -> str:
    """Of the members' digests in their order; each holds the common configuration."""
    return "sha256:" + hashlib.sha256("\n".join(["members", *members]).encode()).hexdigest()


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
    weights = save({k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()})
    settings = _json(config.to_dict())
    digest = _digest(weights, settings)
    _put(Path(path), {WEIGHTS: weights, CONFIG: settings, CARD: _json({**card, "digest": digest})})
    return digest


def save_members(path: Path, members: Sequence[Path], card: dict[str, Any]) -> str:
    """Write one bundle of several, as `save_bundle` does; their calibrations, each of one alone, stay behind.

    Args:
        members: folders of bundles with weights of their own and one configuration.

    Returns:
        The digest, over all members in their order.

    Raises:
        BundleError: there is none, one can't be used, has members itself or is configured otherwise than the first.
    """
    loaded = [load_bundle(member) for member in members]
    if not loaded:
        raise BundleError("a bundle of members needs one at least")
    for bundle in loaded:
        if bundle.members or bundle.config != loaded[0].config:
            problem = "has members itself" if bundle.members else f"is configured otherwise than {loaded[0].path}"
            raise BundleError(f"{bundle.path} {problem}; members are plain bundles of one configuration")
    digests = [bundle.digest for bundle in loaded]
    digest, content = _members_digest(digests), dict[str, bytes]()
    for number, bundle in enumerate(loaded):
        content |= {f"{MEMBERS}/{number}/{n}": (bundle.path / n).read_bytes() for n in (WEIGHTS, CONFIG, CARD)}
    content |= {CONFIG: _json(loaded[0].config.to_dict()), CARD: _json({**card, "members": digests, "digest": digest})}
    _put(Path(path), content)
    return digest


def _put(path: Path, content: Mapping[str, bytes]) -> None:
    """Write a folder's files beside it, then give them its name in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    for name, data in content.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        with writing(staging / name) as file:
            file.write(data)
    staging.chmod(0o755)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(old / path.name)
        staging.rename(path)
        shutil.rmtree(old)
    else:
        staging.rename(path)


def load_bundle(path: Path) -> Bundle:
    """Read, verify and build a model for inference.

    Raises:
        BundleError: a file is missing or unreadable, the digest differs from the card's, the weights don't fit, or the
            calibration was changed or is another model's.
    """
    path = Path(path)
    members = (path / MEMBERS).is_dir() and not (path / WEIGHTS).exists()
    bundle = _load_members(path) if members else _load_weights(path)
    try:
        calibration = read_calibration(path, bundle.digest, bundle.config.data.structures)
    except ValueError as error:
        raise BundleError(str(error)) from error
    return replace(bundle, calibration=calibration)


def _read(path: Path) -> tuple[bytes, Config, dict[str, Any]]:
    """The configuration, as it is written and as it is meant, and the card."""
    try:
        settings, card = (path / CONFIG).read_bytes(), json.loads((path / CARD).read_bytes())
        config = Config.from_dict(json.loads(settings))
    except OSError as error:
        raise _no_bundle(path, error) from error
    except (json.JSONDecodeError, ConfigError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {CONFIG} or {CARD} can't be used ({error}); copy the bundle again") from error
    if not isinstance(card, dict):
        raise _other_digest(path)
    return settings, config, card


def _load_weights(path: Path) -> Bundle:
    try:
        weights = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise _no_bundle(path, error) from error
    settings, config, card = _read(path)
    digest = _digest(weights, settings)
    if card.get("digest") != digest:
        raise _other_digest(path)
    model = LDSeg(config)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        problem = f"{path}: the weights don't fit {CONFIG} ({str(error).splitlines()[0]})"
        raise BundleError(f"{problem}; export the bundle anew") from error
    model.eval().requires_grad_(False)
    return Bundle(config, model.channels_last(), digest, card, path)


def _load_members(path: Path) -> Bundle:
    _, config, card = _read(path)
    named = card.get("members")
    members = [_load_weights(path / MEMBERS / str(number)) for number in range(len(named or ()))]
    digests = [member.digest for member in members]
    digest = _members_digest(digests)
    if not members or digests != named or card.get("digest") != digest or any(m.config != config for m in members):
        raise _other_digest(path)
    return Bundle(config, members[0].model, digest, card, path, members=tuple(members))


def _no_bundle(path: Path, error: OSError) -> BundleError:
    problem = f"{path} is no model bundle: {error.strerror} ({error.filename})"
    return BundleError(f"{problem}; a bundle is a folder with {WEIGHTS}, {CONFIG} and {CARD}")


def _other_digest(path: Path) -> BundleError:
    return BundleError(f"{path}: the files don't match the digest in {CARD}; copy or export the bundle anew")
