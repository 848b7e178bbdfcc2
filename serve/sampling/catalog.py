"""The models that cases may name, by reference: an alias is looked up anew, so that a promotion takes effect."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachetools import LRUCache, TTLCache

from ldseg.bundle import Bundle, BundleError, load_bundle
from serve.sampling.models import ModelRef
from serve.settings import Settings

REGISTRY = "models:/"
MAX_REFERENCES = 1000
MAX_BUNDLES = 8  # bundles that are kept loaded here, for what is done after sampling
ALIAS_TTL_S = 2.0  # how old the answer of the registry to an alias may be
log = logging.getLogger("ray.serve")


class UnknownModel(ValueError):
    """A reference that names no model which this service may use; the message says which it may."""


class UnusableModel(ValueError):
    """A model that is named rightly and damaged, or of another kind than the others of an ensemble."""


@dataclass(frozen=True)
class Served:
    """A model that a case is drawn with.

    Attributes:
        ref: what samplers load it by.
        reference: what it was asked for by.
    """

    bundle: Bundle
    reference: str

    @property
    def ref(self) -> ModelRef:
        """Path and digest."""
        return ModelRef(str(self.bundle.path), self.bundle.digest)


class Catalog:
    """Finds models; callable from any thread.

    A reference is models:/NAME@ALIAS or models:/NAME/VERSION of a registered model that the settings allow, the digest
    of a model that was found before, or the service's own setting. Where the registry is away, or has a damaged
    version under an alias, the model that the alias meant last goes on serving.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._bundles: LRUCache[Path, Bundle] = LRUCache(MAX_BUNDLES)  # by the folder that they lie in
        self._folders: dict[str, Path] = {}  # by reference: what it meant last
        self._fresh: TTLCache[str, Path] = TTLCache(MAX_REFERENCES, ALIAS_TTL_S)
        self._tracker: Any = None
        self._lock = threading.RLock()

    def own(self) -> Served:
        """The service's own model, as of now.

        Raises:
            UnusableModel: there was never one that could be used.
        """
        return self.find(self.settings.model)

    def resolve(self, references: Sequence[str]) -> list[Served]:
        """The models of a case; none named is the service's own.

        Raises:
            UnknownModel: one may not be used, or is not there.
            UnusableModel: one is damaged, or they don't fit together as an ensemble.
        """
        found = [self.find(reference) for reference in references or [self.settings.model]]
        first = found[0].bundle.config
        for other in found[1:]:
            data, theirs = first.data, other.bundle.config.data
            same = (data.structures, data.label_values, data.spatial_dims, data.shape, data.spacing_mm, data.fit)
            if same != (
                theirs.structures, theirs.label_values, theirs.spatial_dims, theirs.shape, theirs.spacing_mm, theirs.fit
            ):  # fmt: skip
                raise UnusableModel(
                    f"{other.reference} works on another grid or with other structures than {found[0].reference}; "
                    "an ensemble needs models that were trained for the same"
                )
        return found

    def find(self, reference: str) -> Served:
        """One model; see `resolve` for errors."""
        with self._lock:
            if reference == self.settings.model or self._may_use(reference):
                return Served(self._load(self._folder(reference)), reference)
            for bundle in self._bundles.values():
                if bundle.digest == reference:
                    return Served(bundle, reference)
        raise UnknownModel(self._refusal(reference))

    def _may_use(self, reference: str) -> bool:
        named = re.fullmatch(r"models:/([\w.-]+)(?:@[\w.-]+|/[0-9]+)", reference)
        return named is not None and named.group(1) in self.allowed

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names of registered models that a client may ask for: the service's own and those of the settings."""
        own = re.match(r"models:/([\w.-]+)", self.settings.model)
        return ((own.group(1),) if own else ()) + self.settings.allow_models

    def _refusal(self, reference: str) -> str:
        names = ", ".join(f"models:/{name}@ALIAS" for name in self.allowed) or "none by name"
        return f"there is no model {reference[:100]!r} here; use the service's own, a digest of it, or {names}"

    def _folder(self, reference: str) -> Path:
        """Where a model's bundle lies; an alias is asked for again after `ALIAS_TTL_S`."""
        if not reference.startswith(REGISTRY):
            return Path(reference).resolve()
        last = self._folders.get(reference)
        if last is not None and not last.is_dir():  # somebody tidied up
            last = None
        if last is not None and ("@" not in reference or reference in self._fresh):
            return last
        try:
            folder = self._fetch(reference)
        except Exception as error:
            if last is None:
                raise _client_error(reference, error) from error
            log.error("%s: %s; the model that it meant before goes on", reference, error)
            folder = last
        self._folders[reference] = self._fresh[reference] = folder
        return folder

    def _fetch(self, reference: str) -> Path:
        from ldseg.orchestration.tracking import (  # seconds to import, and not needed for a folder
            mlflow_client,
            registry,
        )

        if self._tracker is None:
            self._tracker = mlflow_client.connect(Path(self.settings.home))
        version = registry.find_version(self._tracker, reference)
        return registry.fetch(self._tracker, version, Path(self.settings.home) / "models").resolve()

    def _load(self, folder: Path) -> Bundle:
        bundle = self._bundles.get(folder)
        if bundle is None:
            try:
                bundle = load_bundle(folder)
            except BundleError as error:
                raise UnusableModel(str(error)) from error
            self._bundles[folder] = bundle
        return bundle


def _client_error(reference: str, error: Exception) -> Exception:
    """What a client is told: a reference that is not there, or a model that can't be trusted."""
    from ldseg.orchestration.tracking.registry import RegistryError

    text = str(error) or type(error).__name__
    if isinstance(error, RegistryError) and "is not in the registry" in text:
        return UnknownModel(f"{reference} is not in the registry; register and promote a model first")
    return UnusableModel(f"{reference} can't be used: {text}")
