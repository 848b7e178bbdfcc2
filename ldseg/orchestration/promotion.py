"""Promotion of a registered model: evidence through gates, one line of history for every decision."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException

from ldseg.orchestration import tracking
from ldseg.orchestration.registry import CHAMPION, RegistryError, fetch, find_version, quiet_mlflow

HISTORY = "promotions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a model must show on held-out cases before it may serve.

    Attributes:
        min_dice: mean foreground Dice.
        min_diversity: mean 1 - IoU between its samples; a model whose samples are all equal is not uncertain.
        min_cases: labelled test cases behind the numbers.
        tolerance: by how much the mean Dice may be below the champion's on their common cases.
    """

    min_dice: float = 0.7
    min_diversity: float = 0.001
    min_cases: int = 3
    tolerance: float = 0.005


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided and why; `checks` are sentences, the failed ones start with "NO"."""

    name: str
    version: int
    digest: str
    before: int | None
    promoted: bool
    checks: tuple[str, ...]
    action: str = "promote"
    when: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    who: str = field(default_factory=getpass.getuser)

    def text(self) -> str:
        """For a terminal."""
        now = f"{CHAMPION} of {self.name} is version {self.version}" + (
            f", before it {self.before}" if self.before else ""
        )
        kept = f"{CHAMPION} of {self.name} stays at {self.before or 'nothing'}: version {self.version} does not pass"
        return "\n".join([*(f"  {check}" for check in self.checks), now if self.promoted else kept])


def promote(tracker: tracking.Tracker, name: str, version: int | None, gates: Gates) -> Decision:
    """Check a version (the newest if none is given) and move the alias if every gate holds.

    Raises:
        RegistryError: there is no such model or version.
    """
    candidate = find_version(tracker, f"models:/{name}/{version or _newest(tracker, name)}")
    champion = _champion(tracker, name)
    checks = [_intact(tracker, candidate), *_absolute(candidate, gates)]
    if champion is not None and champion.version != candidate.version:
        checks.append(_against(tracker, candidate, champion, gates))
    passed = not any(check.startswith("NO") for check in checks)
    decision = Decision(
        name=name,
        version=int(candidate.version),
        digest=candidate.tags.get("digest", ""),
        before=int(champion.version) if champion is not None else None,
        promoted=passed,
        checks=tuple(checks),
    )
    _remember(tracker.home, decision)  # before the alias moves: a move without a line can't happen
    if passed:
        tracker.client.set_registered_model_alias(name, CHAMPION, candidate.version)
    return decision


def rollback(tracker: tracking.Tracker, name: str) -> Decision:
    """Give the alias back to the version that had it before the latest move.

    Raises:
        RegistryError: there was no earlier champion.
    """
    champion = _champion(tracker, name)
    moves = [d for d in history(tracker.home) if d["name"] == name and d["promoted"]]
    before = next(
        (d["before"] for d in reversed(moves) if champion is not None and d["version"] == int(champion.version)), None
    )
    if champion is None or before is None:
        raise RegistryError(f"{name} had no {CHAMPION} before; promote a version instead")
    target = find_version(tracker, f"models:/{name}/{before}")
    decision = Decision(
        name=name,
        version=int(before),
        digest=target.tags.get("digest", ""),
        before=int(champion.version),
        promoted=True,
        checks=(_intact(tracker, target),),
        action="rollback",
    )
    if decision.checks[0].startswith("NO"):
        raise RegistryError(decision.checks[0].removeprefix("NO  "))
    _remember(tracker.home, decision)
    tracker.client.set_registered_model_alias(name, CHAMPION, str(before))
    return decision


def history(home: Path) -> list[dict[str, Any]]:
    """All decisions, oldest first."""
    path = home / HISTORY
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _remember(home: Path, decision: Decision) -> None:
    with open(home / HISTORY, "a") as file:
        file.write(json.dumps(dataclasses.asdict(decision)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _newest(tracker: tracking.Tracker, name: str) -> int:
    versions = tracker.client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise RegistryError(
            f"there is no model {name!r} in the registry at {tracker.uri}; register one by platform/tune.py"
        )
    return max(int(v.version) for v in versions)


def _champion(tracker: tracking.Tracker, name: str) -> Any | None:
    try:
        return tracker.client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return None


def _intact(tracker: tracking.Tracker, version: Any) -> str:
    try:
        fetch(tracker, version, tracker.home / "models")
    except RegistryError as error:
        return f"NO  {error}"
    return f"ok  files match the registered digest {version.tags['digest'][:19]}..."


def _number(version: Any, name: str) -> float | None:
    value = version.tags.get(name)
    return None if value is None else float(value)


def _absolute(version: Any, gates: Gates) -> list[str]:
    demands = (
        ("test_cases", gates.min_cases, "labelled test cases"),
        ("test_dice", gates.min_dice, "mean foreground Dice on the test cases"),
        ("test_sample_diversity", gates.min_diversity, "mean 1 - IoU between samples"),
    )
    checks = []
    for tag, least, words in demands:
        value = _number(version, tag)
        if value is None or not value >= least:
            shown = "is not known: register the model with its evaluation" if value is None else f"is {value:.4g}"
            checks.append(f"NO  {words} {shown}, at least {least:g} is asked")
        else:
            checks.append(f"ok  {words} is {value:.4g} (at least {least:g})")
    return checks


def _against(tracker: tracking.Tracker, candidate: Any, champion: Any, gates: Gates) -> str:
    """Paired on the cases that both were tested on."""
    own, other = (_case_dice(tracker, version) for version in (candidate, champion))
    common = sorted(own.keys() & other.keys())
    if not common:
        return (
            f"NO  it shares no test case with the {CHAMPION} (version {champion.version}); test both on the same data"
        )
    difference = sum(own[c] - other[c] for c in common) / len(common)
    words = f"mean Dice is {difference:+.4f} against version {champion.version} on {len(common)} common cases"
    return f"{'ok ' if difference >= -gates.tolerance else 'NO '} {words} (at least {-gates.tolerance:g})"


def _case_dice(tracker: tracking.Tracker, version: Any) -> dict[str, float]:
    try:
        with quiet_mlflow(tracker):
            path = tracker.client.download_artifacts(version.run_id, "evaluation/cases.parquet")
    except (MlflowException, OSError):
        return {}
    rows = pq.read_table(path).to_pylist()
    return {r["case"]: float(r["dice"]) for r in rows if r.get("dice") is not None}
