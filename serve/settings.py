"""What an operator can set; an unknown key is an error that names the known ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ldseg.config.memory import VARIABLE, case_bytes
from ldseg.posterior.plan import KEPT_SAMPLES
from serve.tokens import Token, explain, parse_tokens


class SettingsError(ValueError):
    """A setting that can't be used; the message names it and the cure."""


def absolute(path: str) -> str:
    """A folder or file by its real path."""
    return str(Path(path).resolve())


def check_prefix(prefix: str) -> str:
    """A prefix of URLs that may be read; it ends with a slash, so that s3://a/b does not allow s3://a/bc.

    Raises:
        SettingsError: it has no scheme or no place.
    """
    scheme, _, place = prefix.partition("://")
    if not scheme or not place.strip("/") or "::" in prefix or ".." in place.split("/"):
        raise SettingsError(f"{prefix!r} must look like s3://bucket/folder/")
    return prefix if prefix.endswith("/") else prefix + "/"


Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
FilePath = Annotated[str, AfterValidator(absolute)]
FilePathOrNone = Annotated[str, AfterValidator(lambda path: path and absolute(path))]
HostName = Annotated[str, AfterValidator(str.lower)]
UrlPrefix = Annotated[str, AfterValidator(check_prefix)]
Tokens = Annotated[dict[str, Token], BeforeValidator(parse_tokens)]


class Settings(BaseModel):
    """Of one service.

    Attributes:
        model: models:/name@alias, models:/name/version or a bundle folder.
        home: the runs folder; jobs and results are kept under service/ there.
        allow_roots: folders that a cohort's images may lie under; none refuses every cohort (uploads still work).
        allow_urls: what the URL of an image may begin with, such as s3://bucket/folder/; none refuses every URL.
        allow_models: names of registered models that clients may ask for beside the service's own.
        allow_hosts: names by which clients call the service, beside those of the loopback; all others are refused.
        behind_proxy: a proxy with TLS stands in front, so the service may listen beyond the loopback without it.
        log_names: the access and audit logs name cases, which may name patients; otherwise they have digests of names.
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
        max_samples: of a case, by all of its models together.
        max_steps: denoiser steps of a sample that a client may ask for; the model's own are always allowed.
        max_cohorts: of one token that are unfinished at the same time; one more is answered 429.
        max_uploads: single volumes of one token that are unfinished at the same time; one more is answered 429.
        max_requests: of one token that are open at the same time; one more is answered 429, as with the next two.
        max_listeners: of those, the ones that follow a cohort's events.
        max_bodies: of those, the ones whose body has not come yet.
        body_wait_s: after so long without anything of a body the request is ended with 408.
        max_voxels: that an image's header may claim.
        max_case_gb: memory that a case may take, in 2**30 bytes, as told from its header and the model; 0 takes
            LDSEG_CASE_GB, else a share of this machine's for each sampler and one more.
        max_upload_bytes: of an uploaded file.
        max_manifest_bytes: of the body that lists a cohort's cases.
        min_free_bytes: of the disk; where less is left uploads are answered 507.
        upload_wait_s: after so long an upload is answered 202 and goes on as a job.
        chunk_attempts: how often a chunk is tried when samplers die.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str
    home: FilePath = "runs"
    allow_roots: tuple[FilePath, ...] = ()
    allow_urls: tuple[UrlPrefix, ...] = ()
    allow_models: tuple[str, ...] = ()
    allow_hosts: tuple[HostName, ...] = ()
    behind_proxy: bool = False
    log_names: bool = False
    database: str = ""
    tokens: Tokens = Field(default_factory=dict)
    tokens_file: FilePathOrNone = ""
    replicas: Count = 2
    max_replicas: CountOrZero = 0
    idle_replica_s: Seconds = 60.0
    gpus_per_replica: Share = 0.0
    cpus_per_replica: Share = 1.0
    threads_per_replica: Count = 1
    chunk_size: Count = 4
    cases_in_flight: CountOrZero = 0
    lease_s: Seconds = 15.0
    keep_samples: CountOrZero = KEPT_SAMPLES
    keep_uploads: bool = True
    max_cases: Count = 10_000
    max_samples: Count = 256
    max_steps: Count = 100
    max_cohorts: Count = 100
    max_uploads: Count = 8
    max_requests: Count = 200
    max_listeners: Count = 32
    max_bodies: Count = 64
    body_wait_s: Seconds = 20.0
    max_voxels: Count = 2**29
    max_case_gb: Share = 0.0
    max_upload_bytes: Count = 8 * 2**30
    max_manifest_bytes: Count = 16 * 2**20
    min_free_bytes: Count = 2**28
    upload_wait_s: Seconds = 600.0
    chunk_attempts: Count = 5

    if not TYPE_CHECKING:  # which takes the fields for the parameters

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise SettingsError(_sentence(error)) from error

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if self.cpus_per_replica + self.gpus_per_replica <= 0:
            raise ValueError("cpus_per_replica and gpus_per_replica are both 0; let a sampler take a share of one")
        if not self.model:
            raise ValueError("model is empty; name a bundle folder or models:/name@alias")
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from a configuration file.

        Raises:
            SettingsError: an unknown key or a value that can't be used.
        """
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return self.model_dump()

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
    def logs(self) -> Path:
        """Of who asked for what."""
        return self.folder / "logs"

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
    def case_bytes(self) -> int:
        """Memory that a case may take."""
        if self.max_case_gb:
            return int(self.max_case_gb * 2**30)
        return case_bytes() // (1 if os.environ.get(VARIABLE) else self.replicas + 1)

    @property
    def device(self) -> str:
        """Where samplers compute."""
        return "cuda" if self.gpus_per_replica > 0 else "cpu"


def _sentence(error: ValidationError) -> str:
    """What pydantic found wrong first; unknown keys before all else."""
    found = error.errors(include_url=False)
    unknown = sorted(str(item["loc"][0]) for item in found if item["type"] == "extra_forbidden")
    if unknown:
        return f"unknown setting(s) {', '.join(unknown)}; known are {', '.join(sorted(Settings.model_fields))}"
    first = found[0]
    if first["type"] in ("greater_than", "greater_than_equal"):
        return f"{first['loc'][0]} must be above 0, got {first['input']}"
    if first["type"] == "value_error":
        return explain(first)
    needed = "; 'model' is needed" if first["type"] == "missing" else ""
    return f"the settings can't be used ({explain(first)}){needed}"
