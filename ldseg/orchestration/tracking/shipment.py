"""One run's folder brought to MLflow: what is sent is noted beside it, after MLflow has acknowledged it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException

from ldseg.files import write_atomically
from ldseg.orchestration.home import without_password
from ldseg.orchestration.tracking.mlflow_client import Tracker
from ldseg.orchestration.tracking.run_log import END, METRICS, RUN, Line, RunInfo, read_info, read_json, read_lines

STATE = "mlflow.json"
NAME, UID, PARENT = "ldseg.name", "ldseg.uid", "mlflow.parentRunId"
MOST = {"metrics": 1000, "params": 100, "tags": 100}  # in one of MLflow's batches
LINES_AT_ONCE = 100
# MLflow reads these at each request; a value that the operator has set stays
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds without an answer; MLflow's own 120
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # for a connection that the server has closed; MLflow's own 7 take minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in PATIENCE.items():
    os.environ.setdefault(_name, _value)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it would tell each try


@dataclass
class State:
    """What MLflow has acknowledged.

    Attributes:
        offset: bytes of metrics.jsonl that are sent.
        told, ended: digests of the run.json and end.json that are sent; "" for none.
        found: the run was there already, so it may hold points that this folder has not sent.
        reason: the run carries the tag "reason".
    """

    uri: str
    experiment: str = ""
    run_id: str = ""
    parent: str = ""
    offset: int = 0
    told: str = ""
    ended: str = ""
    found: bool = False
    reason: bool = False


def server_digest(uri: str) -> str:
    """Tells one MLflow from another without keeping a password that its address may hold."""
    return hashlib.sha256(uri.encode()).hexdigest()


def is_refusal(error: BaseException, uri: str) -> bool:
    """MLflow itself has looked at what it got and will never take it."""
    return _code(error, uri) in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def is_disconnection(error: BaseException) -> bool:
    """There was no answer at all: nobody listens, the connection broke, or it took too long."""
    return isinstance(error.__context__, requests.ConnectionError | requests.Timeout)


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, or the part of a broken connection's that people want to read."""
    core = re.search(r"\[Errno -?\d+\] [^'\")]+|Read timed out|too many \d+ error responses", str(error))
    lines = without_password(str(error)).strip().splitlines()
    return core[0] if core else lines[0][:240] if lines else type(error).__name__


def _code(error: BaseException, uri: str) -> str:
    """MLflow's error code; "" for what a proxy or a broken connection says."""
    spoken = isinstance(error, RestException if uri.startswith("http") else MlflowException)
    return str(getattr(error, "error_code", "")) if spoken else ""


@dataclass(frozen=True)
class Look:
    """A run's folder as it was when its files had this signature.

    Attributes:
        digest: of the run's description.
        unsent: metric lines that MLflow has not acknowledged, and one each for the run's description and its end.
    """

    signature: list[tuple[int, int, int]]
    digest: str
    info: RunInfo
    state: State
    unsent: int


