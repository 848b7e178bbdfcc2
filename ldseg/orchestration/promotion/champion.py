"""The alias of the champion and the history of its moves, kept together whatever is killed when.

A move is a record on the disk, then the alias, then a tag of the registered model with the record's number and hash. So
a process that was killed in between leaves a record beyond the tag: the move is finished by the next command. A history
that is shorter than the tag says, or another one, was cut off.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from ldseg.orchestration.promotion.journal import MOVES, History, HistoryError, Record, append_record, read_history
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import CHAMPION, RegistryError, quiet_mlflow

TITLES = ("#", "when (UTC)", "who", "model", "action", "version", "before", "dice", "why")
HEAD = "ldseg.promotions"  # the tag: "number:hash" of the last record of the model that was seen through
ARTIFACTS = "promotions"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What the registry and the history say of one model.

    Attributes:
        champion: the version that has the alias.
        records: of the model, oldest first.
        late: records that were not seen through.
        last: the last record that moves the alias.
        problem: "pending" where the alias has not made that move, "outside" where it was moved by something else than
            this program, "late" where only MLflow's copy of a record is missing, "" where all is well.
    """

    name: str
    champion: int | None
    records: tuple[Record, ...]
    late: tuple[Record, ...]
    last: Record | None
    problem: str

    @property
    def pending(self) -> Record | None:
        """The move that was written and not made."""
        return self.last if self.problem == "pending" else None

    def describe(self) -> str:
        """What is not as it should be, "" if all is."""
        if self.pending is not None:
            what = f"record {self.pending['number']} ({self.pending['action']} to version {self.pending['version']})"
            return f"{what} was written, but the alias {CHAMPION} of {self.name} did not move: its process was killed"
        if self.problem == "outside":
            where = f"version {self.champion}" if self.champion else "no version"
            return f"the alias {CHAMPION} of {self.name} is at {where}, moved by something else than this program"
        if self.late:
            return f"record {self.late[-1]['number']} of {self.name} was not seen through: its process was killed"
        return ""


