"""One run's folder brought to MLflow: what is sent is noted beside it, after MLflow has acknowledged it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException

from ldseg.files import write_atomically
from ldseg.orchestration.home import without_password
from ldseg.orchestration.tracking.mlflow_client import Tracker
from ldseg.orchestration.tracking.run_log import END, METRICS, RUN, Line, RunInfo, read_info, read_json, read_lines

STATE = "mlflow.json"
NAME, UID, PARENT = "ldseg.name", "ldseg.uid", "mlflow.parentRunId"
MOST_METRICS, MOST_PARAMETERS = 1000, 100  # in one of MLflow's batches
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

Item = TypeVar("Item", Metric, Param, RunTag)


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


def place(uri: str) -> str:
    """Tells one MLflow from another without keeping a password that its address may hold."""
    return hashlib.sha256(uri.encode()).hexdigest()


def read_state(folder: Path, uri: str) -> State:
    """The state of a folder at this tracking server; a new one if it has been sent to another."""
    stored = read_json(folder / STATE)
    return State(**stored) if stored.get("uri") == place(uri) else State(uri=place(uri))


def unsent(folder: Path, uri: str) -> int:
    """Metric lines that MLflow has not got, and one each for the run's description and its end."""
    state = read_state(folder, uri)
    path = folder / METRICS
    behind = path.is_file() and path.stat().st_size != state.offset
    lines = sum(line.end > state.offset for line in read_lines(folder)) if behind else 0
    return lines + (state.told != _digest(folder / RUN)) + (state.ended != _digest(folder / END))


def refused(error: BaseException, uri: str) -> bool:
    """MLflow itself has looked at what it got and will never take it."""
    return _code(error, uri) in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def disconnected(error: BaseException) -> bool:
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