class Shipment:
    """Sends what MLflow has not got of one run; nothing is sent twice, also after a crash.

    A crash between MLflow's acknowledgement and the note sends a batch again: MLflow keeps one point for one
    (key, time, step, value), and `create_run` is looked for by the run's uid first.

    Args:
        say: told in one sentence what MLflow refuses.
    """

    info: RunInfo
    state: State

    def __init__(self, tracker: Tracker, folder: Path, say: Callable[[str], None]) -> None:
        self.client, self.tracker, self.folder, self.say = tracker.client, tracker, folder, say
        self.refused = False  # MLflow does not take the run at all
        self._look: Look | None = None
        self._taken: set[tuple[str, int]] | None = None  # (key, step) that a run found in MLflow had

    def look(self) -> Look | None:
        """The folder now, None if it holds no run; reads only what has changed."""
        signature = [_stat(self.folder / name) for name in (RUN, METRICS, END, STATE)]
        if self._look is None or self._look.signature != signature:
            digest, info, stored = _digest(self.folder / RUN), read_info(self.folder), read_json(self.folder / STATE)
            if info is None:
                return None
            server = server_digest(self.tracker.uri)
            state = State(**stored) if stored.get("uri") == server else State(uri=server)
            unsent = len(self._lines(state)) + (state.told != digest) + (state.ended != _digest(self.folder / END))
            self._look = Look(signature, digest, info, state, unsent)
        return self._look

    def _lines(self, state: State) -> list[Line]:
        """The unsent ones."""
        path = self.folder / METRICS
        size = path.stat().st_size if path.is_file() else 0
        sent = state.offset if state.offset <= size else 0
        return [line for line in read_lines(self.folder) if line.end > sent] if size != sent else []

    def send(self, parent: str) -> None:
        """Bring MLflow up to date.

        Args:
            parent: id of the parent run, "" if there is none (yet).

        Raises:
            Exception: whatever MLflow raises while it is away, or if it refuses the run as a whole.
        """
        look = self.look()
        assert look is not None, f"{self.folder} has no {RUN}"
        self.info, self.state = look.info, replace(look.state)
        try:
            self._send(parent, look.digest)
        except MlflowException as error:
            if not look.state.run_id or _code(error, self.tracker.uri) != "RESOURCE_DOES_NOT_EXIST":
                raise
            # another database lies behind the address: all of it again
            self.state, self._taken = State(uri=look.state.uri), None
            self._send(parent, look.digest)

    def _send(self, parent: str, digest: str) -> None:
        if not self.state.run_id:
            self._begin(parent)
        if parent and parent != self.state.parent:
            self.client.set_tag(self.state.run_id, PARENT, parent)
            self._note(parent=parent)
        if self.state.told != digest:
            self._give("tags", [RunTag(key, value) for key, value in self._tags().items()])
            self._give("params", [Param(key, value) for key, value in self.info.parameters.items()])
            self._note(told=digest)
        lines = self._lines(self.state)
        for batch in (lines[start : start + LINES_AT_ONCE] for start in range(0, len(lines), LINES_AT_ONCE)):
            self._give("metrics", [point for line in batch for point in self._points(line)])
            self._note(offset=batch[-1].end)
        self._send_end()

    def _begin(self, parent: str) -> None:
        self.state.experiment = self.tracker.experiment(self.info.experiment)
        found = self._find()
        if found:
            if not (self.folder / END).is_file():
                self.client.update_run(found, status="RUNNING")
            self._note(run_id=found, found=True)
            return
        made = self.client.create_run(
            self.state.experiment,
            start_time=self.info.start,
            tags={**self._tags(), **({PARENT: parent} if parent else {})},
            run_name=self.info.name,
        )
        self.state.run_id = str(made.info.run_id)
        self._note(run_id=self._find() or self.state.run_id, parent=parent)

    def _tags(self) -> dict[str, str]:
        return {**self.info.tags, NAME: self.info.name, UID: self.info.uid}

    def _find(self) -> str:
        """Id of this run in MLflow, else of one that was logged there without a folder, else "".

        A server that is killed or slow while it makes a run may have made it twice: one stays.
        """
        runs = self.client.search_runs(
            [self.state.experiment], filter_string=f"tags.`{NAME}` = '{self.info.name}'", max_results=1000
        )
        own = sorted(str(run.info.run_id) for run in runs if run.data.tags.get(UID) == self.info.uid)
        if not own:
            return next((str(run.info.run_id) for run in runs if UID not in run.data.tags), "")
        kept = self.state.run_id if self.state.run_id in own else own[0]
        for double in own:
            if double != kept:
                self.client.delete_run(double)
        return kept

    def _points(self, line: Line) -> list[Metric]:
        """A line's finite metrics that a run found in MLflow did not have."""
        if self.state.found and self._taken is None:
            run = self.state.run_id
            keys = self.client.get_run(run).data.metrics
            self._taken = {(k, int(point.step)) for k in keys for point in self.client.get_metric_history(run, k)}
        taken = self._taken or ()
        return [
            Metric(k, v, line.time, line.step)
            for k, v in line.metrics.items()
            if math.isfinite(v) and (k, line.step) not in taken
        ]

    def _give(self, kind: str, items: list[Any]) -> None:
        """Send all that MLflow takes, in order; what it refuses is found by halving, told and left out."""
        if not items:
            return
        if len(items) <= MOST[kind]:
            try:
                self.client.log_batch(self.state.run_id, **{kind: items})
                return
            except MlflowException as error:
                if not is_refusal(error, self.tracker.uri):
                    raise
                if self.client.get_run(self.state.run_id).info.lifecycle_stage != "active":
                    raise  # the run has been deleted in MLflow: that is not about the items
                if len(items) == 1:
                    self.say(f"MLflow refuses {items[0].key} of the run {self.info.name}: {first_line(error)}")
                    return
        half = len(items) // 2
        self._give(kind, items[:half])
        self._give(kind, items[half:])

    def _send_end(self) -> None:
        """The end, or that the run goes on after one."""
        digest = _digest(self.folder / END)
        if digest == self.state.ended:
            return
        end, run = read_json(self.folder / END), self.state.run_id
        reason = str(end.get("reason", ""))
        if reason or self.state.reason:
            self.client.set_tag(run, "reason", reason)
        if end:
            self._find()
            self.client.set_terminated(run, end["status"], end_time=int(end["time"]))
        else:
            self.client.update_run(run, status="RUNNING")
        self._note(ended=digest, reason=bool(reason))

    def _note(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.state, name, value)
        write_atomically(self.folder / STATE, json.dumps(asdict(self.state), indent=1).encode())


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return ""


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
