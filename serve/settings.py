"""What an operator can set; an unknown key is an error that names the known ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg.posterior.summary import KEPT_SAMPLES
from serve.tokens import Token, TokenError, parse_tokens

MAY_BE_ZERO = ("gpus_per_replica", "cpus_per_replica", "max_replicas", "cases_in_flight", "keep_samples")


class SettingsError(ValueError):
    """A setting that can't be used; the message names it and the cure."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one service.

    Attributes:
        model: models:/name@alias, models:/name/version or a bundle folder.
        home: the runs folder; jobs and results are kept under service/ there.
        allow_roots: folders that a cohort's images may lie under; none refuses every cohort (uploads still work).
        allow_urls: what the URL of an image may begin with, such as s3://bucket/folder/; none refuses every URL.
        allow_models: names of registered models that clients may ask for beside the service's own.
        database: of the jobs: sqlite:///PATH or postgresql://..., which several services may share; empty takes
            LDSEG_DATABASE_URL, else a file beside the results.
        tokens: bearer tokens by name, with the limits of each; none asks for no token. Only hashes are kept.
        tokens_file: TOML or JSON with further tokens, read again when it changes; see `serve.tokens.load_tokens`.
        replicas: sampler actors; where `max_replicas` is larger, at least so many.
        max_replicas: sampler actors at most: they are added while work waits and the cluster has room, and given back
            when they are idle; 0 keeps their number at `replicas`.
        idle_replica_s: how long a sampler beyond `replicas` has nothing to do before it is given back.
        gpus_per_replica: 0 samples on the CPU.
        cpus_per_replica: logical CPUs that Ray counts for a sampler.
        threads_per_replica: of torch in a sampler; the same number gives the same bytes.
        chunk_size: samples of a case that one sampler draws at a time. It fixes the order in which numbers are added,
            so results don't depend on how many samplers there are.
        cases_in_flight: cases that are prepared, sampled and exported at the same time; 0 takes two more than samplers
            at any time.
        lease_s: how long a case stays with a service that has died; it tells of itself ten times as often.
        keep_samples: label maps of the first samples that are kept of a case, to flip through.
        keep_uploads: uploaded volumes stay as long as their cohort, so that the page can show them.
        max_cases: of a cohort.
        max_samples: of a case.
        max_cohorts: that are unfinished at the same time; one more is answered 429.
        max_uploads: single volumes that are unfinished at the same time; one more is answered 429.
        max_voxels: that an image's header may claim.
        max_upload_bytes: of an uploaded file.
        max_manifest_bytes: of the body that lists a cohort's cases.
        min_free_bytes: of the disk; where less is left uploads are answered 507.
        upload_wait_s: after so long an upload is answered 202 and goes on as a job.
        chunk_attempts: how often a chunk is tried when samplers die.
    """

    model: str
    home: str = "runs"
    allow_roots: tuple[str, ...] = ()
    allow_urls: tuple[str, ...] = ()
    allow_models: tuple[str, ...] = ()
    database: str = ""
    tokens: Mapping[str, Token] = dataclasses.field(default_factory=dict)
    tokens_file: str = ""
    replicas: int = 2
    max_replicas: int = 0
    idle_replica_s: float = 60.0
    gpus_per_replica: float = 0.0
    cpus_per_replica: float = 1.0
    threads_per_replica: int = 1
    chunk_size: int = 4
    cases_in_flight: int = 0
    lease_s: float = 15.0
    keep_samples: int = KEPT_SAMPLES
    keep_uploads: bool = True
    max_cases: int = 10_000
    max_samples: int = 256
    max_cohorts: int = 100
    max_uploads: int = 8
    max_voxels: int = 2**29
    max_upload_bytes: int = 8 * 2**30
    max_manifest_bytes: int = 16 * 2**20
    min_free_bytes: int = 2**28
    upload_wait_s: float = 600.0
    chunk_attempts: int = 5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in MAY_BE_ZERO or isinstance(value, bool)
            if isinstance(value, int | float) and (value < 0 or (value == 0 and not may_be_zero)):
                raise SettingsError(f"{field.name} must be above 0, got {value}")
        if self.cpus_per_replica + self.gpus_per_replica <= 0:
            raise SettingsError("cpus_per_replica and gpus_per_replica are both 0; let a sampler take a share of one")
        if not self.model:
            raise SettingsError("model is empty; name a bundle folder or models:/name@alias")
        object.__setattr__(self, "allow_roots", tuple(str(Path(root).resolve()) for root in self.allow_roots))
        object.__setattr__(self, "allow_models", tuple(self.allow_models))
        object.__setattr__(self, "home", str(Path(self.home).resolve()))
        if self.tokens_file:
            object.__setattr__(self, "tokens_file", str(Path(self.tokens_file).resolve()))
        object.__setattr__(self, "allow_urls", tuple(check_prefix(prefix) for prefix in self.allow_urls))
        try:
            object.__setattr__(self, "tokens", parse_tokens(self.tokens))
        except TokenError as error:
            raise SettingsError(f"tokens: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from a configuration file.

        Raises:
            SettingsError: an unknown key or a value that can't be used.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(f"unknown setting(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingsError(f"the settings can't be used ({error}); 'model' is needed") from error

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @property
    def most_replicas(self) -> int:
        """Sampler actors, at most."""
        return max(self.replicas, self.max_replicas)

    @property
    def folder(self) -> Path:
        """Of the job store, the results and the uploads."""
        return Path(self.home) / "service"

    @property
    def database_url(self) -> str:
        """Of the job store; empty for the file jobs.db beside the results."""
        return self.database or os.environ.get("LDSEG_DATABASE_URL", "")

    @property
    def uploads(self) -> Path:
        """Of volumes that were uploaded to be segmented at once."""
        return self.folder / "uploads"

    @property
    def results(self) -> Path:
        """Of the cohorts' files: COHORT/CASE folders."""
        return self.folder / "results"

    @property
    def kept_uploads(self) -> Path:
        """Of images that were uploaded for a later manifest."""
        return self.folder / "uploads" / "kept"

    @property
    def readable_roots(self) -> tuple[str, ...]:
        """Where a case's image may lie when it is read."""
        return (*self.allow_roots, str(self.kept_uploads.resolve()))

    @property
    def case_threads(self) -> int:
        """Cases that may be read and exported at the same time."""
        return min(self.cases_in_flight or self.most_replicas + 2, 64)

    @property
    def device(self) -> str:
        """Where samplers compute."""
        return "cuda" if self.gpus_per_replica > 0 else "cpu"


def check_prefix(prefix: str) -> str:
    """A prefix of URLs that may be read; it ends with a slash, so that s3://a/b does not allow s3://a/bc.

    Raises:
        SettingsError: it has no scheme or no place.
    """
    scheme, _, place = prefix.partition("://")
    if not scheme or not place.strip("/") or "::" in prefix or ".." in place.split("/"):
        raise SettingsError(f"allow_urls: {prefix!r} must look like s3://bucket/folder/")
    return prefix if prefix.endswith("/") else prefix + "/"
