"""calibration.json: what validation cases taught about a model, beside its weights and never part of its digest."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldseg.calibration.conformal import VolumeIntervals
from ldseg.calibration.familiarity import Familiarity
from ldseg.calibration.risk_control import RiskControl
from ldseg.calibration.temperature import TemperatureFit
from ldseg.files import write_atomically

CALIBRATION = "calibration.json"
CURE = "remove the file, and calibrate the model anew by platform/calibrate.py"


@dataclass(frozen=True)
class Calibration:
    """What a model's samples need to be taken at their word.

    Attributes:
        intervals: conformal volume intervals.
        temperature: of the mean probability.
        model_digest: "sha256:..." of the bundle it was fitted on; it holds for no other.
        risk_control: thresholds that bound what is missed; None if none were asked for, and then no part of the file.
        familiarity: of the image embeddings; None without training cases at hand, and in older files.
    """

    intervals: VolumeIntervals
    temperature: TemperatureFit
    model_digest: str
    risk_control: RiskControl | None = None
    familiarity: Familiarity | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature.temperature < math.inf:
            raise ValueError(f"the temperature must be above 0, got {self.temperature.temperature}")

    @property
    def digest(self) -> str:
        """Of all of it ("sha256:..."), whatever the layout of the file."""
        return _digest(self._content())

    def to_json(self) -> bytes:
        """The file's content."""
        values = self._content() | {"digest": self.digest}
        return (json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    def _content(self) -> dict[str, Any]:
        intervals, temperature = self.intervals.to_dict(), asdict(self.temperature)
        content = {"intervals": intervals, "temperature": temperature, "model_digest": self.model_digest}
        for name in ("risk_control", "familiarity"):
            part = getattr(self, name)
            content |= {} if part is None else {name: part.to_dict()}
        return content


@dataclass(frozen=True)
class Worth:
    """What a calibration gives, or would give with so many cases.

    Attributes:
        cases: that it was fitted on.
        intervals: structures whose interval has an end.
        masks: structures whose cautious mask leaves anything out.
        familiarity: whether it knows the training cases.
    """

    cases: int
    intervals: int
    masks: int
    familiarity: bool

    @classmethod
    def of(cls, calibration: Calibration) -> Worth:
        """Of one that is there."""
        bounded = sum(math.isfinite(quantile) for quantile in calibration.intervals.quantiles)
        control = calibration.risk_control
        masks = 0 if control is None else sum(threshold > 0 for threshold in control.thresholds)
        return cls(calibration.intervals.cases, bounded, masks, calibration.familiarity is not None)

    def lost_by(self, other: Worth) -> str:
        """What `other` has less of, in words; "" where nothing."""
        lost = [f"cases: {other.cases} in place of {self.cases}"] if other.cases < self.cases else []
        lost += ["intervals: too few cases"] if other.intervals < self.intervals else []
        lost += ["cautious masks: no --missed, or too few cases"] if other.masks < self.masks else []
        lost += ["familiarity: too few training cases at hand"] if other.familiarity < self.familiarity else []
        return "; ".join(lost)


def save_calibration(path: Path, calibration: Calibration) -> Path:
    """Write calibration.json into a bundle's folder, whole or not at all.

    An older one that differs stays beside it, as calibration-DIGEST.json by the first eight digits of its sha256.

    Args:
        path: the folder of the bundle that the calibration was fitted on; nothing else there changes.

    Returns:
        The file.
    """
    file, content = Path(path) / CALIBRATION, calibration.to_json()
    if file.exists() and (old := file.read_bytes()) != content:
        write_atomically(file.with_stem(f"{file.stem}-{hashlib.sha256(old).hexdigest()[:8]}"), old)
    write_atomically(file, content)
    return file


def read_calibration(path: Path, model_digest: str, structures: tuple[str, ...]) -> Calibration | None:
    """The calibration in a bundle's folder, None if there is none.

    Args:
        path: the folder.
        model_digest: of the bundle.
        structures: of the bundle.

    Raises:
        ValueError: the file is unreadable, was changed, or belongs to another model: one sentence with the cure.
    """
    file = Path(path) / CALIBRATION
    try:
        values = json.loads(file.read_bytes())
        stored = values.pop("digest")
        intact = stored == _digest(values)
        found = Calibration(
            VolumeIntervals.from_dict(values["intervals"]),
            TemperatureFit(**values["temperature"]),
            values["model_digest"],
            RiskControl.from_dict(values["risk_control"]) if "risk_control" in values else None,
            Familiarity.from_dict(values["familiarity"]) if "familiarity" in values else None,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{file} can't be used ({type(error).__name__}: {problem}); {CURE}") from error
    if not intact:
        raise ValueError(f"{file} was changed after it was written, its digest doesn't match; {CURE}")
    known = {found.intervals.structures, *([found.risk_control.structures] if found.risk_control else [])}
    if found.model_digest != model_digest or known != {structures}:
        raise ValueError(f"{file} belongs to another model ({found.model_digest}); {CURE}")
    return found


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
