"""Search spaces (see tune_spaces) and what a trial's values mean for a configuration."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tune_spaces
from ldseg.config import Config, ConfigError


@dataclass(frozen=True)
class Space:
    """A validated search space.

    Attributes:
        base: nested configuration that every trial starts from.
        domains: see tune_spaces.
        metric, mode: what the search improves: "max" or "min".
    """

    name: str
    base: dict[str, Any]
    domains: dict[str, tuple[Any, ...]]
    metric: str
    mode: str

    def overrides(self, values: dict[str, Any]) -> dict[str, Any]:
        """Dotted configuration keys of one trial's values."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= self.domains[key][1][value] if self.domains[key][0] == "options" else {key: value}
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
        ConfigError: there is none of that name, or a key in it is no configuration key.
    """
    module = _module(name)
    space = Space(Path(name).stem, dict(module.BASE), dict(module.SPACE), *module.METRIC)
    if space.mode not in ("max", "min"):
        raise ConfigError(f"space {name}: METRIC's direction must be max or min, got {space.mode!r}")
    base = Config.from_dict(space.base)
    for key, domain in space.domains.items():
        sets = (
            domain[1].values()
            if domain[0] == "options"
            else [{key: value} for value in domain[1:] if domain[0] != "choice"]
        )
        for overrides in sets if domain[0] != "choice" else [{key: value} for value in domain[1]]:
            base.with_overrides(overrides)
    return space


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
