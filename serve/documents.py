"""What clients are told of cohorts and cases, and its description."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

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
    href: str


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
    numbers: dict[str, Any] | None = None
    files: dict[str, FileEntry] | None = None


class CohortDocument(Open):
    """A cohort, with its cases where they were asked for."""

    id: str
    created: float = Field(description="seconds since 1970")
    state: Literal["queued", "running", "done", "cancelled"]
    total: int
    counts: dict[str, int] = Field(description="cases by state")
    links: dict[str, str]
    cases: list[CaseLine] | None = None


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


def cohort_document(cohort: dict[str, Any], cases: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A cohort as clients see it."""
    counts, home = cohort["counts"], f"/v1/cohorts/{cohort['id']}"
    document = {key: cohort[key] for key in ("id", "created", "samples", "steps", "seed", "upload")}
    document |= {"state": cohort_state(counts, cohort["cancelled"]), "total": sum(counts.values()), "counts": counts}
    links = {"self": home, "table": f"{home}/table.parquet", "csv": f"{home}/table.csv"}
    document["links"] = links | {"archive": f"{home}/archive.zip", "events": f"{home}/events"}
    if cases is not None:
        document["cases"] = [case_line(case) for case in cases]
    return document


def cohort_state(counts: dict[str, int], cancelled: bool) -> str:
    """queued, running, done (every case has ended) or cancelled."""
    if counts["running"] or (counts["queued"] and counts["queued"] < sum(counts.values())):
        return "running"
    if counts["queued"]:
        return "queued"
    return "cancelled" if cancelled else "done"


def case_line(case: dict[str, Any]) -> dict[str, Any]:
    """A case in a list."""
    link = f"/v1/cohorts/{case['cohort']}/cases/{quote(case['name'], safe='')}"
    return {key: case[key] for key in ("name", "state", "error")} | {"href": link}


def case_document(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its numbers and links to its files."""
    document = case_line(case) | {"cohort": case["cohort"], "started": case["started"], "finished": case["finished"]}
    result = case["result"] or {}
    files = {
        key: entry | {"href": f"{document['href']}/files/{quote(key, safe='')}"}
        for key, entry in result.get("files", {}).items()
    }
    return document | result | ({"files": files} if files else {})
