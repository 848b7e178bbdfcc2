"""The link that the service prints at its start, in a real browser."""

from __future__ import annotations

from typing import Any

from browsing import Visit, wait_until
from service import TOKEN, Service

KEPT = "[localStorage.length, document.cookie, sessionStorage.getItem('ldseg-token'), location.href]"


def test_the_printed_link_signs_in_and_leaves_the_address_bar(browser: Any, service: Service) -> None:
    opened = Visit(browser, service, token=False)
    page = opened.open(f"#token={TOKEN}")
    page.get_by_role("heading", name="Cohorts").wait_for()
    wait_until(page, "document.getElementById('model').textContent !== ''")  # so it was let in
    assert page.evaluate(KEPT) == [0, "", TOKEN, f"{service.url}/#/"]
    page.evaluate("sessionStorage.clear()")
    page.evaluate(f"location.hash = '#token={TOKEN}'")  # in a page that is open already
    wait_until(page, f"location.hash === '#/' && sessionStorage.getItem('ldseg-token') === '{TOKEN}'")
    opened.end()
