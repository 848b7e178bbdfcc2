"""Routes of a reviewer's work: what a case needs looking at for, what is said of it, and all of it as a table."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from ldseg.results.tables import as_csv
from serve.api.documents import Open
from serve.api.review.verdicts import REVIEWABLE, Reviews, Verdict
from serve.api.service import Service
from serve.http.problems import Problem
from serve.http.sending import send_bytes
from serve.intake.requests import Strict
from serve.store import Cohort, StoredCase

CSV = "text/csv; charset=utf-8"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CASE = "/cohorts/{cohort}/cases/{name}/review"


def check_note(note: str) -> str:
    """A note that every database can hold.

    Raises:
        ValueError: it holds control characters.
    """
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in note):
        raise ValueError("a note can't hold control characters")
    note.encode("utf-8")
    return note


class ReviewRequest(Strict):
    """What a reviewer says of a case."""

    verdict: Literal["accept", "correct", "reject"] = Field(description="correct: usable once it is corrected")
    note: Annotated[str, AfterValidator(check_note)] = Field("", max_length=2000)


class VerdictDocument(BaseModel):
    """What a reviewer has said of a case."""

    verdict: Literal["accept", "correct", "reject"]
    note: str
    reviewer: str = Field(description="name of the token; empty where the service asks for none")
    at: float = Field(description="seconds since 1970")


class ReviewDocument(Open):
    """A case among those of its cohort, as a reviewer meets them."""

    review: VerdictDocument | None = Field(description="the last verdict")
    attention: list[str] = Field(description="why it needs review: unfamiliar, failed, wide-interval, low-agreement")
    previous: str | None = Field(description="name of the case before it in the order of review")
    next: str | None
    place: int = Field(description="in the order of review, from 1")
    total: int = Field(description="cases of the cohort")
    reviewed: int = Field(description="cases of the cohort that have a verdict")


def add(routes: APIRouter, service: Service) -> None:
    """To a router."""
    _add_case(routes, service)
    _add_export(routes, service)


def verdict_document(verdict: Verdict | None) -> dict[str, Any] | None:
    """A verdict as clients see it."""
    if verdict is None:
        return None
    return {"verdict": verdict.verdict, "note": verdict.note, "reviewer": verdict.reviewer, "at": verdict.at}


def review_document(reviews: Reviews, cohort: Cohort, name: str) -> dict[str, Any]:
    """See `ReviewDocument`."""
    previous, following, place = reviews.neighbours(cohort, name)
    said = reviews.of_cohort(cohort, name).get(name)
    document: dict[str, Any] = {"review": verdict_document(said)}
    document["attention"] = list(reviews.attention(cohort).reasons.get(name, ()))
    document |= {"previous": previous, "next": following, "place": place, "total": cohort.total}
    return document | {"reviewed": reviews.reviewed([cohort]).get(cohort.number, 0)}


def _add_case(routes: APIRouter, service: Service) -> None:
    async def described(request: Request, cohort: str, name: str) -> dict[str, Any]:
        found = await service.cohort(cohort, request)
        return await service.ask(lambda: review_document(service.reviews, found, name))

    @routes.get(CASE, response_model=ReviewDocument, summary="Why a case needs review, and what was said of it")
    async def get_review(request: Request, cohort: str, name: str) -> Any:
        await service.case(cohort, name, request)
        return await described(request, cohort, name)

    @routes.put(CASE, response_model=ReviewDocument, summary="Accept, correct or reject a case")
    async def put_review(request: Request, cohort: str, name: str, said: ReviewRequest) -> Any:
        found, owner = await service.cohort(cohort, request), request.state.owner
        case = await service.case(cohort, name, request)
        if case.state not in REVIEWABLE:
            raise Problem("not-finished", f"{name} is {case.state}; it can be reviewed once it is done or failed")
        await service.ask(lambda: service.reviews.put(found, name, owner, said.verdict, said.note))
        return await described(request, cohort, name)

    @routes.delete(CASE, response_model=ReviewDocument, summary="Take back what was said of a case")
    async def delete_review(request: Request, cohort: str, name: str) -> Any:
        found, owner = await service.cohort(cohort, request), request.state.owner
        await service.case(cohort, name, request)
        await service.ask(lambda: service.reviews.remove(found, name, owner))
        return await described(request, cohort, name)


def _add_export(routes: APIRouter, service: Service) -> None:
    content = {"text/csv": {"schema": {"type": "string", "contentMediaType": "text/csv"}}}
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "the bytes; ETag is their sha256", "content": content},
        206: {"description": "the range that was asked for", "content": content},
        304: {"description": "the client has it already"},
        416: {"$ref": "#/components/responses/Problem"},
    }

    async def get_reviews(request: Request, cohort: str) -> Response:
        found, owner = await service.cohort(cohort, request), request.state.owner
        listed = await service.ask(lambda: list(service.store.every_case(cohort, owner=owner)))
        rows = await service.ask(lambda: reviews_table(listed, service.reviews, found))
        return send_bytes(request, await asyncio.to_thread(as_csv, rows), "reviews.csv", CSV)

    path, summary = "/cohorts/{cohort}/reviews.csv", "Every case with what was said of it, as CSV"
    routes.add_api_route(
        path, get_reviews, methods=["GET"], responses=described, response_class=Response, summary=summary
    )
    routes.add_api_route(path, get_reviews, methods=["HEAD"], include_in_schema=False, response_class=Response)


def reviews_table(listed: list[StoredCase], reviews: Reviews, cohort: Cohort) -> pa.Table:
    """A row for each case as posted: why it needs review and what was said of it."""
    names = [case.name for case in listed]
    reasons = reviews.attention(cohort).reasons
    columns = {
        "case": [_plain(name) for name in names],
        "state": [case.state for case in listed],
        "attention": [" ".join(reasons.get(name, ())) for name in names],
    }
    return with_verdicts(pa.table(columns), names, reviews.of_cohort(cohort), plain=True)


def with_verdicts(rows: pa.Table, names: list[str], said: dict[str, Verdict], *, plain: bool = False) -> pa.Table:
    """A table with the columns review, review_note, reviewer and reviewed.

    Args:
        names: of the rows' cases.
        plain: texts that a spreadsheet would take for a formula get an apostrophe.
    """
    text = _plain if plain else str
    found = [said.get(name) for name in names]
    columns: dict[str, list[str]] = {
        "review": [one.verdict if one else "" for one in found],
        "review_note": [text(one.note) if one else "" for one in found],
        "reviewer": [text(one.reviewer) if one else "" for one in found],
        "reviewed": [datetime.fromtimestamp(one.at, UTC).isoformat(timespec="seconds") if one else "" for one in found],
    }
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values, pa.string()))
    return rows


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
