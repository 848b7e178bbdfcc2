"""The gates of a promotion: what a model must show, from a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JUDGES = ("mean", "bound")
SHIPPED = Path(__file__).with_name("gates.toml")  # platform/gates.toml is a link to it


class GatesError(ValueError):
    """A file of gates that can't be used; the message names the key and the cure."""


@dataclass(frozen=True, kw_only=True)
class CaseGates:
    """How the held-out cases are counted and compared.

    Attributes:
        min_cases: labelled cases behind the numbers.
        resamples, seed, confidence: of the bootstrap intervals.
        judge_by: "mean" takes the difference itself, "bound" the worse end of its interval.
        samples: draws a case where cases are measured anew.
    """

    min_cases: int = 3
    resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95
    judge_by: str = "mean"
    samples: int = 8

    def __post_init__(self) -> None:
        if self.judge_by not in JUDGES:
            raise GatesError(f'cases.judge_by must be "mean" or "bound", got {self.judge_by!r}')
        if min(self.min_cases, self.resamples, self.samples) < 1 or self.seed < 0:
            raise GatesError("cases.min_cases, resamples and samples must be at least 1, and seed at least 0")
        if not 0 < self.confidence < 1:
            raise GatesError(f"cases.confidence must lie between 0 and 1, got {self.confidence:g}")


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What must hold whoever the champion is: the Dice at least, the others (1, nats a voxel, 1, s) at most."""

    dice: float = 0.7
    worst_decile_dice: float = 0.1
    structure_dice: float = 0.1
    energy_score: float = math.inf
    nll: float = math.inf
    ece: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How much worse than the champion a challenger may be; a factor for the seconds, else a difference."""

    dice: float = 0.005
    worst_decile_dice: float = 0.02
    structure_dice: float = 0.01
    energy_score: float = 0.005
    nll: float = 0.005
    ece: float = 0.005
    seconds_factor: float = 1.5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 0:
                raise GatesError(f"margins.{name} must be at least 0, got {value:g}")


@dataclass(frozen=True, kw_only=True)
class BundleGates:
    """What the files must be: with a calibration or not, and how many images the geometry is tried on."""

    calibration: bool = False
    geometry_cases: int = 3


@dataclass(frozen=True, kw_only=True)
class Gates:
    """All gates; `source` is the file they came from, `digest` names their values."""

    cases: CaseGates = field(default_factory=CaseGates)
    floors: Floors = field(default_factory=Floors)
    margins: Margins = field(default_factory=Margins)
    bundle: BundleGates = field(default_factory=BundleGates)
    source: str = "defaults"

    def values(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, JSON-ready: infinite values are written as "inf" and "-inf"."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        return {
            name: {key: str(value) if value in (math.inf, -math.inf) else value for key, value in section.items()}
            for name, section in sections.items()
        }

    @property
    def digest(self) -> str:
        """ "sha256:..." of the values, whatever the layout of the file."""
        return "sha256:" + hashlib.sha256(repr(self.values()).encode()).hexdigest()

    def with_values(self, **changes: float | None) -> Gates:
        """Single values replaced, named section__key; None leaves a value as it is."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        for path, value in changes.items():
            section, _, key = path.partition("__")
            if value is not None:
                sections[section] = dataclasses.replace(sections[section], **{key: value})
        return Gates(**sections, source=self.source)


SECTIONS: dict[str, type] = {"cases": CaseGates, "floors": Floors, "margins": Margins, "bundle": BundleGates}


def read_gates(path: Path) -> Gates:
    """Gates from a TOML file; what it leaves out has its default.

    Raises:
        GatesError: the file is missing or no TOML, or a section, key or value can't be used: one sentence.
    """
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise GatesError(f"{path} can't be read ({error.strerror}); give a file like platform/gates.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GatesError(f"{path} is no TOML ({error}); write it like platform/gates.toml") from error
    try:
        sections = {name: _section(name, values) for name, values in content.items()}
    except GatesError as error:
        raise GatesError(f"{path}: {error}") from error
    return Gates(**sections, source=str(path))


def _section(name: str, values: Any) -> Any:
    if name not in SECTIONS:
        raise GatesError(f"there is no section [{name}]{_near(name, SECTIONS)}; there are {', '.join(SECTIONS)}")
    kind = SECTIONS[name]
    if not isinstance(values, dict):
        raise GatesError(f"{name} must be a section, written as [{name}]")
    known = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise GatesError(f"there is no {name}.{key}{_near(key, known)}; there are {', '.join(known)}")
        values[key] = _typed(f"{name}.{key}", value, known[key])
    return kind(**values)


def _typed(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            raise GatesError(f"{key} must be a number, got nan")
        return float(value)
    if type(value) is not type(default):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word in quotes"}
        raise GatesError(f"{key} must be {words[type(default)]}, got {value!r}")
    return value


def _near(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]}?" if found else ""