def state(tracker: mlflow_client.Tracker, name: str) -> State:
    """Read the registry and the history of a model.

    Raises:
        RegistryError: there is no such model.
        HistoryError: the history was changed, or is shorter than the registry knows.
    """
    try:
        model = tracker.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(
            f"there is no model {name!r} in the registry at {tracker.uri}; register one by platform/tune.py"
        ) from error
    history = read_history(tracker.home)
    history.check()
    number = _seen_through(model.tags.get(HEAD, ""), history, name)
    records = history.of(name)
    champion = int(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None
    late = [r for r in records if r.get("number", 0) > number]
    last = next((r for r in reversed(records) if r.get("promoted", r["action"] in MOVES)), None)
    problem = "late" if late else ""
    if champion != (last["version"] if last else None):
        killed = last in late and last["before"] == champion and _is_registered(tracker, last)
        problem = "pending" if killed else "outside"
    return State(name, champion, tuple(records), tuple(late), last, problem)


def _seen_through(tag: str, history: History, name: str) -> int:
    """The number of the last record that was seen through; every record of the time before the chain was."""
    legacy = sum("hash" not in record for record in history.records)
    if not tag:
        return legacy
    number, _, wanted = tag.partition(":")
    index = int(number) - 1
    if index >= len(history.records) or history.records[index].get("hash") != wanted:
        raise HistoryError(
            f"the registry knows record {number} of {name} ({wanted[:19]}...), which {history.path} does not hold: "
            "lines were cut off, or --runs is another home; put the file back (MLflow holds each record, too: "
            f"artifacts {ARTIFACTS}/ of the versions' runs)"
        )
    return max(legacy, int(number))


def _is_registered(tracker: mlflow_client.Tracker, record: Record) -> bool:
    try:
        version = tracker.client.get_model_version(record["name"], str(record["version"]))
    except MlflowException:
        return False
    return bool(version.tags.get("digest") == record.get("digest"))


def settle(tracker: mlflow_client.Tracker, name: str) -> list[str]:
    """Finish what a killed process left and record what was moved from outside; call it under the lock.

    Returns:
        One sentence for each thing that was done.
    """
    found = state(tracker, name)
    for record in found.late:
        _log(tracker, record)
    if found.problem == "pending" and found.last is not None:
        content = {key: found.last.get(key) for key in ("version", "before", "digest", "calibration")}
        commit(tracker, {"action": "mend", "name": name, **content, "mends": found.last["number"]}, move=True)
        return [f"{found.describe()}; moved now"]
    if found.problem == "outside":
        before = next((r["version"] for r in reversed(found.records) if r["action"] in MOVES), None)
        digest = ""
        if found.champion is not None:
            digest = tracker.client.get_model_version(name, str(found.champion)).tags.get("digest", "")
        content = {"action": "found", "name": name, "version": found.champion, "before": before, "digest": digest}
        commit(tracker, content, move=False)
        return [f"{found.describe()}; recorded as found"]
    if found.late:
        _see_through(tracker, found.late[-1])
        return [f"{found.describe()}; done now"]
    return []


def commit(tracker: mlflow_client.Tracker, content: Mapping[str, Any], *, move: bool) -> Record:
    """Write a record, log it to MLflow, move the alias to its version if it says so; call it under the lock."""
    record = append_record(tracker.home, content)
    logged = _log(tracker, record)
    if move:
        tracker.client.set_registered_model_alias(record["name"], CHAMPION, str(record["version"]))
    if logged:
        _see_through(tracker, record)
    return record


def _see_through(tracker: mlflow_client.Tracker, record: Record) -> None:
    tracker.client.set_registered_model_tag(record["name"], HEAD, f"{record['number']}:{record['hash']}")


def _log(tracker: mlflow_client.Tracker, record: Record) -> bool:
    """The record as an artifact of its version's run; a store that is away costs a warning, it is tried again later."""
    if record.get("version") is None:
        return True
    try:
        version = tracker.client.get_model_version(record["name"], str(record["version"]))
        with tempfile.TemporaryDirectory() as folder, quiet_mlflow(tracker):
            file = Path(folder) / f"{record['number']:04d}-{record['action']}-{record['hash'][7:15]}.json"
            file.write_text(json.dumps(record, indent=1))
            tracker.client.log_artifact(version.run_id, str(file), ARTIFACTS)
    except (MlflowException, OSError) as error:
        logger.warning("record %d could not be logged to MLflow: %s", record["number"], error)
        return False
    return True


def show_history(tracker: mlflow_client.Tracker, name: str = "") -> tuple[str, bool]:
    """All decisions, or those of one model, oldest first, and what is wrong with them.

    Returns:
        The text, and whether the chain holds and the registry knows no record that is missing.
    """
    history = read_history(tracker.home)
    rows = [_cells(i, r) for i, r in enumerate(history.records, start=1) if not name or r.get("name") == name]
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [TITLES, *rows]]
    if not rows:
        lines = [f"{history.path} holds no decision" + (f" on {name}" if name else "")]
    problems = [f"CHANGED: {history.broken}"] if history.broken else []
    for model in [] if problems else [name] if name else _names(tracker, history):
        try:
            if unfinished := state(tracker, model).describe():
                lines.append(f"{unfinished}; the next promotion or rollback mends it")
        except HistoryError as error:
            problems.append(f"CHANGED: {error}")
        except RegistryError as error:
            lines.append(str(error))
    if history.torn:
        lines.append(
            f"a record was being written when its process was killed ({history.torn} bytes); it does not count"
        )
    chained = sum("hash" in record for record in history.records)
    older = len(history.records) - chained
    lines += problems or [f"the chain of {chained} records holds" + (f", after {older} older ones" if older else "")]
    return "\n".join(lines), not problems


def _names(tracker: mlflow_client.Tracker, history: History) -> list[str]:
    """Of the models that the history or the registry knows promotions of."""
    recorded = [str(record["name"]) for record in history.records if "name" in record]
    tagged = [model.name for model in tracker.client.search_registered_models() if HEAD in model.tags]
    return list(dict.fromkeys([*recorded, *tagged]))


def _cells(number: int, record: Record) -> tuple[str, ...]:
    def text(key: str) -> str:
        return "-" if record.get(key) in (None, "") else str(record[key])

    checks = [check for check in record.get("checks", ()) if isinstance(check, dict)]
    dice = next((check["own"] for check in checks if check.get("gate") == "dice"), None)
    why = [record["reason"]] if record.get("reason") else []
    failed = ", ".join(check["gate"] for check in checks if not check["passed"])
    why += [f"NO: {failed}"] if failed else []
    why += [f"finishes record {record['mends']}"] if "mends" in record else []
    when = str(record.get("when", "-")).replace("+00:00", "").replace("T", " ")
    action = text("action") if record.get("promoted", True) else "refuse"
    middle = (text("who"), text("name"), action, text("version"), text("before"))
    return (str(number), when, *middle, "-" if dice is None else f"{dice:.4f}", "; ".join(why) or "-")
