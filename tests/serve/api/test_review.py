"""A reviewer's work over HTTP: reasons, verdicts, their export; names of cohorts and the search for them."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from service import problem
from stores import LEASE_S, names
from web import Web

from ldseg.posterior.plan import SamplePlan
from serve.api.review.verdicts import Reviews
from serve.store import JobStore, NewCohort


@pytest.fixture(scope="module")
def cohort(web: Web, data: Path) -> str:
    """Two cases that are done, one of them with a name like a formula, and a failed one."""
    cases = {"a": "case_0.nii.gz", "=1+1": "case_1.nii.gz", "cut": str(data / "broken" / "cut.nii")}
    posted = web.post(cases, name="Ward 3, Größe %_")
    web.finish(posted)
    return posted


def say(web: Web, cohort: str, name: str, verdict: str, note: str = "") -> httpx.Response:
    return web.http.put(f"/v1/cohorts/{cohort}/cases/{name}/review", json={"verdict": verdict, "note": note})


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_verdicts_are_kept_with_token_and_time_and_exported(web: Web, cohort: str) -> None:
    home = f"/v1/cohorts/{cohort}"
    plain = web.http.get(f"{home}/table.csv")
    assert "review" not in plain.text.splitlines()[0]
    before = time.time()
    assert say(web, cohort, "a", "reject").status_code == 200
    told = say(web, cohort, "a", "correct", "the tip is cut\nsee slice 4").json()
    assert told["review"]["verdict"] == "correct" and told["review"]["reviewer"] == "default"
    assert before - 1 <= told["review"]["at"] <= time.time() + 1 and (told["reviewed"], told["total"]) == (1, 3)
    say(web, cohort, "=1+1", "accept", "@SUM(A1)")
    exported = rows(web.http.get(f"{home}/reviews.csv").text)
    assert [(row["case"], row["review"]) for row in exported] == [("a", "correct"), ("'=1+1", "accept"), ("cut", "")]
    assert exported[0]["review_note"] == "the tip is cut\nsee slice 4" and exported[1]["review_note"] == "'@SUM(A1)"
    assert exported[0]["reviewed"].endswith("+00:00") and exported[2]["attention"] == "failed"
    table = {row["case"]: row for row in rows(web.http.get(f"{home}/table.csv").text)}
    assert table["a"]["review"] == "correct" and table["a"]["reviewer"] == "default" and table["cut"]["review"] == ""
    parquet = pq.read_table(io.BytesIO(web.http.get(f"{home}/table.parquet").content)).to_pylist()
    assert parquet[0]["review_note"] == "the tip is cut\nsee slice 4"
    assert web.http.get(home).json()["review"] | {"models": []} == {
        "needed": web.http.get(home).json()["review"]["needed"], "reviewed": 2, "models": []
    }  # fmt: skip
    taken = web.http.delete(f"{home}/cases/a/review").json()
    assert taken["review"] is None and taken["reviewed"] == 1


def test_cases_that_need_review_come_first_and_each_knows_its_neighbours(web: Web, cohort: str) -> None:
    listed = web.http.get(f"/v1/cohorts/{cohort}/cases", params={"order": "review"}).json()["cases"]
    needed = [bool(case["attention"]) for case in listed]
    assert needed == sorted(needed, reverse=True) and {case["name"] for case in listed} == {"a", "=1+1", "cut"}
    assert ["failed"] in [case["attention"] for case in listed]
    for case in listed:
        assert ("unfamiliar" in case["attention"]) == bool(case.get("numbers", {}).get("unfamiliar"))
    order = [case["name"] for case in listed]
    for k, name in enumerate(order):
        found = web.http.get(f"/v1/cohorts/{cohort}/cases/{name}/review").json()
        assert found["previous"] == (order[k - 1] if k else None) and found["place"] == k + 1
        assert found["next"] == (order[k + 1] if k + 1 < len(order) else None)
    walked, url = [], f"/v1/cohorts/{cohort}/cases?order=review&limit=1&numbers=false"
    while url:
        page = web.http.get(url).json()
        walked += [case["name"] for case in page["cases"]]
        url = page["next"]
    assert walked == order
    for bad in ("p1", "r", "rx", "r-1", "r99999999999999999999"):
        answer = web.http.get(f"/v1/cohorts/{cohort}/cases", params={"order": "review", "after": bad})
        problem(answer, 422, "invalid-request")


def test_what_cannot_be_said_is_refused(web: Web, cohort: str) -> None:
    home = f"/v1/cohorts/{cohort}/cases"
    problem(web.http.put(f"{home}/a/review", json={"verdict": "perhaps"}), 422, "invalid-request")
    problem(say(web, cohort, "a", "accept", "\0"), 422, "invalid-request")
    problem(say(web, cohort, "a", "accept", "x" * 2001), 422, "invalid-request")
    problem(say(web, cohort, "nobody", "accept"), 404, "not-found")
    other = {"Authorization": "Bearer another-token"}
    problem(web.http.get(f"{home}/a/review", headers=other), 404, "not-found")
    problem(web.http.put(f"{home}/a/review", json={"verdict": "accept"}, headers=other), 404, "not-found")
    problem(web.http.get(f"/v1/cohorts/{cohort}/reviews.csv", headers=other), 404, "not-found")


def test_cohorts_are_found_by_the_name_that_was_given_or_by_their_files(web: Web, data: Path, cohort: str) -> None:
    two = web.post({"left": "case_0.nii.gz", "right": "case_1.nii.gz"})
    with (data / "case_2.nii.gz").open("rb") as file:
        one = web.http.post("/v1/segmentations", files={"image": file}, data={"samples": "2"}).json()["cohort"]

    def found(search: str) -> list[str]:
        listed = web.http.get("/v1/cohorts", params={"search": search, "limit": 500}).json()["cohorts"]
        return [entry["id"] for entry in listed]

    documents = {entry["id"]: entry for entry in web.http.get("/v1/cohorts?limit=500").json()["cohorts"]}
    assert documents[two]["name"] == "left and 1 more" and documents[one]["name"] == "case_2"
    assert found("ward 3") == found("Größe %_") == [cohort] and found(cohort[:12]) == [cohort]
    assert found("ward_3") == [] and found("LEFT AND") == [two]
    web.finish(two)
    assert len(web.http.get(f"/v1/cohorts/{two}").json()["review"]["models"]) == 1
    answer = web.http.get("/v1/cohorts?search=left&limit=1").json()
    assert answer["next"] is None or "search=left" in answer["next"]


def test_verdicts_and_counts_follow_the_store(store: JobStore) -> None:
    id_ = store.add(NewCohort(owner="me", plan=SamplePlan.fixed(2), name="n"), [(n, "/i") for n in names("c", 12)])[0]
    reviews = Reviews(store.database)
    for k in range(12):
        work = store.claim("w", LEASE_S)
        numbers = {"agreement": 0.5 + k / 100, "unfamiliar": int(k == 3)}
        assert store.finish(work, "w", "done", result={"numbers": numbers}, model_digest=f"d{k % 2}")
    cohort = store.cohort(id_, "me")
    assert cohort.name == "n" and reviews.counts(cohort).models == ("d0", "d1")
    assert reviews.attention(cohort).reasons == {
        "c00003": ("unfamiliar",), "c00000": ("low-agreement",), "c00001": ("low-agreement",)
    }  # fmt: skip
    for reviewer, verdict in (("me", "accept"), ("you", "reject"), ("me", "correct")):
        assert reviews.put(cohort, "c00003", reviewer, verdict, "").verdict == verdict
    assert reviews.put(cohort, "nobody", "me", "accept", "") is None
    assert reviews.reviewed([cohort]) == {cohort.number: 1}
    assert reviews.of_cohort(cohort)["c00003"].reviewer == "me"
    reviews.remove(cohort, "c00003", "me")
    assert reviews.of_cohort(cohort)["c00003"].reviewer == "you"
    assert store.forget(id_) and reviews.reviewed([cohort]) == {}
