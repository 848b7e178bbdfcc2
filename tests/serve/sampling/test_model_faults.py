"""What running cohorts and new ones get when models change under the service: a promotion, a damaged version."""

from __future__ import annotations

import time
from collections import Counter

from faulting import CASES, Digests, Start, digests, ends, wait_for
from service import problem
from web import Web

from ldseg.bundle import Bundle
from ldseg.orchestration.tracking import mlflow_client

MAPS = ("label", "prob-organ", "prob-nodule", "entropy", "variance")


def test_a_promotion_in_mid_cohort_reaches_new_cases_and_fails_none(
    start: Start, images: dict[str, str], registry: tuple[mlflow_client.Tracker, list[Bundle]]
) -> None:
    tracker, bundles = registry
    home = str(tracker.home)
    web = start("web", model="models:/m@champion", home=home)
    pinned = [web.post(images, samples=4, models=[f"models:/m/{version}"]) for version in (1, 2)]
    assert [web.finish(one)["counts"]["done"] for one in pinned] == [CASES, CASES]
    undisturbed = {bundles[k].digest: maps(digests(web, one, images)) for k, one in enumerate(pinned)}
    posted = {f"n{k}": images[f"c{k % CASES}"] for k in range(60)}
    cohort = web.post(posted, samples=4)
    wait_for(web, cohort, 2)
    tracker.client.set_registered_model_alias("m", "champion", "2")
    assert web.finish(cohort)["counts"]["done"] == 60
    assert ends(web, cohort) == Counter({(name, "done"): 1 for name in posted})
    cases = web.http.get(f"/v1/cohorts/{cohort}/cases?limit=500").json()["cases"]
    used = {case["name"]: case["model_digest"] for case in cases}
    assert set(used.values()) == {bundles[0].digest, bundles[1].digest}
    assert all(case["numbers"]["model_digest"] == case["model_digest"] for case in cases)
    for name, found in maps(digests(web, cohort, posted)).items():
        assert found == undisturbed[used[name]][f"c{int(name[1:]) % CASES}"]
    check_names(web, images, bundles)


def maps(found: Digests) -> Digests:
    """Of the files that don't name their case."""
    return {name: {key: files[key] for key in MAPS} for name, files in found.items()}


def check_names(web: Web, images: dict[str, str], bundles: list[Bundle]) -> None:
    """A version, a digest and a list are the models that they name."""
    pinned = web.post({"a": images["c0"]}, models=["models:/m/1"])
    by_digest = web.post({"a": images["c0"]}, models=[bundles[1].digest])
    several = web.post({"a": images["c0"]}, models=["models:/m/1", "models:/m/2"])
    for posted, digest in ((pinned, bundles[0].digest), (by_digest, bundles[1].digest)):
        web.finish(posted)
        assert web.http.get(f"/v1/cohorts/{posted}/cases/a").json()["model_digest"] == digest
    web.finish(several)
    ensemble = web.http.get(f"/v1/cohorts/{several}/cases/a").json()
    assert ensemble["model_digest"] == f"{bundles[0].digest} {bundles[1].digest}"
    assert {"total", "epistemic", "aleatoric"} <= set(ensemble["files"])
    for unknown in ("models:/other@champion", "models:/m/99", "/etc/passwd", "sha256:" + "0" * 64):
        body = {"cases": [{"name": "a", "image": images["c0"]}], "models": [unknown]}
        problem(web.http.post("/v1/cohorts", json=body), 422, "model-not-usable")


def test_a_damaged_version_under_the_alias_is_refused_and_the_one_before_serves_on(
    start: Start, images: dict[str, str], registry: tuple[mlflow_client.Tracker, list[Bundle]]
) -> None:
    tracker, bundles = registry
    tracker.client.set_registered_model_alias("m", "champion", "2")
    web = start("web", model="models:/m@champion", home=str(tracker.home))
    version = tracker.client.get_model_version("m", "3")
    stored = [p for p in tracker.home.rglob("weights.safetensors") if p.parent.parent != tracker.home]
    source = bundles[2].path / "weights.safetensors"
    (damaged,) = [p for p in stored if p.read_bytes() == source.read_bytes()]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    tracker.client.set_registered_model_alias("m", "champion", str(version.version))
    time.sleep(2.5)  # the answer to an alias is kept for two seconds
    cohort = web.post({"a": images["c0"]})
    assert web.finish(cohort)["counts"]["done"] == 1
    assert web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["model_digest"] == bundles[1].digest
    assert "the model that it meant before goes on" in web.log.read_text()
    body = {"cases": [{"name": "a", "image": images["c0"]}], "models": ["models:/m/3"]}
    assert "can't be used" in problem(web.http.post("/v1/cohorts", json=body), 422, "model-not-usable")["detail"]
