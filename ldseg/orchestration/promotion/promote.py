"""Promotion of a registered model: evidence through gates, a record of every decision, a rollback in one step."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg.bundle import Bundle, load_bundle
from ldseg.data.cohort import read_cohort
from ldseg.orchestration.promotion.champion import commit, settle, state
from ldseg.orchestration.promotion.evidence import Evidence, held_out, measure, recorded
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.integrity import examine
from ldseg.orchestration.promotion.journal import champions, locked
from ldseg.orchestration.promotion.verdict import Check, Decision, judge
from ldseg.orchestration.tracking import mlflow_client, provenance
from ldseg.orchestration.tracking.registry import CHAMPION, RegistryError, fetch, find_version, versions
from ldseg.posterior.draws import Draws


@dataclass(frozen=True)
class Measurement:
    """A cohort to score both models on now.

    Attributes:
        device: where the models run.
        say: is told what takes long.
    """

    data: Path | str
    device: str = "cpu"
    say: Callable[[str], None] = print


def promote(
    tracker: mlflow_client.Tracker,
    name: str,
    version: int | str | None,
    gates: Gates,
    measurement: Measurement | None = None,
    *,
    reason: str = "",
    dry_run: bool = False,
) -> Decision:
    """Check a version and move the alias if every gate holds and the champion is still the one it was measured against.

    Args:
        version: a number, an alias such as "challenger", or None for the newest.
        measurement: what to score both models on now; None takes the scores that were recorded at registration.
        reason: why, for the history.
        dry_run: decide, change nothing.

    Raises:
        RegistryError: there is no such model or version.
        HistoryError: the history was changed.
        CohortError: `measurement.data` is no usable cohort.
    """
    notes = _mended(tracker, name, dry_run)
    candidate = _find(tracker, name, version)
    champion = _champion(tracker, name)
    before = None if champion is None else int(champion.version)
    already = Decision(
        name=name, version=int(candidate.version), before=None, action="none", notes=notes, dry_run=dry_run
    )
    if before == already.version:
        return already
    checks, evidence = _weigh(tracker, candidate, champion, gates, measurement)
    decision = Decision(
        name=name, version=int(candidate.version), before=before,
        action="promote" if all(check.passed for check in checks) else "refuse",
        checks=tuple(checks), notes=notes, source=evidence.source, gates=gates, dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        return decision
    with locked(tracker.home):
        now = state(tracker, name).champion
        if now == already.version:
            return already  # another promotion of the same version was first
        if now != before:
            words = f"it was measured against {_version(before)}, but now it is {_version(now)}: promote again"
            lost = Check(gate="same champion", passed=False, words=words)
            decision = dataclasses.replace(decision, action="refuse", before=now, checks=(*checks, lost))
        content = _content(decision, candidate, champion, evidence, reason)
        commit(tracker, content, move=decision.action == "promote")
    return decision


def rollback(tracker: mlflow_client.Tracker, name: str, *, reason: str = "", dry_run: bool = False) -> Decision:
    """Give the alias back to the champion before.

    A promotion whose process was killed before the alias moved is withdrawn; a rollback that was killed is finished.

    Raises:
        RegistryError: there was no earlier champion.
        HistoryError: the history was changed.
    """
    with contextlib.nullcontext() if dry_run else locked(tracker.home):
        found = state(tracker, name)
        notes = (found.describe(),) if found.describe() else ()
        pending = found.pending
        if pending is not None and pending["action"] == "rollback":
            if not dry_run:
                settle(tracker, name)
            return Decision(
                name=name, version=pending["version"], before=found.champion, action="rollback", notes=notes,
                dry_run=dry_run,
            )  # fmt: skip
        if (found.problem == "outside") and not dry_run:
            settle(tracker, name)
        stack = champions([*found.records])
        if (found.problem == "outside") and found.champion is not None:
            stack.append(found.champion)
        target = _before(stack, found.champion, pending is not None)
        if target is None:
            raise RegistryError(f"{name} had no {CHAMPION} before; promote a version instead")
        candidate = find_version(tracker, f"models:/{name}/{target}")
        checks = [_as_promoted(tracker, candidate, found.records)]
        passed = all(check.passed for check in checks)
        decision = Decision(
            name=name, version=target, before=pending["version"] if pending else found.champion,
            action="rollback" if passed else "refuse",
            checks=tuple(checks), notes=notes, dry_run=dry_run,
        )  # fmt: skip
        if not dry_run:
            champion = _champion(tracker, name)
            commit(tracker, _content(decision, candidate, champion, None, reason), move=passed)
    return decision


def _before(stack: list[int], champion: int | None, pending: bool) -> int | None:
    """The champion before; where the alias is gone, the last one."""
    if champion is None and not pending:
        return stack[-1] if stack else None
    return stack[-2] if len(stack) > 1 else None


def _as_promoted(tracker: mlflow_client.Tracker, candidate: Any, records: Sequence[dict[str, Any]]) -> Check:
    """A version is given back only with the files of its digest, and that the one it was promoted with."""
    known = {r["digest"] for r in records if r.get("version") == int(candidate.version) and r.get("digest")}
    try:
        with tempfile.TemporaryDirectory() as folder:
            fetch(tracker, candidate, Path(folder))
    except RegistryError as error:
        return Check(gate="bundle digest", passed=False, words=str(error))
    same = not known or candidate.tags["digest"] in known
    words = f"{candidate.tags['digest'][:19]}..., " + ("as promoted" if same else "not as promoted; promote another")
    return Check(gate="bundle digest", passed=same, words=words)


def _mended(tracker: mlflow_client.Tracker, name: str, dry_run: bool) -> tuple[str, ...]:
    words = state(tracker, name).describe()
    if not words or dry_run:
        return (words,) if words else ()
    with locked(tracker.home):
        return tuple(settle(tracker, name))


def _find(tracker: mlflow_client.Tracker, name: str, version: int | str | None) -> Any:
    if version is None:
        known = versions(tracker, name)
        if not known:
            raise RegistryError(f"{name} has no version yet; register one by platform/tune.py")
        version = int(known[-1].version)
    return find_version(tracker, f"models:/{name}{'/' if str(version).isdigit() else '@'}{version}")


def _champion(tracker: mlflow_client.Tracker, name: str) -> Any | None:
    version = tracker.client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else tracker.client.get_model_version(name, str(version))


def _weigh(
    tracker: mlflow_client.Tracker,
    candidate: Any,
    champion: Any | None,
    gates: Gates,
    measurement: Measurement | None,
) -> tuple[list[Check], Evidence]:
    """Every gate, the scores' first."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        cases = () if measurement is None else read_cohort(measurement.data).cases
        bundle, checks = examine(tracker, candidate, gates, Path(one), cases)
        if bundle is None:
            return checks, Evidence([], None, [], "")
        try:
            other = None if champion is None else load_bundle(fetch(tracker, champion, Path(two)))
        except RegistryError as error:
            why = f"the champion can't be compared with, give the alias back by --rollback: {error}"
            return [Check(gate="champion", passed=False, words=why), *checks], Evidence([], None, [], "")
        evidence = _evidence(tracker, (candidate, champion), (bundle, other), gates, measurement)
    scores = judge(evidence.own, evidence.other, gates, bundle.config.data.structures)
    return [*scores, *evidence.checks, *_structures(bundle, other), *checks], evidence


