"""The operator's programs without a process of their own: their bodies, run in this one, which has imported it all."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from ldseg import ROOT

STOPPED_BY = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[list[str]], int], *options: str, stdin: str = "", **variables: str) -> CompletedProcess[str]:
    """The end of a program.

    Args:
        main: such as `ldseg.commands.segment.main`.
        variables: of the environment, beside those that are there.
    """
    handlers, out, err = [signal.getsignal(number) for number in STOPPED_BY], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, patch.dict(os.environ, variables):
        patched.setattr(sys, "stdin", io.StringIO(stdin))
        patched.chdir(ROOT)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = main(list(options))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0
        finally:
            for number, handler in zip(STOPPED_BY, handlers, strict=True):
                signal.signal(number, handler)
    return CompletedProcess(options, status, out.getvalue(), err.getvalue())
