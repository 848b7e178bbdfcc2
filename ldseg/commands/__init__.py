"""The programs' bodies, one module each: the top floor, which may import everything, each thing when it is needed.

What stands at the top of a module here is light: who asks for --help, or misspells an option, waits for no PyTorch.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldseg.data.cohort import Cohort

SERVES = {"alembic", "fastapi", "httpx", "prometheus_client", "sqlalchemy", "starlette", "uvicorn", "zipstream"}
DONE, SOME, NONE = 0, 1, 2
OF_CASES = "Exit status: 0 all cases are done, 1 some failed or were left out, 2 nothing was done or it was broken off."
SILENCE_S = 20.0  # so long a program that works says nothing, at most


class Parser(argparse.ArgumentParser):
    """The options of a program, which is known by two names: `ldseg tune` and `python platform/tune.py`.

    Args:
        doc: the module's docstring, whose examples are written for platform/.
        prog: "ldseg tune" where it is called so; None for a file of platform/.
        status: what its exit status means.
    """

    def __init__(self, doc: str | None, prog: str | None = None, *, status: str, **options: Any) -> None:
        format = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=doc, formatter_class=format, epilog=status, **options)
        for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that are no text
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")

    def format_help(self) -> str:
        """What --help prints; in it the other programs are called as this one was."""
        text = super().format_help()
        if not self.prog.startswith("ldseg"):
            return text
        text = text.replace("platform/serve_model.py", "platform/serve.py")
        return re.sub(r"(?:python )?platform/(\w+)\.py", lambda found: f"ldseg {found[1].replace('_', '-')}", text)


@contextmanager
def needs(extra: str, program: str) -> Iterator[None]:
    """Say in a sentence, with exit status 2, what to install where a package is missing.

    Args:
        extra: that the program needs as a whole: "train", "serve", or "" for none.
        program: as the sentence calls it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "ldseg", "serve", "tune_spaces"):
            raise
        extra = extra or ("serve" if missing in SERVES else "train")
        cure = f"pip install 'ldseg[{extra}]'"
        print(f"{program} needs the extra [{extra}] ({missing} is not installed): {cure}", file=sys.stderr)
        raise SystemExit(2) from error


def status(done: int, meant: int) -> int:
    """The exit status of a program that has done some of the cases that were meant."""
    if not done:
        return NONE
    return DONE if done == meant else SOME


def tell(cohort: Cohort) -> None:
    """Say what of a cohort can't be used, and what was not looked at."""
    for problem in cohort.problems:
        print(f"left out: {problem}")
    for note in cohort.notes:
        print(f"note: {note}")
    sys.stdout.flush()


def fail(program: str, error: Exception, where: Path | None = None) -> int:
    """Say in one sentence why nothing more could be done; the exit status.

    Args:
        where: the place to name where an error of the system names none.
    """
    from ldseg.files import os_sentence

    print(f"{program}: {os_sentence(error, where) if isinstance(error, OSError) else error}", file=sys.stderr)
    return NONE


class Progress:
    """Says to standard error how far a program is, also into a pipe or a file: a line a case, or one every 20 s.

    Args:
        total: how many cases there are.
        silence_s: after how long without a line it says one by itself.
    """

    def __init__(self, total: int, silence_s: float = SILENCE_S) -> None:
        self._total, self._silence_s, self._at, self._what, self._waited = total, silence_s, 0, "", 0.0
        self._changed, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def show(self, at: int, what: str) -> None:
        """So many cases have ended; what comes now, or what there is to say."""
        if (at, what) != (self._at, self._what) or not at:
            self._at, self._what = at, what
            self._say(f"[{at}/{self._total}] {what}".rstrip())

    def note(self, at: int) -> None:
        """So many cases have ended, which something else has said."""
        self._at, self._what, self._waited = at, "", 0.0
        self._changed.set()

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._waited = 0.0
        self._changed.set()

    def _watch(self) -> None:
        while not self._ended:
            if self._changed.wait(self._silence_s):
                self._changed.clear()
                continue
            self._waited += self._silence_s
            what = f"{self._what}, " if self._what else ""
            line = f"[{self._at}/{self._total}] {what}{self._waited:.0f} s since the last line"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._changed.set()
        self._thread.join()
