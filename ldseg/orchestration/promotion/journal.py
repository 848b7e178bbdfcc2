"""The history of promotions: JSON lines that are only ever appended, each holding the hash of the one before.

A changed, removed or inserted line breaks the chain. Lines cut off at the end do not: the registry holds the number and
the hash of the last record of each model, see `ldseg.orchestration.promotion.promote`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import getpass
import hashlib
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg.files import append_line, flock, sync

HISTORY, LOCK = "promotions.jsonl", "promotions.lock"
START = "sha256:" + "0" * 64  # what the first line follows
LOCK_SECONDS = 60.0
MOVES = ("promote", "rollback", "found")  # after which another version is the champion

Record = dict[str, Any]


class HistoryError(ValueError):
    """A history that was changed or can't be written; the message names the line and the cure."""


@dataclass(frozen=True)
class History:
    """What the file holds.

    Attributes:
        path: the file.
        records: one for each whole line, oldest first; lines of the time before the chain lack "hash".
        head: the hash that the next record follows.
        broken: the first line that breaks the chain and why, "" for none.
        torn: bytes after the last whole line: a record that was being written when its process was killed.
    """

    path: Path
    records: tuple[Record, ...]
    head: str
    broken: str
    torn: int

    def of(self, name: str) -> list[Record]:
        """The records of one model, oldest first."""
        return [record for record in self.records if record.get("name") == name]

    def check(self) -> None:
        """Raise a HistoryError if the chain is broken."""
        if self.broken:
            cure = "put it back as it was (MLflow holds each record, too: artifacts promotions/ of the versions' runs)"
            raise HistoryError(f"the history {self.path} was changed: {self.broken}; {cure}")


def read_history(home: Path) -> History:
    """All records, with the chain verified as far as it holds; an absent file is an empty history."""
    path = home / HISTORY
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records: list[Record] = []
    head, broken, chained = START, "", False
    for number, line in enumerate(lines, start=1):
        record, problem = _parse(line)
        chained = chained or "hash" in record or bool(problem)
        if chained:
            problem = problem or _problem(record, number, head)
        # a line that was written before there was a chain: its bytes are the link
        head = str(record.get("hash", "")) if chained else _sha256(head.encode() + line)
        broken = broken or (f"line {number} {problem}" if problem else "")
        records.append(record)
    return History(path, tuple(records), head, broken, len(rest))


def append_record(home: Path, content: Mapping[str, Any]) -> Record:
    """Append a record with its number, time, author and hashes; it is on the disk when this returns.

    A torn line at the end is dropped and told under "torn". Call it under `locked`.

    Raises:
        HistoryError: the chain is broken.
    """
    history = read_history(home)
    history.check()
    record: Record = {
        "number": len(history.records) + 1,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "who": author(),
        **content,
        **({"torn": history.torn} if history.torn else {}),
        "previous": history.head,
    }
    record = json.loads(json.dumps(record, allow_nan=False))
    record["hash"] = record_hash(record)
    append_line(history.path, json.dumps(record, allow_nan=False))
    sync(history.path)
    sync(home)  # the file's name, too, must outlive a power cut
    return record


def record_hash(record: Mapping[str, Any]) -> str:
    """ "sha256:..." of a record's canonical JSON without its own hash; the hash of the record before is part of it."""
    text = json.dumps({k: v for k, v in record.items() if k != "hash"}, sort_keys=True, separators=(",", ":"))
    return _sha256(text.encode())


def author() -> str:
    """user@host; the number of the user where it has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """The home's history and aliases for this process alone; the kernel lets go when it dies.

    Raises:
        HistoryError: another process has held it for a minute.
    """
    with open(home / LOCK, "a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        for tries in itertools.count():
            try:
                flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise HistoryError(
                        f"another promotion has held {home / LOCK} for {LOCK_SECONDS:.0f} s; end it and try again"
                    ) from error
            if not tries:
                print("another promotion is at work here, waiting for it", file=sys.stderr, flush=True)
            time.sleep(0.05)
        yield


def champions(records: list[Record]) -> list[int]:
    """The champions of one model, the present one last, such that a rollback gives back the one before.

    Args:
        records: of that model, oldest first.
    """
    stack: list[int] = []
    for record in records:
        version, action = record.get("version"), record.get("action")
        moved = record.get("promoted", action in MOVES)  # lines before the chain say so themselves
        if not moved or action not in MOVES or version is None:
            continue
        if action == "rollback" and version in stack[:-1]:
            while stack[-1] != version:
                stack.pop()
        elif not stack or stack[-1] != version:
            stack.append(int(version))
    return stack


def _problem(record: Record, number: int, head: str) -> str:
    if "hash" not in record:
        return "has no hash"
    if record["hash"] != record_hash(record):
        return "does not match its own hash"
    if record.get("previous") != head:
        return "does not follow the line before it"
    return "" if record.get("number") == number else f"has the number {record.get('number')}"


def _parse(line: bytes) -> tuple[Record, str]:
    """The record, and what is wrong with the line."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}, "is no JSON"
    return (record, "") if isinstance(record, dict) else ({}, "is no record")


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
