"""Case names may name patients: they stay out of the logs."""

from __future__ import annotations

import logging
import re
import traceback

# what follows /cases/ in an address is a name; a query may hold one
_CASE = re.compile(r"(/cases/)[^/\s?\"']+")
_QUERY = re.compile(r"(/v1/[^\s?\"']*\?)[^\s\"']+")
LOGGERS = ("ray.serve", "uvicorn.access", "uvicorn.error", "httpx")


def redact(text: str) -> str:
    """A text in which addresses tell neither the names of cases nor their queries."""
    return _QUERY.sub(r"\1...", _CASE.sub(r"\1...", text))


def describe_exception(error: BaseException) -> str:
    """Where and as what an exception was raised, without its message, which may hold a name or a path."""
    lines: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(lines) < 5:
        frames = traceback.extract_tb(seen.__traceback__)[-8:]
        where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        lines.append(f"{type(seen).__name__} at {where or 'an unknown place'}")
        seen = seen.__cause__ or seen.__context__
    return "; caused by ".join(lines)


class Redacting(logging.Filter):
    """Takes names of cases out of every record, and the messages out of its exceptions."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true: the record is changed, not dropped."""
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):  # its formatter needs the parts
            record.args = tuple(redact(part) if isinstance(part, str) else part for part in record.args)
            return True
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {describe_exception(record.exc_info[1])}"
            record.exc_info = record.exc_text = None
        record.msg, record.args = redact(message), ()
        return True


def install() -> None:
    """Make the loggers that see requests redact them; handlers of loggers above see the redacted record."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, Redacting) for known in logger.filters):
            logger.addFilter(Redacting())
