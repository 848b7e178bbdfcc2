"""The programs' bodies, one module each: the top floor, which may import everything, each thing when it is needed.

What stands at the top of a module here is light: who asks for --help, or misspells an option, waits for no PyTorch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MLFLOW = {"mlflow", "requests", "urllib3", "sqlalchemy", "alembic"}  # whose errors MLflow raises
SERVES = {"alembic", "fastapi", "httpx", "prometheus_client", "sqlalchemy", "starlette", "uvicorn", "zipstream"}


class Parser(argparse.ArgumentParser):
    """The options of a program, which is known by two names: `ldseg tune` and `python platform/tune.py`.

    Args:
        doc: the module's docstring, whose examples are written for platform/.
        prog: "ldseg tune" where it is called so; None for a file of platform/.
    """

    def __init__(self, doc: str | None, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

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


@contextmanager
def asks_mlflow(cure: str) -> Iterator[None]:
    """Say in one sentence that MLflow is away, breaks off or refuses, wherever in a program it is asked.

    Args:
        cure: what the user is to do when it is back.

    Raises:
        OSError: with that sentence.
    """
    try:
        yield
    except Exception as error:
        kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not kinds & MLFLOW and not isinstance(error, TimeoutError):
            raise
        from ldseg.orchestration.tracking.shipment import first_line

        raise OSError(f"MLflow does not answer as it should ({first_line(error)}); {cure}") from error
