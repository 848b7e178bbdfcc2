"""What clients are told of cohorts and cases, and its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from ldseg.posterior.plan import SamplePlan
from serve.store import Cohort, StoredCase

State = Literal["queued", "running", "done", "failed", "cancelled"]


class Open(BaseModel):
    """More keys may come with later versions."""

    model_config = ConfigDict(extra="allow")


class ProblemDocument(Open):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:ldseg:problem:invalid-request"])
    title: str
    status: int
    detail: str = Field(description="what is wrong and what to do")
    instance: str | None = None
    errors: list[str] | None = None


class ProblemType(BaseModel):
    """A kind of error; its type stays."""

    type: str
    status: int
    title: str


class ProblemTypes(BaseModel):
    """Every kind of error."""

    problems: list[ProblemType]


class CaseLine(Open):
    """A case in a list."""

    name: str
    state: State
    error: str | None
    reason: str | None = Field(description="a short word for why it failed, such as invalid-image")
    model_digest: str | None = Field(description="of the model that drew it; of several, with spaces between")
    agreement: float | None = Field(description="mean pairwise Dice of the samples; look at the lowest first")
    href: str
    numbers: dict[str, Any] | None = None
    attention: list[str] | None = Field(None, description="why it needs review, in the order of review")
    review: dict[str, Any] | None = Field(None, description="what was said of it, in the order of review")


class CasePageDocument(BaseModel):
    """Cases of a cohort."""

    cases: list[CaseLine]
    next: str | None = Field(description="address of the next page")


class FileEntry(Open):
    """A file of a case."""

    name: str
    bytes: int
    sha256: str
    href: str


class CaseDocument(CaseLine):
    """A case with its numbers and links to its files."""

    cohort: str
    started: float | None
    finished: float | None
    files: dict[str, FileEntry] | None = None


class CohortDocument(Open):
    """A cohort, with its cases where they were asked for."""

    id: str
    created: float = Field(description="seconds since 1970")
    state: Literal["queued", "running", "done", "cancelled"]
    total: int
    counts: dict[str, int] = Field(description="cases by state")
    name: str = Field(description="as it was given, else its first case's")
    review: dict[str, Any] | None = Field(None, description="cases that need review and that have one; its models")
    links: dict[str, str]
    cases: list[CaseLine] | None = Field(None, description="the first of them; links.cases has all, by pages")


class CohortPage(BaseModel):
    """Cohorts, the newest first."""

    cohorts: list[CohortDocument]
    next: str | None = Field(description="address of the next page")


class UploadDocument(BaseModel):
    """A kept upload; name it as upload:ID in a manifest."""

    upload: str
    image: str = Field(examples=["upload:0123456789abcdef0123456789abcdef"])
    sha256: str
    bytes: int


class ModelDocument(Open):
    """The model that is served."""

    uri: str
    digest: str
    structures: list[str]
    label_values: list[int]
    spatial_dims: int
    in_channels: int
    steps: int


class Health(Open):
    """Whether the service lives, and can work."""

    status: str


def plan_document(plan: SamplePlan) -> int | dict[str, Any]:
    """A number of samples as clients ask for it."""
    return {"min": plan.min, "max": plan.max, "tolerance": plan.tolerance} if plan.adaptive else plan.min


def cohort_document(cohort: Cohort, cases: Sequence[StoredCase] | None = None) -> dict[str, Any]:
    """A cohort as clients see it."""
    home = f"/v1/cohorts/{cohort.id}"
    document: dict[str, Any] = {"id": cohort.id, "created": cohort.created, "finished": cohort.finished}
    document |= {"samples": plan_document(cohort.plan), "steps": cohort.steps, "seed": cohort.seed}
    document |= {"models": list(cohort.models), "priority": cohort.priority, "upload": cohort.upload}
    document |= {"name": cohort.name, "state": cohort.state, "total": cohort.total, "counts": cohort.counts}
    links = {"self": home, "cases": f"{home}/cases", "table": f"{home}/table.parquet", "csv": f"{home}/table.csv"}
    links |= {"reviews": f"{home}/reviews.csv", "archive": f"{home}/archive.zip"}
    document["links"] = links | {"events": f"{home}/events"}
    if cases is not None:
        document["cases"] = [case_line(case) for case in cases]
    return document


def case_line(case: StoredCase) -> dict[str, Any]:
    """A case in a list, with its numbers where they were read."""
    line: dict[str, Any] = {"name": case.name, "state": case.state, "error": case.error, "reason": case.reason}
    line |= {"model_digest": case.model_digest, "agreement": case.agreement}
    line["href"] = f"/v1/cohorts/{case.cohort}/cases/{quote(case.name, safe='')}"
    return line | ({"numbers": case.result["numbers"]} if case.result else {})


def case_document(case: StoredCase) -> dict[str, Any]:
    """A case with its numbers and links to its files."""
    document = case_line(case) | {"cohort": case.cohort, "started": case.started, "finished": case.finished}
    result = case.result or {}
    files = {
        key: entry | {"href": f"{document['href']}/files/{quote(key, safe='')}"}
        for key, entry in result.get("files", {}).items()
    }
    return document | result | ({"files": files} if files else {})
