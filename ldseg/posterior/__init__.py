"""One case -> K samples in chunks -> a streaming accumulator -> a summary on the native grid."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldseg.posterior.sampling import Posterior as Posterior
    from ldseg.posterior.summary import PosteriorSummary as PosteriorSummary

_HOMES = {"Posterior": "sampling", "PosteriorSummary": "summary"}


def __getattr__(name: str) -> Any:
    """What most callers want, imported when it is asked for: torch takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
