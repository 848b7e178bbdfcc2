"""The description of the interface is whole, and what it allows is never answered with a fault of the service."""

from __future__ import annotations

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from service import TOKEN, problem
from web import Web


@pytest.fixture(scope="module")
def described(web: Web) -> dict:
    document = web.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    return dict(document)


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "not"])
def test_no_request_is_a_fault(web: Web, mode: GenerationMode, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{web.url}/openapi.json")

    def check(case: schemathesis.Case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        assert response.status_code < 500, f"{case.as_curl_command()}: {response.text}"
        if response.status_code >= 400 and case.method != "HEAD":
            assert response.headers["content-type"] == ["application/problem+json"], case.as_curl_command()

    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
            continue  # nothing to do wrong
        generate = given(case=operation.as_strategy(generation_mode=mode))
        generous = settings(
            max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        try:
            generous(generate(check))()
        except Unsatisfiable:  # every text is an id: nothing there can be wrong
            continue
        tried += 1
    assert tried >= 4


def test_every_route_says_what_it_answers_and_that_it_wants_a_token(described: dict) -> None:
    assert {"/v1/cohorts", "/v1/uploads", "/v1/segmentations", "/v1/cohorts/{cohort}/archive.zip", "/metrics"} <= set(
        described["paths"]
    )
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            good = [answer for status, answer in operation["responses"].items() if status[0] == "2"]
            assert good and all("content" in answer or "204" in operation["responses"] for answer in good), where
            for answer in good:
                for kind, content in answer.get("content", {}).items():
                    assert content.get("schema"), f"{where} as {kind}"
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Problem"}, where
            protected = path.startswith("/v1") or path == "/metrics"
            assert (operation.get("security") == [{"bearer": []}, {}]) == protected, where
            if method == "post":
                assert operation["requestBody"]["content"], where
    kinds = described["components"]["schemas"]["ProblemDocument"]["properties"]["type"]["enum"]
    assert "urn:ldseg:problem:too-large" in kinds


def test_the_answers_are_as_described(web: Web, done: str, described: dict) -> None:
    for path, template in (
        ("/health/live", None),
        ("/health/ready", None),
        ("/v1/model", None),
        ("/v1/problems", None),
        ("/v1/cohorts", None),
        (f"/v1/cohorts/{done}", "/v1/cohorts/{cohort}"),
        (f"/v1/cohorts/{done}/cases/a", "/v1/cohorts/{cohort}/cases/{name}"),
        (f"/v1/cohorts/{done}/cases/cut", "/v1/cohorts/{cohort}/cases/{name}"),
    ):
        told = described["paths"][template or path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(web.http.get(path).json(), told | {"components": described["components"]})
    example = described["paths"]["/v1/cohorts"]["post"]["requestBody"]["content"]["application/json"]
    jsonschema.validate(example["example"], example["schema"] | {"components": described["components"]})


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/none", 404, "not-found"),
        ("GET", "/none", 404, "not-found"),
        ("GET", "/v1/cohorts/%00", 404, "not-found"),
        ("GET", "/v1/cohorts/none/archive.zip", 404, "not-found"),
        ("GET", "/v1/cohorts/none/events", 404, "not-found"),
        ("PUT", "/v1/cohorts", 405, "method-not-allowed"),
        ("DELETE", "/v1/model", 405, "method-not-allowed"),
        ("GET", "/v1/uploads", 405, "method-not-allowed"),
        ("GET", "/v1/cohorts?limit=0", 422, "invalid-request"),
        ("GET", "/v1/cohorts?before=x", 422, "invalid-request"),
        ("GET", "/v1/cohorts?before=99999999999999999999999", 422, "invalid-request"),
    ],
)
def test_errors_are_problem_documents(web: Web, method: str, path: str, status: int, kind: str) -> None:
    answer = web.http.request(method, path)
    assert problem(answer, status, kind)["instance"]
    if status == 405:
        assert answer.headers["allow"] in ("GET, HEAD, POST", "GET, HEAD", "POST")


def test_an_answer_that_is_not_wanted_is_not_given(web: Web) -> None:
    problem(web.http.get("/v1/model", headers={"Accept": "image/png"}), 406, "not-acceptable")
    for accept in ("*/*", "application/*;q=0.5", "text/html, application/json", "application/problem+json", ""):
        assert web.http.get("/v1/model", headers={"Accept": accept}).status_code == 200


def test_every_kind_of_problem_is_listed(web: Web) -> None:
    listed = {entry["type"]: entry["status"] for entry in web.http.get("/v1/problems").json()["problems"]}
    assert listed["urn:ldseg:problem:idempotency-conflict"] == 422
    assert listed["urn:ldseg:problem:database-unavailable"] == 503


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
def test_keys_that_cannot_be_used(web: Web, key: str) -> None:
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}]}
    answer = web.http.post("/v1/cohorts", json=body, headers={"Idempotency-Key": key.encode("latin-1")})
    problem(answer, 422, "invalid-request")


def test_the_same_key_with_the_same_body_is_the_same_cohort(web: Web) -> None:
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 1}
    key = {"Idempotency-Key": "one of a kind"}
    first, again = (web.http.post("/v1/cohorts", json=body, headers=key) for _ in range(2))
    assert first.status_code == again.status_code == 202 and first.json()["id"] == again.json()["id"]
    conflict = web.http.post("/v1/cohorts", json=body | {"seed": 1}, headers=key)
    problem(conflict, 422, "idempotency-conflict")
    other = web.http.post("/v1/cohorts", json=body, headers=key | {"Authorization": "Bearer another-token"})
    assert other.status_code == 202 and other.json()["id"] != first.json()["id"]
