"""The page at / in a real browser against a real service."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from browsing import NO_WEBGL, Visit, launched, settled, wait_until
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from service import JOB_S, TOKEN, Service

from serve.api import pages

HOSTILE = "<img src=x onerror=window.hacked=1>"
needs_build = pytest.mark.skipif(not pages.is_built(), reason="the viewer is not built: make page (it needs Node.js)")


@pytest.fixture
def visit(browser: Any, service: Service) -> Iterator[Visit]:
    opened = Visit(browser, service)
    try:
        yield opened
    finally:
        opened.end()


@pytest.fixture(scope="module")
def cohort(service: Service, data: Path) -> str:
    """Cases that are done, one with a hostile name, and one that failed."""
    cases = {f"case_{k}": data / f"case_{k}.nii.gz" for k in range(3)}
    posted = service.post(cases | {HOSTILE: data / "case_1.nii.gz", "cut": data / "broken" / "cut.nii"}, seed=2)
    service.wait(posted)
    return posted


def names(page: Any) -> list[str]:
    return [name.strip() for name in page.locator("table.cases tbody th").all_inner_texts()]


def test_the_page_allows_only_its_own_files(service: Service) -> None:
    answer = httpx.get(service.url, trust_env=False)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["style-src"] == "'self'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "<style" not in answer.text and " on" + "click" not in answer.text
    assert answer.text.count("<script") == answer.text.count('<script type="module" src="/page/') == 1
    for path in ("/page/package.json", "/page/../pages.py", "/page/build.mjs", "/page/dist/../index.html"):
        assert httpx.get(service.url + path, trust_env=False).status_code == 404
    script = httpx.get(f"{service.url}/page/main.js", trust_env=False)
    again = {"If-None-Match": script.headers["ETag"]}
    assert script.headers["content-type"].startswith("text/javascript")
    assert httpx.get(f"{service.url}/page/main.js", headers=again, trust_env=False).status_code == 304


def test_it_works_without_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in pages.FOLDER.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    app = FastAPI()
    pages.install(app, None)
    client = TestClient(app)
    assert client.get("/page/features.json").json() == {"viewer": False}
    assert client.get("/").status_code == client.get("/page/main.js").status_code == 200


def test_it_asks_for_the_token_and_forgets_it_with_the_session(browser: Any, service: Service, cohort: str) -> None:
    opened = Visit(browser, service, token=False)
    page = opened.open()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert page.get_by_role("link", name="Upload").count() == 0  # nothing else is there to be done
    page.get_by_label("Access token").fill("not-the-token")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="not known here").wait_for()
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=cohort).wait_for()
    assert page.get_by_role("alert").count() == 0
    kept = page.evaluate("[localStorage.length, document.cookie, sessionStorage.getItem('ldseg-token'), location.href]")
    assert kept == [0, "", TOKEN, f"{service.url}/#/"]
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert page.evaluate("sessionStorage.getItem('ldseg-token')") is None
    assert all("401" in complaint for complaint in opened.complaints)
    opened.complaints.clear()
    opened.end()


def test_a_cohort_appears_and_its_progress_moves(visit: Visit, service: Service, data: Path) -> None:
    page = visit.open()
    page.get_by_role("heading", name="Cohorts").wait_for()
    posted = service.post({f"c{k}": data / f"case_{k % 3}.nii.gz" for k in range(16)}, samples=64, steps=100)
    page.get_by_role("link", name=posted).click()  # it comes by itself
    page.get_by_role("heading", name=posted).wait_for()  # until then the list's bars are shown
    bar = page.get_by_role("progressbar")
    bar.wait_for()
    page.evaluate(
        """() => {
          const bar = document.querySelector('[role=progressbar]'), note = () => window.seen.add(bar.ariaValueNow);
          window.seen = new Set(); note();
          new MutationObserver(note).observe(bar, {attributes: true});
        }"""
    )
    wait_until(page, "document.querySelector('[role=progressbar]').ariaValueNow === '16'", JOB_S)
    assert len(page.evaluate("[...window.seen]")) > 1
    wait_until(page, "document.querySelectorAll('table.cases :is(.chip.done, .chip.review)').length === 16")
    assert "16 of 16 done" in page.get_by_role("status").inner_text()


def test_the_least_certain_case_comes_first(visit: Visit, service: Service, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}")
    page.locator("table.cases tbody tr").nth(4).wait_for()
    three = [f"case_{k}" for k in range(3)]
    answers = {name: service.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json() for name in three}
    agreement = {name: case["numbers"]["agreement"] for name, case in answers.items()}
    assert page.locator("th[data-column=review]").get_attribute("aria-sort") == "ascending"
    listed = service.http.get(f"/v1/cohorts/{cohort}/cases?order=review").json()["cases"]
    assert names(page) == [case["name"] for case in listed]
    heading = page.locator("th[data-column=agreement]")
    heading.get_by_role("button").click()
    wait_until(page, "document.querySelector('th[data-column=agreement]').ariaSort === 'ascending'")
    shown = [name for name in names(page) if name in agreement]
    assert shown == sorted(agreement, key=agreement.__getitem__)
    assert names(page)[-1] == "cut"  # without numbers
    heading.get_by_role("button").click()
    wait_until(page, "document.querySelector('th[data-column=agreement]').ariaSort === 'descending'")
    assert [name for name in names(page) if name in agreement] == shown[::-1]
    page.locator("th[data-column=name]").get_by_role("button").click()
    wait_until(page, "document.querySelector('th[data-column=name]').ariaSort === 'ascending'")
    assert names(page)[-3:] == ["case_1", "case_2", "cut"]
    row = page.locator("tr", has_text="case_0")
    median = answers["case_0"]["numbers"]["organ_volume_ml_p50"]
    assert f"{median:.3f}" in row.inner_text() or f"{median:.2f}" in row.inner_text()


def test_states_can_be_told_apart_and_errors_are_sentences(visit: Visit, service: Service, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}")
    page.locator("table.cases tbody tr").nth(4).wait_for()
    page.get_by_label("Show").select_option("failed")
    wait_until(page, "document.querySelectorAll('table.cases tbody tr').length === 1")
    error = service.http.get(f"/v1/cohorts/{cohort}/cases/cut").json()["error"]
    assert page.locator("table.cases td.error").inner_text() == error


def test_a_hostile_name_is_only_text(visit: Visit, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}")
    page.get_by_role("link", name=HOSTILE).click()
    page.get_by_role("heading", name=HOSTILE, level=1).wait_for()
    page.locator(".panel").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img[src=x]").count() == 0


def test_ten_thousand_cases_are_shown_by_pages(visit: Visit, service: Service, data: Path) -> None:
    posted = service.post({f"case_{k:05d}": data / "gone.nii.gz" for k in range(10_000)})
    service.http.delete(f"/v1/cohorts/{posted}")
    page = visit.open(f"#/cohorts/{posted}")
    page.get_by_text("of 10,000", exact=False).first.wait_for()
    page.locator("table.cases tbody tr").nth(49).wait_for()
    first = names(page)
    page.get_by_role("button", name="Next page").click()
    wait_until(page, f"!document.querySelector('table.cases').textContent.includes('{first[0]}')")
    assert len(first) == len(names(page)) == 50 and not set(first) & set(names(page))


@needs_build
def test_a_volume_is_drawn_with_its_maps(visit: Visit, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
    page.locator(".caption", has_text="entropy").wait_for()  # it opens with doubt and contours together
    page.locator(".caption", has_text="segmentation").wait_for()
    page.locator(".panel:not([inert])").wait_for()
    drawn = [colours(page)]
    page.get_by_label("Contours of the segmentation").uncheck()
    drawn.append(colours(page))
    page.get_by_label("Map").first.select_option("prob-organ")
    page.locator(".caption", has_text="probability of organ").wait_for()
    drawn.append(colours(page))
    page.locator("label.slider", has_text="axial").locator("input").press("ArrowRight")
    drawn.append(colours(page))
    assert all(len(np.unique(one.reshape(-1, 3), axis=0)) > 100 for one in drawn)
    for one, other in zip(drawn, drawn[1:], strict=False):
        assert (one != other).any(axis=2).mean() > 0.005


def colours(page: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(settled(page.locator(".gl-frame")))).convert("RGB"))


def test_without_webgl_the_server_draws_slices(browser: Any, service: Service, cohort: str) -> None:
    with launched(browser.browser_type, *NO_WEBGL) as other:
        visit = Visit(other, service)
        page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
        caption = page.locator(".caption", has_text="axial slice")
        caption.wait_for()
        assert "patient's right is on the left" in caption.inner_text()
        first, said = page.locator("img.plane").get_attribute("src"), caption.inner_text()
        assert first.startswith("blob:") and page.locator("img.plane").evaluate("image => image.naturalWidth") > 300
        page.locator(".frame").focus()
        page.keyboard.press("ArrowUp")
        wait_until(page, f"document.querySelector('.caption').textContent !== {json.dumps(said)}")
        assert page.locator("img.plane").get_attribute("src") != first
        page.get_by_label("Plane").select_option(label="coronal")
        page.locator(".caption", has_text="coronal slice").wait_for()
        assert page.get_by_label("Contours of the segmentation").is_checked()
        page.get_by_role("combobox", name="Over it").select_option("prob-organ")
        page.get_by_label("Opacity").press("Home")
        visit.end()


def test_an_upload_ends_with_files(visit: Visit, service: Service, data: Path) -> None:
    page = visit.open("#/upload")
    page.get_by_label("Volumes").set_input_files(data / "case_2.nii.gz")
    page.get_by_label("Name").fill("from the page")
    page.get_by_label("Samples").fill("6")
    page.get_by_role("button", name="Upload and segment").click()
    page.get_by_role("heading", name="from the page", level=1).wait_for(timeout=240_000)
    page.locator(".head :is(.chip.done, .chip.review)").wait_for(timeout=240_000)
    cohort = page.url.split("/cohorts/")[1].split("/")[0]
    case = service.http.get(f"/v1/cohorts/{cohort}/cases/from%20the%20page").json()
    content = visit.downloaded(page.locator("[data-file=label]")).read_bytes()
    assert hashlib.sha256(content).hexdigest() == case["files"]["label"]["sha256"]
    page.get_by_role("link", name="Its cohort").click()
    table = visit.downloaded(page.locator("[data-download=table]")).read_bytes()
    assert pq.read_table(io.BytesIO(table)).to_pylist()[0]["case"] == "from the page"
