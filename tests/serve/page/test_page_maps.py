"""What the page shows of a case beside its mean: kept samples one by one, and the doubt of an ensemble in its parts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visit, settled, wait_until
from PIL import Image
from service import TOKEN
from web import Web

from ldseg.bundle import Bundle
from ldseg.orchestration.tracking import mlflow_client
from serve.api import pages
from serve.tokens import hash_token

KEPT = 4
needs_build = pytest.mark.skipif(not pages.is_built(), reason="the viewer is not built: make page (it needs Node.js)")


@pytest.fixture(scope="module")
def cohort(web: Web) -> str:
    """A case with six samples, of which four are kept."""
    posted = web.post({"case_0": "case_0.nii.gz"}, samples=6, seed=8)
    web.finish(posted)
    return posted


@pytest.fixture
def visit(browser: Any, web: Web) -> Iterator[Visit]:
    opened = Visit(browser, web)
    try:
        yield opened
    finally:
        opened.end()


def drawn(page: Any) -> np.ndarray:
    """The volume as it is seen."""
    return pixels(settled(page.locator(".gl-frame")))


def all_differ(pictures: list[np.ndarray]) -> bool:
    """By more than a few pixels; a longer caption below may have taken a line of the place."""
    rows = min(len(one) for one in pictures)
    pairs = ((one[:rows], other[:rows]) for k, one in enumerate(pictures) for other in pictures[:k])
    return all((one != other).any(axis=2).mean() > 0.001 for one, other in pairs)


FOCUSED = "document.activeElement.type === 'range' && document.activeElement.labels[0].innerText"


def tab_to(page: Any, name: str) -> None:
    """Press Tab until a slider has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if str(page.evaluate(FOCUSED)).startswith(name):
            return
    raise AssertionError(f"Tab never reached {name}")


@needs_build
def test_samples_are_flipped_through_by_keys_in_the_volume(visit: Visit, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
    page.locator(".caption", has_text="segmentation").wait_for()
    page.locator(".panel:not([inert])").wait_for()
    tab_to(page, "Sample")
    said, pictures = "document.activeElement.getAttribute('aria-valuetext')", [drawn(page)]
    assert page.evaluate(said) == "their mean"
    for k in range(1, KEPT + 1):
        page.keyboard.press("ArrowRight")
        page.locator(".caption", has_text=f"sample {k}").wait_for()
        assert page.evaluate(said) == f"{k} of {KEPT}"
        pictures.append(drawn(page))
    assert all_differ(pictures)
    page.keyboard.press("ArrowLeft")
    page.locator(".caption", has_text=f"sample {KEPT - 1}").wait_for()
    assert (drawn(page) == pictures[-2]).all()
    page.keyboard.press("Home")
    page.locator(".caption", has_text="segmentation").wait_for()
    assert (drawn(page) == pictures[0]).all()


def test_samples_are_flipped_through_by_keys_in_the_servers_slices(visit: Visit, web: Web, cohort: str) -> None:
    page = visit.open(f"#/cohorts/{cohort}/cases/case_0")
    page.locator(".panel:not([inert])").wait_for()
    if pages.is_built():
        page.get_by_role("button", name="Show the server's slices").click()
    page.locator(".caption", has_text="axial slice").wait_for()
    page.get_by_role("combobox", name="Over it").select_option("sample")
    frame = page.locator(".frame")
    wait_until(page, "document.querySelector('.frame').ariaLabel.includes('sample 1 over it')")
    tab_to(page, "Sample")
    seen = [shown(page)]
    for k in range(2, KEPT + 1):
        page.keyboard.press("ArrowRight")
        wait_until(page, f"document.querySelector('.frame').ariaLabel.includes('sample {k} over it')")
        seen.append(shown(page))
    assert all_differ(seen)
    index = int(frame.get_attribute("aria-label").split("slice ")[1].split()[0]) - 1
    for k, picture in enumerate(seen):
        asked = {"axis": 2, "index": index, "overlay": f"sample-{k}", "size": page.evaluate(SIZE), "contours": True}
        answer = web.http.get(f"/v1/cohorts/{cohort}/cases/case_0/slice.png", params=asked)
        np.testing.assert_array_equal(picture, pixels(answer.content))


SIZE = """(() => {
  const frame = document.querySelector('.frame'), seen = Math.max(frame.clientWidth, frame.clientHeight);
  return [640, 960, 1440].find((side) => side >= seen * devicePixelRatio) ?? 2048;
})()"""


def shown(page: Any) -> np.ndarray:
    """The pixels of the picture."""
    address = page.evaluate(
        """async () => {
          const image = document.querySelector('img.plane'), canvas = document.createElement('canvas');
          await image.decode();
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext('2d').drawImage(image, 0, 0);
          return canvas.toDataURL('image/png');
        }"""
    )
    return pixels(base64.b64decode(address.partition(",")[2]))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def several(
    registry: tuple[mlflow_client.Tracker, list[Bundle]], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Web]:
    """A service whose models are in a registry."""
    own = {"model": "models:/m/1", "home": str(registry[0].home), "allow_roots": [str(data)]}
    own |= {"tokens": {"default": {"sha256": hash_token(TOKEN)}}}
    web = Web(registry[1][0].path, tmp_path_factory.mktemp("several"), token=TOKEN, **own)
    try:
        yield web.wait_ready()
    finally:
        web.stop()


@needs_build
def test_an_ensembles_doubt_is_shown_in_its_parts(browser: Any, several: Web) -> None:
    cohort = several.post({"a": "case_0.nii.gz"}, samples=4, models=["models:/m/1", "models:/m/2"])
    assert several.finish(cohort)["counts"]["done"] == 1
    numbers = several.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["numbers"]
    visit = Visit(browser, several)
    page = visit.open(f"#/cohorts/{cohort}/cases/a")
    page.locator(".caption", has_text="segmentation").wait_for()
    page.locator(".panel:not([inert])").wait_for()
    choice = page.get_by_label("Map").first
    assert choice.input_value() == "total"
    choice.select_option("none")
    wait_until(page, "!document.querySelector('.caption').textContent.includes('doubt')")
    pictures = [drawn(page)]
    options = dict(page.evaluate("[...document.querySelectorAll('option')].map((one) => [one.value, one.text])"))
    for part in ("total", "aleatoric", "epistemic"):
        choice.select_option(part)
        page.locator(".caption", has_text=options[part]).wait_for()
        pictures.append(drawn(page))
    assert all_differ(pictures)
    facts = page.locator(".facts-side").inner_text()
    for part in ("total", "aleatoric", "epistemic"):
        assert f"{numbers[f'mean_{part}']:.3f}" in facts
    assert f"{numbers['soft_dice_confidence']:.3f}" in facts
    for digest in numbers["model_digest"].split():
        assert digest.removeprefix("sha256:")[:12] in facts
    visit.end()
