"""One browser for a file's tests: while Playwright is there, no test of the same thread can run an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import WEBGL, started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started(*WEBGL) as found:
        yield found
