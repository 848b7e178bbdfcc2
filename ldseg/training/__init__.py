"""A generator that trains and knows no cluster, its losses and its checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldseg.training.fit import TrainingState as TrainingState
    from ldseg.training.fit import validate as validate

_HOMES = {"TrainingState": "fit", "validate": "fit"}


def __getattr__(name: str) -> Any:
    """What most callers want, imported when it is asked for: torch takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
