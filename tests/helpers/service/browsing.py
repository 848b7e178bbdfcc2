"""A real browser for tests of the page, which notes every request and every complaint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from service import TOKEN, Service
from web import Web

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # by software, as a headless machine has no GPU
NO_WEBGL = ("--disable-3d-apis",)
WAIT_MS = 120_000
KEEP_TOKEN = f"sessionStorage.setItem('ldseg-token', '{TOKEN}')"


@contextmanager
def started(*arguments: str) -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright, launched(playwright.chromium, *arguments) as browser:
        yield browser


@contextmanager
def launched(kind: Any, *arguments: str) -> Iterator[Any]:
    """One more browser of a kind, as `browser.browser_type` gives it: there can be one Playwright only."""
    browser = kind.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
    try:
        yield browser
    finally:
        browser.close()


def wait_until(page: Any, expression: str, seconds: float = WAIT_MS / 1000) -> None:
    """Wait until an expression is true; Playwright's own waiting needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"it never was so: {expression}"
        page.wait_for_timeout(50)


def settled(shown: Any) -> bytes:
    """A picture of an element of the page, once two frames in a row are the same."""
    shown.page.wait_for_timeout(300)
    seen = b""
    while (again := shown.screenshot()) != seen:
        seen = again
        shown.page.wait_for_timeout(100)
    return seen


class Visit:
    """A page in a context of its own.

    Attributes:
        complaints: errors of the console and of scripts.
        elsewhere: requests to other hosts; they are not let out.
    """

    def __init__(self, browser: Any, service: Service | Web, *, token: bool = True, **context: Any) -> None:
        self.url, self.complaints, self.elsewhere = service.url, list[str](), list[str]()
        self.context = browser.new_context(accept_downloads=True, **context)
        if token:
            self.context.add_init_script(KEEP_TOKEN)
        self.context.route("**/*", self._guard)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _guard(self, route: Any) -> None:
        if route.request.url.startswith((f"{self.url}/", "data:", f"blob:{self.url}/")):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "GPU stall" not in text and "GL Driver Message" not in text:
            self.complaints.append(f"{kind}: {text}")

    def open(self, place: str = "#/") -> Any:
        """Go to a place of the page."""
        self.page.goto(f"{self.url}/{place}")
        return self.page

    def downloaded(self, button: Any) -> Path:
        """Press a button and wait for the file that it brings."""
        with self.page.expect_download() as found:
            button.click()
        return Path(found.value.path())

    def end(self) -> None:
        """Close it; it must have been content and at home."""
        self.context.close()
        assert not self.elsewhere, self.elsewhere
        assert not self.complaints, self.complaints
