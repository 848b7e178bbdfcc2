"""Scores of two models on cases that neither has seen: as they were recorded at registration, or measured anew."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case, for_model, read_cohort
from ldseg.data.content import content_digests
from ldseg.orchestration.promotion.verdict import Check, Row
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import CASES, quiet_mlflow
from ldseg.posterior.draws import Draws

MEASURE = "measure both on the same cases by --data DIR"


@dataclass(frozen=True)
class Scores:
    """The rows of one model and where they come from; `problem` says why there are none that can be trusted."""

    rows: tuple[Row, ...] = ()
    machine: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Used:
    """What a model was trained or selected on, from its card.

    Attributes:
        names: of the cases.
        contents: digests of their images, as far as the card holds them.
        hashed: the card holds them of every case.
        stated: the card has a split at all.
    """

    names: frozenset[str]
    contents: frozenset[str]
    hashed: bool
    stated: bool

    def seen_by(self, name: str, content: str) -> str:
        """ "name" or "content" where the model has seen the case, "" where not."""
        return "name" if name in self.names else "content" if content and content in self.contents else ""


@dataclass(frozen=True)
class Evidence:
    """Rows of cases that neither model has seen; `other` is None without a champion, else of the same cases."""

    own: list[Row]
    other: list[Row] | None
    checks: list[Check]
    source: str
    data: dict[str, Any] = field(default_factory=dict)


def used_cases(card: Mapping[str, Any]) -> Used:
    """The training and validation cases of a model."""
    split, contents = card.get("split"), card.get("content") or {}
    names = {name for part in ("train", "validation") for name in (split or {}).get(part, ())}
    known = frozenset(contents[name] for name in names if name in contents)
    return Used(frozenset(names), known, names <= contents.keys(), split is not None)


def recorded(tracker: mlflow_client.Tracker, version: Any) -> Scores:
    """The rows that were stored with a version, checked against the digest that was registered with it."""
    words = f"version {version.version}"
    try:
        # a folder of our own: MLflow leaves what it downloads, names of cases too, in the folder for temporary files
        with quiet_mlflow(tracker), TemporaryDirectory() as folder:
            path = tracker.client.download_artifacts(version.run_id, f"evaluation/{CASES}", folder)
            content = Path(path).read_bytes()
            machine = tracker.client.get_run(version.run_id).data.tags
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (MlflowException, OSError, pa.ArrowInvalid):
        return Scores(problem=f"{words} was registered without its scores: {MEASURE}")
    wanted = version.tags.get("evidence")
    if wanted and wanted != "sha256:" + hashlib.sha256(content).hexdigest():
        return Scores(problem=f"the scores of {words} are not those that were registered with it: {MEASURE}")
    digests = {row["model_digest"] for row in rows if row.get("model_digest")}
    if digests - {version.tags.get("digest")}:
        return Scores(problem=f"the scores of {words} are of another model: {MEASURE}")
    return Scores(tuple(rows), f"{machine.get('ldseg.host', '')}, {machine.get('ldseg.machine', '')}")


def measure(
    own: Bundle, other: Bundle | None, data: Path | str, draws: Draws, say: Callable[[str], None]
) -> tuple[Scores, Scores | None]:
    """Score both models on the labelled cases of a cohort that neither has seen.

    Raises:
        CohortError: there is no usable cohort, no case that neither model has seen, or its structures have other names.
    """
    # its metrics take seconds to import, and recorded scores don't need them
    from ldseg.evaluation.evaluate import evaluate

    cohort = read_cohort(data, foreground_only=own.config.data.foreground_only)
    cases = unseen(own, other, [case for case in cohort.cases if case.labels])
    if not cases:
        return Scores(problem=f"the models have seen every labelled case of {data}; give cases they have not"), None
    say(f"measuring on {len(cases)} cases of {cohort.name} ({draws.samples} samples each) ...")
    rows: dict[str, list[Row]] = {"own": [], "other": []}
    bundles = [(name, bundle) for name, bundle in (("own", own), ("other", other)) if bundle is not None]
    read = {}  # each model's cases: their labels are its classes by name
    for name, bundle in bundles:
        matched, by_number = for_model(replace(cohort, cases=tuple(cases)), bundle.config.data)
        read[name] = matched.cases
        if by_number:
            say(by_number)
        evaluate(bundle, matched.cases[:1], replace(draws, samples=1))  # the first call pays for what is loaded
    for number in range(len(cases)):  # in turns, so that what else the machine does falls on both models' seconds
        for name, bundle in bundles if number % 2 else bundles[::-1]:
            rows[name] += evaluate(bundle, [read[name][number]], draws).rows
    return Scores(tuple(rows["own"]), "here"), Scores(tuple(rows["other"]), "here") if other is not None else None


def unseen(own: Bundle, other: Bundle | None, cases: Sequence[Case]) -> list[Case]:
    """The cases that are in no training or validation set of the models, by name and by content."""
    used = [used_cases(bundle.card) for bundle in (own, other) if bundle is not None]
    candidates = [case for case in cases if not any(u.seen_by(case.name, "") for u in used)]
    contents = content_digests(candidates, own.config.data)
    return [case for case in candidates if not any(u.seen_by("", contents.get(case.name, "")) for u in used)]


def held_out(
    own: Scores, other: Scores | None, cards: Sequence[Mapping[str, Any]], *, source: str, timed: bool = True
) -> Evidence:
    """The rows to judge by: labelled cases that neither model has seen, each once, and both models' rows of them.

    Args:
        own, other: of the challenger and of the champion, if there is one.
        cards: of the challenger and of the champion.
        source: where the scores come from, in words.
        timed: the seconds are compared, so both must have been measured on one machine.
    """
    problem = own.problem or (other.problem if other else "")
    if problem:
        check = Check(gate="held-out cases", passed=False, words=problem)
        return Evidence([], None if other is None else [], [check], source)
    used = [used_cases(card) for card in cards]
    rows, notes = _unseen_rows(own.rows, used)
    checks = []
    champion: list[Row] | None = None
    if other is not None:
        rows, champion, further = _pairs(rows, other.rows)
        notes += further
        checks = [*_failed(own.rows, other.rows), *_same_settings(rows, champion)]
        if timed and own.machine != other.machine:
            words = f"seconds were measured on {own.machine} and on {other.machine}: {MEASURE}"
            checks.append(Check(gate="same machine", passed=False, words=words))
    data = {row["case"]: row.get("content") or "" for row in rows}
    return Evidence(rows, champion, [_held_out_check(rows, used, notes), *checks], source, data)


def _unseen_rows(rows: Iterable[Row], used: Sequence[Used]) -> tuple[list[Row], list[str]]:
    kept: dict[str, Row] = {}
    left = {"name": 0, "content": 0, "twice": 0}
    for row in rows:
        dice = row.get("dice")
        if row.get("error") or dice is None or math.isnan(dice):
            continue
        content = row.get("content") or ""
        why = next((found for u in used if (found := u.seen_by(row["case"], content))), "")
        key = content or f"name:{row['case']}"
        if why or key in kept:
            left[why or "twice"] += 1
        else:
            kept[key] = row
    words = {
        "name": "left out by name, a model has seen them",
        "content": "left out by content, a model has seen them under another name",
        "twice": "left out, the same image is there twice",
    }
    return list(kept.values()), [f"{count} {words[why]}" for why, count in left.items() if count]


def _pairs(own: Sequence[Row], other: Sequence[Row]) -> tuple[list[Row], list[Row], list[str]]:
    """Rows of the same image with the same labels: by content where both know it, else by name."""
    good = [row for row in other if not row.get("error") and row.get("dice") is not None]
    by_content = {row["content"]: row for row in good if row.get("content")}
    by_name = {row["case"]: row for row in good}
    pairs, changed = [], 0
    for row in own:
        match = by_content.get(row.get("content") or "") or by_name.get(row["case"])
        if match is None:
            continue
        if any(row.get(c) and match.get(c) and row[c] != match[c] for c in ("content", "labels")):
            changed += 1
        else:
            pairs.append((row, match))
    notes = [f"{changed} left out, their image or labels differ between the two scorings"] if changed else []
    if missing := len(own) - changed - len(pairs):
        notes.append(f"{missing} left out, the champion has no score of them")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], notes


def _failed(rows: Sequence[Row], other: Sequence[Row]) -> list[Check]:
    good = {row["case"] for row in other if not row.get("error")}
    broken = sorted(row["case"] for row in rows if row.get("error") and row["case"] in good)
    if not broken:
        return []
    words = f"the challenger fails on {len(broken)} cases that the champion segments, such as {broken[0]}"
    return [Check(gate="broken cases", passed=False, words=words)]


def _same_settings(own: Sequence[Row], other: Sequence[Row]) -> list[Check]:
    drawn = [sorted({row["samples"] for row in rows if row.get("samples")}) for rows in (own, other)]
    if not all(drawn) or drawn[0] == drawn[1]:
        return []
    words = f"the challenger was scored with {drawn[0]} samples a case, the champion with {drawn[1]}: {MEASURE}"
    return [Check(gate="same samples", passed=False, words=words)]


def _held_out_check(rows: Sequence[Row], used: Sequence[Used], notes: Sequence[str]) -> Check:
    titles = ("challenger", "champion")
    facts = [f"{len(rows)} cases that no model was trained or selected on", *notes]
    facts += [
        f"the {title}'s card has no content hashes of its training cases, so they are known by name only"
        for title, u in zip(titles, used, strict=False)
        if u.stated and not u.hashed
    ]
    if any(not row.get("content") for row in rows):
        facts.append("the scores have no content hashes, so their cases are known by name only")
    passed = used[0].stated
    facts += [
        f"the {title}'s card does not say what it was trained on"
        for title, u in zip(titles, used, strict=False)
        if not u.stated
    ]
    return Check(gate="held-out cases", passed=passed, words="; ".join(facts))
