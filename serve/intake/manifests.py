"""Cohorts as clients post them: JSON, CSV or Parquet, read with bounded time and memory whatever they hold."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from ldseg.data.listing.rows import decoded, read_rows
from serve.http.bodies import media_type, read_whole
from serve.http.problems import Problem, from_validation
from serve.intake.requests import CohortRequest
from serve.settings import Settings

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
TABLES = (CSV, "text/tab-separated-values")
COLUMNS = {"case", "image"}
PARQUET_SECONDS = 20.0
SMALL_BYTES = 8192
# of a manifest: what has more of these marks for each case lists something else, and would become millions of objects
BRACKETS_PER_CASE, COMMAS_PER_CASE = 4, 32
_parquet_turn = asyncio.Semaphore(2)


async def read_manifest(request: Request, settings: Settings) -> tuple[CohortRequest, bytes]:
    """The cohort that a request posts, and the body as it came.

    Raises:
        Problem: it is of another type, too large, or can't be used.
    """
    kind = media_type(request)
    if kind not in (JSON, *TABLES, PARQUET):
        detail = f"post a manifest as {JSON}, {CSV} or {PARQUET} (Content-Type is {kind[:60]!r})"
        raise Problem("unsupported-media-type", detail, headers={"Accept-Post": f"{JSON}, {CSV}, {PARQUET}"})
    body = await read_whole(request, settings.max_manifest_bytes)
    query = dict(request.query_params.multi_items())
    if kind == JSON:
        if query:
            raise Problem("invalid-request", f"{', '.join(sorted(query))[:200]}: with JSON this belongs into the body")
        if len(body) <= SMALL_BYTES:  # sooner read than a thread is found for it
            return _from_json(body, settings.max_cases), body
        wanted = await asyncio.to_thread(_from_json, body, settings.max_cases)
    else:
        if kind in TABLES:
            cases = await asyncio.to_thread(_from_csv, body, settings.max_cases)
        else:
            cases = await _from_parquet(body, settings.max_cases)
        wanted = await asyncio.to_thread(_validated, lambda: _with_query(cases, query))
    return wanted, body


def _validated(make: Callable[[], CohortRequest]) -> CohortRequest:
    try:
        return make()
    except ValidationError as error:
        raise from_validation(error) from error


def _with_query(cases: list[dict[str, str]], query: dict[str, str]) -> CohortRequest:
    if "cases" in query:
        raise Problem("invalid-request", "cases: they are the rows of the body")
    return CohortRequest.model_validate(query | {"cases": cases})


def _from_json(body: bytes, max_cases: int) -> CohortRequest:
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > BRACKETS_PER_CASE * max_cases + 64 or body.count(b",") > COMMAS_PER_CASE * max_cases + 64:
        detail = f"the body has more parts than a manifest of {max_cases} cases; post several cohorts"
        raise Problem("invalid-request", detail)
    try:
        content = json.loads(decoded(body), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except RecursionError as error:
        raise Problem("invalid-request", "the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"the body is no UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise Problem("invalid-request", f"the body is no JSON that can be used: {str(error)[:200]}") from error
    return _validated(lambda: CohortRequest.model_validate(content))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:60]!r} appears twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _from_csv(body: bytes, max_cases: int) -> list[dict[str, str]]:
    try:
        columns, rows = read_rows(body)
        _check_columns(columns)
        cases = []
        for line, cells in rows:
            if len(cells) != len(columns):
                raise Problem("invalid-request", f"line {line}: it must have a case and an image")
            row = dict(zip(columns, cells, strict=True))
            cases.append({"name": row["case"], "image": row["image"]})
            if len(cases) > max_cases:
                raise _too_many(max_cases)
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"the body is no UTF-8 (byte {error.start})") from error
    except csv.Error as error:
        raise Problem("invalid-request", f"the body is no CSV that can be used: {error}") from error
    return cases


def _check_columns(columns: Any) -> None:
    if sorted(columns) != sorted(COLUMNS):
        listed = ", ".join(repr(str(column)[:40]) for column in list(columns)[:8]) or "none"
        raise Problem("invalid-request", f"the manifest must have the columns case and image, it has {listed}")


def _too_many(max_cases: int) -> Problem:
    return Problem("invalid-request", f"cases: at most {max_cases} in one cohort; post several cohorts")


async def _from_parquet(body: bytes, max_cases: int) -> list[dict[str, str]]:
    """In a process of its own with little memory: a page of a Parquet file may claim and unpack to anything."""
    async with _parquet_turn:
        command = (sys.executable, "-I", str(Path(__file__).with_name("parquet_reader.py")), str(max_cases))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            output, _ = await asyncio.wait_for(process.communicate(body), PARQUET_SECONDS)
        except TimeoutError:
            output = b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    try:
        answer = json.loads(output)
    except ValueError as error:
        detail = "the body is no Parquet file that can be read in little memory and time; post CSV"
        raise Problem("invalid-request", detail) from error
    if "error" in answer:
        raise Problem("invalid-request", answer["error"])
    return [{"name": name, "image": image} for name, image in answer["cases"]]
