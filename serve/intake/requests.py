"""What clients send, checked before anything is stored."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ldseg.posterior.plan import SamplePlan
from serve.http.problems import Problem
from serve.settings import Settings

MAX_NAME_BYTES = 150


def check_name(name: str) -> str:
    """A case's name: it becomes part of file names and addresses.

    Raises:
        ValueError: it looks like a path, is empty or too long.
    """
    if not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f\x7f]+", name) or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise ValueError(
            f"the name {name[:60]!r} can't be part of a file name; use 1 to {MAX_NAME_BYTES} letters, digits, - and _"
        )
    name.encode("utf-8")
    return name


def check_path(image: str) -> str:
    """An image's path without what no path can hold."""
    if "\x00" in image:
        raise ValueError("a path can't hold a zero byte")
    return image


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


Name = Annotated[str, AfterValidator(check_name)]


class SamplesBetween(Strict):
    """As many samples as it takes."""

    min: int = Field(8, ge=1, description="at least so many")
    max: int = Field(64, ge=1, description="at most so many")
    tolerance: float = Field(
        0.01, gt=0, le=1, description="standard error of each mean volume, relative to it, and of each agreement"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SamplesBetween:
        if self.min > self.max:
            raise ValueError(f"min must not be above max, got {self.min} and {self.max}")
        return self


class Draws(Strict):
    """How a posterior is drawn."""

    samples: int = Field(8, ge=1, description="samples of the posterior of each case")
    steps: int | None = Field(None, ge=1, description="denoiser steps of a sample; null takes the model's own")
    seed: int = Field(0, ge=0, lt=2**63, description="of the samples")

    @property
    def plan(self) -> SamplePlan:
        """How many samples a case gets."""
        return SamplePlan.fixed(self.samples)

    @property
    def num_models(self) -> int:
        """How many draw that many samples each."""
        return 1

    def check(self, settings: Settings, most_steps: int) -> None:
        """Compare with what this service and its model allow.

        Raises:
            Problem: too many samples or steps.
        """
        if self.plan.max * self.num_models > settings.max_samples:
            times = f" of each of {self.num_models} models" if self.num_models > 1 else ""
            detail = f"samples: at most {settings.max_samples} of a case here, got {self.plan.max}{times}"
            raise Problem("invalid-request", detail)
        if self.steps is not None and self.steps > most_steps:
            raise Problem("invalid-request", f"steps: at most {most_steps} of a sample here, got {self.steps}")


class CaseRequest(Strict):
    """One case of a cohort."""

    name: Name
    image: Annotated[str, AfterValidator(check_path)] = Field(
        min_length=1, max_length=4096, description="path under one of the service's allowed folders"
    )


class CohortRequest(Draws):
    """A cohort."""

    samples: int | SamplesBetween = Field(  # type: ignore[assignment]
        8, description="of each case: a number, or as many as it takes", union_mode="left_to_right"
    )
    models: list[Annotated[str, Field(min_length=1, max_length=300)]] = Field(
        [],
        max_length=8,
        description="models:/NAME@ALIAS, models:/NAME/VERSION or a digest; several are an ensemble, none is the "
        "service's own",
    )
    name: str = Field("", max_length=150, pattern=r"^[^\x00-\x1f\x7f]*$", description="what people call it")
    priority: int = Field(0, ge=-10, le=10, description="higher ones go first, as far as the token permits")
    cases: list[CaseRequest] = Field(min_length=1)

    @property
    def plan(self) -> SamplePlan:
        """How many samples a case gets."""
        asked = self.samples
        if isinstance(asked, SamplesBetween):
            return SamplePlan(min=asked.min, max=asked.max, tolerance=asked.tolerance)
        return SamplePlan.fixed(asked)

    @property
    def num_models(self) -> int:
        """How many draw that many samples each."""
        return max(1, len(self.models))

    @field_validator("samples")
    @classmethod
    def _at_least_one(cls, samples: int | SamplesBetween) -> int | SamplesBetween:
        if isinstance(samples, int) and samples < 1:
            raise ValueError("Input should be greater than or equal to 1")
        return samples

    def check(self, settings: Settings, most_steps: int) -> None:
        """As `Draws.check`, and: not too many cases, no name twice."""
        super().check(settings, most_steps)
        if len(self.cases) > settings.max_cases:
            detail = f"cases: at most {settings.max_cases} in one cohort, got {len(self.cases)}; post several cohorts"
            raise Problem("invalid-request", detail)
        twice = sorted(name for name, count in Counter(case.name for case in self.cases).items() if count > 1)
        if twice:
            errors = [f"the name {name!r} appears more than once; give each case its own" for name in twice[:20]]
            raise Problem("invalid-request", f"cases: {errors[0]}", errors=errors)


class UploadRequest(Draws):
    """The fields beside an uploaded volume."""

    name: Name | None = None


COHORT_EXAMPLE: dict[str, Any] = {
    "cases": [{"name": "case_001", "image": "/data/cohort/case_001.nii.gz"}],
    "samples": {"min": 8, "max": 64, "tolerance": 0.01},
    "steps": None,
    "seed": 0,
}
