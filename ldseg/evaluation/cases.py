"""Which cases a model is scored on, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ldseg.data.cohort import Case, Cohort
from ldseg.data.errors import CaseError, CohortError
from ldseg.data.remote import local_path

TruePosterior = Callable[[str, int], np.ndarray]
"""(case, n) -> n fresh draws of the labels' true distribution, (n, *native) class indices."""


def select_cases(cohort: Cohort, card: dict[str, Any], split: str) -> tuple[tuple[Case, ...], str]:
    """The cases of a split such that what a model was trained on is never scored as held out.

    The split that the model's card holds by case name wins where the cohort has those cases; else it is the cohort's
    own, without the cases that the model was trained or selected on.

    Args:
        card: of a bundle; card["split"] = {"train": [names], "validation": [...], "test": [...]}, if there is one.
        split: "train", "validation", "test" or "all".

    Returns:
        The cases, and a sentence that says whose split they are.

    Raises:
        CohortError: no case is left.
    """
    everything = cohort.split("all")
    if split == "all":
        return everything, f"all {len(everything)} cases of {cohort.name}"
    stored: dict[str, list[str]] = card.get("split") or {}
    wanted = set(stored.get(split, ()))
    chosen = tuple(case for case in everything if case.name in wanted)
    if chosen:
        return chosen, f"{len(chosen)} of the {len(wanted)} {split} cases that are stored with the model"
    if not any(case.labels for case in everything):
        return everything, f"all {len(everything)} cases of {cohort.name}, which has no labels and so no split"
    used = {name for other, names in stored.items() if other != split for name in names}
    kept = tuple(case for case in cohort.split(split) if case.name not in used)
    if not kept:
        raise CohortError(
            f"the model was trained or selected on every case of the {split} split of {cohort.name}; "
            "give other data, or --split all to score it on data that it has seen"
        )
    return kept, f"the {len(kept)} {split} cases of {cohort.name}'s own split (the model's card names none of them)"


def left_out(cohort: Cohort, card: dict[str, Any], split: str) -> tuple[CaseError, ...]:
    """Of the cases that `select_cases` is asked for those that are listed and can't be used."""
    stored: dict[str, list[str]] = card.get("split") or {}
    wanted = set(stored.get(split, ()))
    if split == "all" or not any(case.labels for case in cohort.cases):
        return cohort.problems
    if any(case.name in wanted for case in cohort.cases):
        return tuple(problem for problem in cohort.problems if problem.case in wanted)
    used = {name for other, names in stored.items() if other != split for name in names}
    meant = (problem for problem in cohort.problems if cohort.splits.get(problem.case, "") in (split, ""))
    return tuple(problem for problem in meant if problem.case not in used)


def reference_cases(cohort: Cohort, card: dict[str, Any], most: int = 200) -> tuple[Case, ...]:
    """The cases of a cohort that a model was trained on, by its card; evenly spread ones if there are more than `most`.

    None where the card names none: the cohort's own split may not be the model's.
    """
    trained = set((card.get("split") or {}).get("train", ()))
    found = [case for case in cohort.cases if case.name in trained]
    stride = max(1.0, len(found) / most)
    return tuple(found[int(k * stride)] for k in range(min(most, len(found))))


def known_posterior(data: Path | str, *, seed: int = 0) -> TruePosterior | None:
    """The true posterior of a phantom cohort, None for other data.

    Args:
        data: the cohort's folder or manifest, or their address.
        seed: of the fresh draws, which don't depend on the order of the cases.
    """
    from ldseg.data.phantom.cohort import draw_posterior, read_parameters  # with SciPy, for phantoms alone

    path = local_path(data)
    root = path if path.is_dir() else path.parent
    if not (root / "phantom.json").is_file():
        return None
    parameters = read_parameters(root)

    def draw(case: str, n: int) -> np.ndarray:
        return draw_posterior(parameters[case], n, np.random.default_rng([seed, *case.encode()]))

    return draw
