"""What a test of a whole cluster did and saw, with its times: on the screen and in a file, also when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Diary:
    """Lines with the seconds since the beginning."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")

    def say(self, text: str) -> None:
        """Write a line."""
        line = f"{time.monotonic() - self.start:6.1f} s  {text}"
        print(line, flush=True)
        with open(self.path, "a") as file:
            file.write(line + "\n")

    def wait(self, what: str, true: Callable[[], Any], seconds: float, pause: float = 1.0) -> float:
        """Wait for something; returns how long it took, and writes it down."""
        start = time.monotonic()
        while not true():
            if time.monotonic() - start > seconds:
                self.say(f"NOT {what}, after {seconds:.0f} s")
                raise TimeoutError(f"not {what} after {seconds:.0f} s")
            time.sleep(pause)
        took = time.monotonic() - start
        self.say(f"{what} ({took:.1f} s)")
        return took