class Shipment:
    """Sends what MLflow has not got of one run; nothing is sent twice, also after a crash.

    A crash between MLflow's acknowledgement and the note sends a batch again: MLflow keeps one point for one
    (key, time, step, value), and `create_run` is looked for by the run's uid first.

    Attributes:
        say: told in one sentence what MLflow refuses.
        taken: by folder, the (key, step) that a run found in MLflow had; kept between shipments.
    """

    def __init__(
        self, tracker: Tracker, folder: Path, say: Callable[[str], None], taken: dict[Path, set[tuple[str, int]]]
    ) -> None:
        self.client, self.tracker, self.folder, self.say, self.taken = tracker.client, tracker, folder, say, taken
        self.state = read_state(folder, tracker.uri)
        found = read_info(folder)
        assert found is not None, f"{folder} has no {RUN}"
        self.info: RunInfo = found

    def send(self, parent: str) -> None:
        """Bring MLflow up to date.

        Args:
            parent: id of the parent run, "" if there is none (yet).

        Raises:
            Exception: whatever MLflow raises while it is away, or if it refuses the run as a whole.
        """
        known = bool(self.state.run_id)
        try:
            self._send(parent)
        except MlflowException as error:
            if not known or _code(error, self.tracker.uri) != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.state = State(uri=place(self.tracker.uri))  # another database lies behind the address: all of it again
            self._send(parent)

    def _send(self, parent: str) -> None:
        if not self.state.run_id:
            self._begin(parent)
        self._describe(parent)
        self._send_metrics()
        self._send_end()

    def _begin(self, parent: str) -> None:
        self.state.experiment = self._experiment()
        self.state.run_id = self._find()
        self.state.found = bool(self.state.run_id)
        if not self.state.run_id:
            parents = {PARENT: parent} if parent else {}
            run = self.client.create_run(
                self.state.experiment,
                start_time=self.info.start,
                tags={**self.info.tags, **self._identity(), **parents},
                run_name=self.info.name,
            )
            self.state.run_id = str(run.info.run_id)
            self.state.run_id, self.state.parent = self._find() or self.state.run_id, parent
        elif not (self.folder / END).is_file():
            self.client.update_run(self.state.run_id, status="RUNNING")
        self._note()

    def _experiment(self) -> str:
        try:
            return self.tracker.experiment(self.info.experiment)
        except MlflowException as error:
            if _code(error, self.tracker.uri) != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.tracker.experiment(self.info.experiment)  # another process has just made it

    def _identity(self) -> dict[str, str]:
        return {NAME: self.info.name, UID: self.info.uid}

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

    def _describe(self, parent: str) -> None:
        """Parameters, tags and parent."""
        identity, digest = self.state.run_id, _digest(self.folder / RUN)
        if parent and parent != self.state.parent:
            self.client.set_tag(identity, PARENT, parent)
            self.state.parent = parent
            self._note()
        if digest == self.state.told:
            return
        tags = [RunTag(key, value) for key, value in (self.info.tags | self._identity()).items()]
        parameters = [Param(key, value) for key, value in self.info.parameters.items()]
        for start in range(0, len(tags), MOST_PARAMETERS):
            self._give(tags[start : start + MOST_PARAMETERS], lambda some: self.client.log_batch(identity, tags=some))
        for start in range(0, len(parameters), MOST_PARAMETERS):
            some = parameters[start : start + MOST_PARAMETERS]
            self._give(some, lambda some: self.client.log_batch(identity, params=some))
        self.state.told = digest
        self._note()

    def _send_metrics(self) -> None:
        """The unsent lines in order, in batches of whole lines."""
        path = self.folder / METRICS
        if not path.is_file() or path.stat().st_size == self.state.offset:
            return
        lines = read_lines(self.folder)
        if self.state.offset > path.stat().st_size:
            self.state.offset = 0
        seen = {(k, line.step) for line in lines if line.end <= self.state.offset for k in line.metrics}
        seen |= self._taken()
        batch, end = list[Metric](), self.state.offset
        for line in (line for line in lines if line.end > self.state.offset):
            fresh = _points(line, seen)
            if batch and len(batch) + len(fresh) > MOST_METRICS:
                self._give_metrics(batch, end)
                batch = []
            batch, end = batch + fresh, line.end
        self._give_metrics(batch, end)

    def _give_metrics(self, points: list[Metric], end: int) -> None:
        identity = self.state.run_id
        for start in range(0, len(points), MOST_METRICS):
            some = points[start : start + MOST_METRICS]
            self._give(some, lambda some: self.client.log_batch(identity, metrics=some))
        self.state.offset = end
        self._note()

    def _taken(self) -> set[tuple[str, int]]:
        if not self.state.found:
            return set()
        if self.folder not in self.taken:
            identity = self.state.run_id
            keys = self.client.get_run(identity).data.metrics
            self.taken[self.folder] = {
                (key, int(point.step)) for key in keys for point in self.client.get_metric_history(identity, key)
            }
        return self.taken[self.folder]

    def _give(self, items: list[Item], send: Callable[[list[Item]], Any]) -> None:
        """Send all that MLflow takes; what it refuses is found by halving, told and left out."""
        if not items:
            return
        try:
            send(items)
        except MlflowException as error:
            if not refused(error, self.tracker.uri):
                raise
            if self.client.get_run(self.state.run_id).info.lifecycle_stage != "active":
                raise  # the run has been deleted in MLflow: that is not about the items
            if len(items) == 1:
                self.say(f"MLflow refuses {items[0].key} of the run {self.info.name}: {first_line(error)}")
                return
            for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                self._give(half, send)

    def _send_end(self) -> None:
        """The end, or that the run goes on after one."""
        digest = _digest(self.folder / END)
        if digest == self.state.ended:
            return
        end, identity = read_json(self.folder / END), self.state.run_id
        reason = str(end.get("reason", ""))
        if reason or self.state.reason:
            self.client.set_tag(identity, "reason", reason)
        if end:
            self._find()
            self.client.set_terminated(identity, end["status"], end_time=int(end["time"]))
        else:
            self.client.update_run(identity, status="RUNNING")
        self.state.ended, self.state.reason = digest, bool(reason)
        self._note()

    def _note(self) -> None:
        write_atomically(self.folder / STATE, json.dumps(asdict(self.state), indent=1).encode())


def _points(line: Line, seen: set[tuple[str, int]]) -> list[Metric]:
    """A line's finite metrics that are not in `seen`, and adds them there."""
    fresh = {k: v for k, v in line.metrics.items() if math.isfinite(v) and (k, line.step) not in seen}
    seen |= {(k, line.step) for k in fresh}
    return [Metric(k, v, line.time, line.step) for k, v in fresh.items()]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return ""
