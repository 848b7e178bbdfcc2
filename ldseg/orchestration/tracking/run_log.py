"""What MLflow is to know of a run, on disk first: a folder that any process may append to and that survives kill -9."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ldseg.config import ConfigError
from ldseg.files import append_line, flock, locked, sync, write_atomically

logger = logging.getLogger(__name__)

RUN, METRICS, END = "run.json", "metrics.jsonl", "end.json"
STATUSES = ("FINISHED", "FAILED", "KILLED")
LONGEST_PARAMETER, LONGEST_TAG = 6000, 8000  # MLflow's limits in characters


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run is.

    Attributes:
        name: unique in its experiment.
        parent: name of the parent run in the same experiment; "" for none.
        start: milliseconds since 1970.
        uid: tells this run from one of the same name in another folder.
    """

    experiment: str
    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    parent: str = ""
    start: int = 0
    uid: str = ""


@dataclass(frozen=True)
class Line:
    """Metrics that were logged together: `time` in milliseconds since 1970, `end` the byte after the line."""

    time: int
    step: int
    metrics: dict[str, float]
    end: int


class RunLog:
    """A run's folder: run.json (what it is), metrics.jsonl (its numbers), end.json (how it ended).

    Any process of any node that sees the folder may log; none of them needs MLflow.

    Raises:
        FileNotFoundError: `create` has not been called for this folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if read_info(self.folder) is None:
            raise FileNotFoundError(f"{self.folder} has no {RUN}; RunLog.create makes it")

    @classmethod
    def create(
        cls,
        folder: Path,
        experiment: str,
        name: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> RunLog:
        """Make a run, or open it again: new parameters and tags are added and tags may change.

        A parameter keeps its first value, as MLflow has it; another one is told and dropped.

        Raises:
            ConfigError: the folder holds another run, or a name has more than letters, digits, dots, - and _.
        """
        for each in (experiment, name, *([parent] if parent else [])):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,249}", each):
                raise ConfigError(f"the name {each!r} must consist of letters, digits, dots, - and _")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        new = RunInfo(
            experiment=experiment,
            name=name,
            parameters={k: str(v)[:LONGEST_PARAMETER] for k, v in (parameters or {}).items()},
            tags={k: str(v)[:LONGEST_TAG] for k, v in (tags or {}).items()},
            parent=parent,
            start=_now(),
            uid=uuid.uuid4().hex,
        )
        with locked(folder / ".lock"):
            old = read_info(folder)
            if old is None and (folder / RUN).exists():
                raise ConfigError(f"{folder / RUN} is something else; take another folder")
            merged = new if old is None else _merged(folder, old, new)
            if merged != old:
                _write(folder / RUN, asdict(merged), indent=1)
        return cls(folder)

    @property
    def info(self) -> RunInfo:
        """What the run is, as the disk has it now."""
        found = read_info(self.folder)
        assert found is not None, f"{self.folder / RUN} has gone"
        return found

    def log(self, values: Mapping[str, float], step: int = 0) -> int:
        """Append metrics; returns when they are on the disk.

        A metric that has a value at this step already keeps it: MLflow may know it, and can't be made to forget.
        So an epoch that is trained again after a crash adds nothing.

        Returns:
            How many of the metrics were new.

        Raises:
            OSError: the disk is full or away; the file is as it was.
        """
        path = self.folder / METRICS
        with locked(path):
            content = path.read_bytes()
            known = {(k, line.step) for line in _parse(content, path) for k in line.metrics}
            fresh = {k: float(v) for k, v in values.items() if (k, int(step)) not in known}
            if fresh:
                shown = {k: v if math.isfinite(v) else str(v) for k, v in fresh.items()}
                append_line(path, json.dumps({"time": _now(), "step": int(step), "metrics": shown}))
                sync(path)
            if not content:
                sync(self.folder)
        return len(fresh)

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Say how the run ended; saying the same again keeps the first time.

        Raises:
            ValueError: the status is none of FINISHED, FAILED and KILLED.
        """
        if status not in STATUSES:
            raise ValueError(f"a run ends as one of {', '.join(STATUSES)}, not as {status!r}")
        old, content = read_json(self.folder / END), {"status": status, "reason": reason[:LONGEST_TAG]}
        if {k: old.get(k) for k in content} != content:
            _write(self.folder / END, content | {"time": _now()})

    def reopen(self) -> None:
        """The run goes on: it has no end any more."""
        (self.folder / END).unlink(missing_ok=True)
        sync(self.folder)


def read_json(path: Path) -> dict[str, Any]:
    """A file written by `write_atomically`; {} if there is none."""
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}


def read_info(folder: Path) -> RunInfo | None:
    """The run in a folder; None if there is none, or a run.json of another kind."""
    found = read_json(folder / RUN)
    return RunInfo(**found) if "uid" in found else None


def read_lines(folder: Path) -> list[Line]:
    """The whole lines of a run's metrics that are safe on the disk, oldest first; a torn end is left out."""
    try:
        with open(folder / METRICS, "rb") as file:
            flock(file.fileno(), fcntl.LOCK_SH)
            return list(_parse(file.read(), folder / METRICS))
    except FileNotFoundError:
        return []


def _parse(content: bytes, path: Path) -> Iterator[Line]:
    """Lines that end; one that can't be read (a disk that lost power) is told and passed over."""
    start = 0
    while (end := content.find(b"\n", start) + 1) > 0:
        try:
            found = json.loads(content[start:end])
            metrics = {str(k): float(v) for k, v in found["metrics"].items()}
            yield Line(int(found["time"]), int(found["step"]), metrics, end)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _warn_once(f"{path}, bytes {start} to {end}, can't be read: {error}")
        start = end


@functools.cache
def _warn_once(sentence: str) -> None:
    logger.warning(sentence)


def _merged(folder: Path, old: RunInfo, new: RunInfo) -> RunInfo:
    for key in ("experiment", "name", "parent"):
        if getattr(old, key) != getattr(new, key):
            raise ConfigError(
                f"{folder} holds a run with {key} {getattr(old, key)!r} and not {getattr(new, key)!r}; "
                "take another folder"
            )
    changed = [k for k, v in new.parameters.items() if old.parameters.get(k, v) != v]
    if changed:
        logger.warning("%s keeps the first value of its parameters %s", old.name, ", ".join(changed))
    return replace(old, parameters=new.parameters | old.parameters, tags=old.tags | new.tags)


def _write(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    write_atomically(path, json.dumps(content, indent=indent).encode())
    sync(path.parent)


def _now() -> int:
    return time.time_ns() // 1_000_000
