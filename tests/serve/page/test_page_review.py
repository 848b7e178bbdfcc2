"""A reviewer's work in a real browser: what needs review, keys, verdicts, several uploads, the way back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visit, settled, wait_until
from PIL import Image
from web import Web

from serve.api import pages

needs_build = pytest.mark.skipif(not pages.is_built(), reason="the viewer is not built: make page (it needs Node.js)")
WIDTHS = (1400, 360)


@pytest.fixture(scope="module")
def cohort(web: Web, data: Path) -> str:
    cases = {f"case_{k}": f"case_{k}.nii.gz" for k in range(3)} | {"cut": str(data / "broken" / "cut.nii")}
    posted = web.post(cases, samples=3, seed=4, name="Review of November")
    web.finish(posted)
    return posted


@pytest.fixture(params=WIDTHS)
def visit(browser: Any, web: Web, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, web, viewport={"width": request.param, "height": 800})
    try:
        yield opened
    finally:
        opened.end()


def shown(page: Any) -> str:
    return str(page.get_by_role("heading", level=1).inner_text())


def test_what_needs_review_comes_first_with_its_reason(visit: Visit, web: Web, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}")
    page.locator("table.cases tbody tr").nth(3).wait_for()
    listed = web.http.get(f"/v1/cohorts/{cohort}/cases?order=review").json()["cases"]
    rows = page.locator("table.cases tbody tr")
    for k, case in enumerate(listed):
        text = rows.nth(k).inner_text()
        assert case["name"] in text
        strange = bool(case.get("numbers", {}).get("unfamiliar"))
        assert ("unfamiliar" in text) == strange == ("not promised" in text) == ("review" in text.split("Needs")[0])
    needed = sum(bool(case["attention"]) for case in listed)
    reviewed = sum(bool(case["review"]) for case in listed)
    assert f"{reviewed} of 4 reviewed; {needed} need" in page.locator(".reviewed").inner_text()


def test_cohorts_are_found_by_their_name(visit: Visit, web: Web, cohort: str) -> None:
    other = web.post({"left": "case_0.nii.gz"})
    page = visit.open()
    page.get_by_role("link", name=other).wait_for()
    page.get_by_label("Search").fill("of novem")
    wait_until(page, f"!document.querySelector('main').textContent.includes('{other}')")
    row = page.locator("table.cohorts tbody tr")
    row.get_by_role("link", name="Review of November").wait_for()
    assert "review" in row.inner_text() and "1 failed" in row.inner_text()
    page.get_by_label("Search").fill("nothing of that kind")
    page.get_by_text("No cohort is called so.").wait_for()


def test_a_cohort_is_reviewed_by_keys_wherever_one_comes_from(visit: Visit, web: Web, cohort: str) -> None:
    order = [case["name"] for case in web.http.get(f"/v1/cohorts/{cohort}/cases?order=review").json()["cases"]]
    page = visit.open(f"#/cohorts/{cohort}/cases/{order[0]}")  # by its address, not by way of the table
    page.locator(".reviewing").wait_for()
    page.locator(".walk", has_text="1 of 4").wait_for()
    for name in order[1:]:
        page.keyboard.press("j")
        page.get_by_role("heading", level=1, name=name, exact=True).wait_for()
        page.locator(".walk", has_text=f"{order.index(name) + 1} of 4").wait_for()
    page.keyboard.press("j")  # there is none after the last
    page.keyboard.press("k")
    page.get_by_role("heading", level=1, name=order[-2], exact=True).wait_for()
    page.locator(".walk", has_text="3 of 4").wait_for()
    page.keyboard.press("n")
    page.keyboard.type("jar? keys are letters here")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.locator(".said-line", has_text="rejected by default").wait_for()
    assert page.get_by_role("button", name="Reject").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Correct").click()
    page.locator(".said-line", has_text="to be corrected").wait_for()
    assert "1 of 4 reviewed" in page.locator(".reviewing").inner_text()
    exported = list(csv.DictReader(io.StringIO(web.http.get(f"/v1/cohorts/{cohort}/reviews.csv").text)))
    said = {row["case"]: (row["review"], row["review_note"]) for row in exported if row["review"]}
    assert said == {order[-2]: ("correct", "jar? keys are letters here")}
    for key, line in (("a", "accepted by default"), ("c", "to be corrected by default")):
        page.keyboard.press(key)
        page.locator(".said-line", has_text=line).wait_for()
        name = {"a": "Accept", "c": "Correct"}[key]
        assert page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("next case").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Take back").click()
    page.locator(".said-line", has_text="not reviewed yet").wait_for()


@needs_build
def test_space_and_numbers_change_the_volume(visit: Visit, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
    page.locator(".caption", has_text="segmentation").wait_for()
    page.locator(".panel:not([inert])").wait_for()

    def picture() -> np.ndarray:
        content = settled(page.locator(".gl-frame"))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def coloured(pixels: np.ndarray) -> float:
        return float((np.ptp(pixels, axis=2) > 60).mean())

    both = picture()
    page.keyboard.press(" ")
    bare = picture()
    assert coloured(both) > 1.5 * coloured(bare) + 0.01  # only the crosshair is left
    page.keyboard.press(" ")
    assert (picture() == both).all()
    view = page.get_by_role("combobox", name="View")
    for key, name in (("1", "axial"), ("2", "coronal"), ("3", "sagittal"), ("4", "all planes")):
        page.keyboard.press(key)
        assert view.evaluate("one => one.selectedOptions[0].text") == name
    assert (picture() == both).all()


def test_every_number_is_explained_and_the_bar_is_labelled(visit: Visit, web: Web, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
    page.locator(".facts-side dl").wait_for()
    assert page.evaluate("[...document.querySelectorAll('.facts-side dt')].every((one) => one.querySelector('small'))")
    facts = page.locator(".facts-side").inner_text()
    assert "{" not in facts and "undefined" not in facts
    numbers = web.http.get(f"/v1/cohorts/{cohort}/cases/case_0").json()["numbers"]
    kind = "not promised" if numbers["unfamiliar"] else "calibrated"
    block = page.locator(".size-block").first
    assert block.locator(".bar-legend li").first.inner_text() == kind
    assert "samples, 5th to 95th percentile" in block.inner_text() and "best guess" in block.inner_text()
    low, high = numbers["organ_volume_ml_low"], numbers["organ_volume_ml_high"]
    assert block.locator(".big").inner_text() == f"{said(low)} to {said(high)} ml"
    page.locator(".ticks").get_by_text("even doubt").wait_for()


def said(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def test_several_files_become_a_cohort_and_one_that_is_broken_is_told(visit: Visit, web: Web, data: Path) -> None:
    page = visit.open("#/upload")
    files = [data / "case_0.nii.gz", data / "broken" / "cut.nii", data / "case_1.nii.gz"]
    page.get_by_label("Volumes").set_input_files(files)
    page.get_by_label("Name").fill("dropped together")
    page.get_by_label("Samples").fill("2")
    page.get_by_role("button", name="Upload and segment").click()
    page.locator(".going li.failed", has_text="cut.nii").wait_for()
    assert page.locator(".going progress").count() == 3
    visit.complaints.clear()  # the browser notes the refusal
    page.get_by_role("button", name="Segment the other 2").click()
    page.get_by_role("heading", level=1, name="dropped together").wait_for()
    cohort = page.url.split("/cohorts/")[1]
    web.finish(cohort)
    cases = web.http.get(f"/v1/cohorts/{cohort}/cases").json()["cases"]
    assert [case["name"] for case in cases] == ["case_0", "case_1"]


def test_what_is_not_there_leads_back(visit: Visit, cohort: str) -> None:
    for place, way in (
        ("#/cohorts/abc", "To all cohorts"),
        (f"#/cohorts/{cohort}/cases/nobody", "To its cohort"),
        ("#/nowhere", "To all cohorts"),
    ):
        page = visit.open(place)
        page.get_by_role("heading", name="There is no such").wait_for()
        assert "GET " not in page.locator("body").inner_text() and "/v1" not in page.locator("body").inner_text()
        page.get_by_role("link", name=way).click()
        page.get_by_role(
            "heading", level=1, name="Review of November" if way == "To its cohort" else "Cohorts"
        ).wait_for()
    assert all("404" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
