"""A model by its folder or by its name in the registry."""

from __future__ import annotations

from pathlib import Path

from ldseg.bundle import Bundle, load_bundle


def load_model(model: str, runs: Path | None) -> Bundle:
    """A bundle from its folder, or from the registry under `runs` if `model` starts with "models:".

    Raises:
        ValueError: there is no such folder or version.
    """
    if not model.startswith("models:"):
        return load_bundle(Path(model))
    from ldseg.orchestration.home import home  # seconds to import, and not needed for a folder
    from ldseg.orchestration.tracking.registry import resolve_model

    return load_bundle(resolve_model(model, home(runs)))
