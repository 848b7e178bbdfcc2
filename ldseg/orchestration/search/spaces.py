"""Search spaces (see tune_spaces) and what a trial's values mean for a configuration."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import tune_spaces
from ldseg.config import Config, ConfigError

if TYPE_CHECKING:
    from ldseg.data.cohort import Cohort

KINDS = ("choice", "options", "uniform", "loguniform")


class Suggests(Protocol):
    """What an Optuna trial can be asked for."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Space:
    """A validated search space.

    Attributes:
        base: nested configuration that every trial starts from.
        domains: see tune_spaces.
        metric, mode: what a search for one number improves: "max" or "min".
        start: values of the trials that are tried first.
    """

    name: str
    base: dict[str, Any]
    domains: dict[str, tuple[Any, ...]]
    metric: str
    mode: str
    start: tuple[dict[str, Any], ...] = ()

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """A value for each domain, and for each domain that hangs on an option once that option is drawn."""
        values: dict[str, Any] = {}
        for key, domain in self.domains.items():
            values[key] = _draw(trial, key, domain)
            for name, conditional in _conditional(key, domain, values[key]):
                values[name] = _draw(trial, name, conditional)
        return values

    def overrides(self, values: dict[str, Any]) -> dict[str, Any]:
        """Dotted configuration keys of one trial's values."""
        found: dict[str, Any] = {}
        for name, value in values.items():
            key = name.rpartition(":")[2]
            domain = self.domains.get(name, ())
            if domain and domain[0] == "options":
                found |= {k: v for k, v in domain[1][value].items() if not _is_domain(v)}
            else:
                found[key] = value
        return found

    def configuration(self, values: dict[str, Any], fixed: dict[str, Any]) -> Config:
        """The configuration of a trial; `fixed` are the operator's own overrides, which win.

        Raises:
            ConfigError: the combination is not possible.
        """
        return Config.from_dict(self.base).with_overrides(self.overrides(values) | fixed)


def load_space(name: str) -> Space:
    """A space of tune_spaces by its name, or a user's own by the path of a .py file.

    Raises:
        ConfigError: there is none of that name, a key in it is no configuration key, or a domain is none.
    """
    module = _module(name)
    start = tuple(getattr(module, "START", ()))
    metric, mode = module.METRIC
    space = Space(Path(name).stem, dict(module.BASE), dict(module.SPACE), metric, mode, start)
    if space.mode not in ("max", "min"):
        raise ConfigError(f"space {name}: METRIC's direction must be max or min, got {space.mode!r}")
    for key, domain in space.domains.items():
        _check_domain(space, key, domain)
        for option in domain[1] if domain[0] == "options" else ():
            for inner, conditional in _conditional(key, domain, option):
                _check_domain(space, inner, conditional, {key: option})
    return space


def _check_domain(space: Space, name: str, domain: tuple[Any, ...], given: dict[str, Any] | None = None) -> None:
    """Every end and every choice of a domain makes a configuration."""
    if not _is_domain(domain):
        raise ConfigError(f"{name}: a domain must be one of {', '.join(KINDS)} with its values, got {domain!r}")
    for value in domain[1] if domain[0] in ("choice", "options") else domain[1:]:
        space.configuration((given or {}) | {name: value}, {})


def _is_domain(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 1 and value[0] in KINDS


def _conditional(key: str, domain: tuple[Any, ...], option: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The domains that hang on an option, by names that say so: Optuna wants one domain for one name."""
    if domain[0] == "options":
        for inner, value in domain[1][option].items():
            if _is_domain(value):
                yield f"{key}={option}:{inner}", value


def _draw(trial: Suggests, name: str, domain: tuple[Any, ...]) -> Any:
    kind, *rest = domain
    if kind in ("uniform", "loguniform"):
        return trial.suggest_float(name, *rest, log=kind == "loguniform")
    chosen = trial.suggest_categorical(name, [as_choice(choice) for choice in rest[0]])
    return next(choice for choice in rest[0] if as_choice(choice) == chosen)


def as_choice(value: Any) -> Any:
    """A value as Optuna keeps it: lists as their JSON."""
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ConfigError(f"there is no search space file {name}; give a path to an existing .py file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    known = sorted(m.name for m in pkgutil.iter_modules(tune_spaces.__path__))
    if name not in known:
        raise ConfigError(f"there is no search space {name!r}; choose one of {', '.join(known)}, or give a .py file")
    return importlib.import_module(f"tune_spaces.{name}")


def with_cohort(config: dict[str, Any], cohort: Cohort) -> Config:
    """A configuration with the cohort's labels; where it names structures, with the values that these have there.

    Raises:
        CohortError: it names other structures than the cohort.
    """
    from ldseg.data.cohort import values_of

    data = dict(config.get("data", {}))
    if "structures" not in data:
        data |= {"label_values": list(cohort.label_values), "structures": list(cohort.structures)}
    elif not data.get("foreground_only"):
        own = data.get("label_values") or range(len(data["structures"]) + 1)
        data["label_values"] = list(values_of(cohort, data["structures"], own))
    return Config.from_dict({**config, "data": data})