def _evidence(
    tracker: mlflow_client.Tracker,
    versions: tuple[Any, Any | None],
    bundles: tuple[Bundle, Bundle | None],
    gates: Gates,
    measurement: Measurement | None,
) -> Evidence:
    timed = gates.values()["margins"]["seconds_factor"] != "inf"
    cards = [bundle.card for bundle in bundles if bundle is not None]
    if measurement is None:
        own, other = (None if version is None else recorded(tracker, version) for version in versions)
        assert own is not None
        return held_out(own, other, cards, source="scores as recorded at registration", timed=timed)
    draws = Draws(gates.cases.samples, device=measurement.device)
    own, other = measure(*bundles, measurement.data, draws, measurement.say)
    return held_out(own, other, cards, source=f"scores measured now on {measurement.data}", timed=timed)


def _structures(own: Bundle, other: Bundle | None) -> list[Check]:
    if other is None:
        return []
    lost = [s for s in other.config.data.structures if s not in own.config.data.structures]
    words = f"the challenger does not know the champion's {', '.join(lost)}" if lost else "all that the champion knows"
    return [Check(gate="structures", passed=not lost, words=words)]


def _content(
    decision: Decision, candidate: Any, champion: Any | None, evidence: Evidence | None, reason: str
) -> dict[str, Any]:
    """What the history keeps of a decision."""
    content: dict[str, Any] = {
        "action": decision.action,
        "name": decision.name,
        "version": decision.version,
        "before": decision.before,
        "reason": reason,
        "digest": candidate.tags.get("digest", ""),
        "calibration": candidate.tags.get("calibration", ""),
        "before_digest": "" if champion is None else champion.tags.get("digest", ""),
        "commit": provenance.commit(),
        "checks": [dataclasses.asdict(check) for check in decision.checks],
    }
    if evidence is None:
        return content
    data = json.dumps(evidence.data, sort_keys=True).encode()
    return content | {
        "gates": {"source": decision.gates.source, "digest": decision.gates.digest, **decision.gates.values()},
        "scores": evidence.source,
        "data": {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "cases": evidence.data},
    }


def _version(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"
