"""The page by keyboard, by names and roles, and its colours, in a real browser against a real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit, wait_until
from service import Service

NAMELESS = """() => [...document.querySelectorAll('a, button, input, select, progress, [role], [tabindex="0"]')]
  .filter((e) => e.checkVisibility() && e.getAttribute('role') !== 'status' && e.getAttribute('role') !== 'alert')
  .filter((e) => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim()))
  .map((e) => e.outerHTML)"""

# WCAG 2: relative luminance of the text's colour against the first opaque ground below it
FAINT_TEXT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest('.unseen, .skip, noscript, option')) continue;
    if (element.closest('button:disabled')) continue;
    const [one, other] = [light(channels(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${element.className} ${texts.currentNode.data.trim()}`);
  }
  return found;
}"""

# whatever sticks out of the screen and can't be scrolled to
CLIPPED = """(width) => [...document.querySelectorAll('main *, header *')]
  .filter((e) => e.checkVisibility() && !e.closest('.unseen, .skip, .gl-frame, option'))
  .filter((e) => width <= 640 || !e.closest('.scroll'))
  .map((e) => [e.getBoundingClientRect(), e.outerHTML.slice(0, 200)])
  .filter(([box]) => box.width > 1 && (box.right > width + 1 || box.left < -1)).map(([, html]) => html)"""

# numbers whose digits stand on several lines
BROKEN = """() => {
  const texts = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];
  const range = document.createRange();
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (!node.parentElement.checkVisibility() || node.parentElement.closest('.unseen, option, h1, a, code')) continue;
    for (const { 0: digits, index } of node.data.matchAll(/[0-9][0-9.,]*[0-9]/g)) {
      range.setStart(node, index);
      range.setEnd(node, index + digits.length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(digits);
    }
  }
  return found;
}"""

FOCUS = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return {text: (e.ariaLabel || e.textContent || '').trim(), tag: e.tagName, href: e.getAttribute('href') ?? '',
    type: e.type ?? '', seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1};
}"""


@pytest.fixture(scope="module")
def cohort(service: Service, data: Path) -> str:
    posted = service.post({"case_0": data / "case_0.nii.gz", "gone": data / "gone.nii.gz"}, seed=3)
    service.wait(posted)
    return posted


@pytest.fixture(params=["light", "dark"])
def visit(browser: Any, service: Service, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, service, color_scheme=request.param, viewport={"width": 1280, "height": 860})
    try:
        yield opened
    finally:
        opened.end()


def tab_to(page: Any, wanted: str, field: str = "text") -> dict[str, Any]:
    """Press Tab until something is reached; whatever has the focus on the way must show it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        if found["tag"] != "BODY":
            assert found["seen"], found
        if wanted in found[field]:
            return dict(found)
    raise AssertionError(f"Tab never reached {wanted!r}")


def test_the_way_from_the_list_to_a_case_needs_no_mouse(visit: Visit, cohort: str) -> None:
    page = visit.open()
    page.get_by_role("link", name=cohort).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS)["text"] == "Skip to the content"
    tab_to(page, cohort)
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name=cohort).wait_for()
    wait_until(page, "document.activeElement.tagName === 'H1'")
    tab_to(page, "Agreement")
    tab_to(page, "case_0")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="case_0").wait_for()
    wait_until(page, "document.activeElement.tagName === 'H1'")
    page.locator(".panel:not([inert]) input[type=range]").first.wait_for()
    tab_to(page, "range", "type")
    for key, value in (("Home", "0"), ("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.value") == value
    assert page.title() == "case_0 – LDSeg"


PLACES = ("#/", "#/upload", "#/cohorts/{}", "#/cohorts/{}/cases/case_0", "#/cohorts/{}/cases/gone")


@pytest.mark.parametrize("place", PLACES)
def test_everything_has_a_name_and_is_readable(visit: Visit, cohort: str, place: str) -> None:
    page = visit.open(place.format(cohort))
    page.wait_for_selector("main h1")
    page.wait_for_timeout(1500)
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT_TEXT) == []
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("visit", ["light"], indirect=True)  # colours take no room
@pytest.mark.parametrize("width", [360, 800, 1280, 1400])
def test_nothing_sticks_out_of_the_page(visit: Visit, cohort: str, width: int) -> None:
    for place in ("#/", f"#/cohorts/{cohort}", f"#/cohorts/{cohort}/cases/case_0", "#/upload"):
        page = visit.open(place)
        page.set_viewport_size({"width": width, "height": 860})
        page.wait_for_selector("main h1")
        page.wait_for_timeout(700)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CLIPPED, width) == []
        assert page.evaluate(BROKEN) == []


def test_who_wants_no_motion_gets_none(browser: Any, service: Service, cohort: str) -> None:
    visit = Visit(browser, service, reduced_motion="reduce")
    page = visit.open(f"#/cohorts/{cohort}")
    page.wait_for_selector(".progress span")
    assert page.evaluate("getComputedStyle(document.querySelector('.progress span')).transitionDuration") == "0s"
    visit.end()
