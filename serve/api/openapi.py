"""The description of the interface: errors and the token are the same for every route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serve.api.documents import ProblemDocument
from serve.http.problems import TITLES, listed
from serve.http.security import SCHEME, is_protected

PROBLEM = "application/problem+json"
DESCRIPTION = """Uncertain segmentation of medical images: cohorts in, ensembles of segmentations out.

Errors are problem documents (RFC 9457); their types stay: {types}. Times are seconds since 1970.""".format(
    types=", ".join(TITLES)
)


_defined: dict[str, Any] = {}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A pydantic model that a route reads by itself, as a part of the document that others can refer to."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    _defined.update(schema.pop("$defs", {}))
    _defined[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def install(app: FastAPI) -> None:
    """Replace the application's own description."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            app.openapi_schema = _completed(made)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components["securitySchemes"] = SCHEME
    schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["properties"]["type"]["enum"] = [entry["type"] for entry in listed()]
    components.setdefault("schemas", {})["ProblemDocument"] = schema
    components["schemas"].update(_defined)
    reference = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
    components["responses"] = {"Problem": {"description": "what is wrong", "content": {PROBLEM: reference}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"$ref": "#/components/responses/Problem"}
            if is_protected(path):
                operation["security"] = [{"bearer": []}, {}]
    return document
