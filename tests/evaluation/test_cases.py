"""Which cases of a cohort a model is scored on."""

from __future__ import annotations

from pathlib import Path

import pytest
from scored import cohort_of

from ldseg.data.cohort import Case
from ldseg.data.errors import CohortError
from ldseg.evaluation.cases import select_cases


def test_a_models_stored_split_wins_over_the_cohorts(tmp_path: Path) -> None:
    names, splits = ("a", "b", "c", "d"), ("test", "test", "train", "train")
    cases = [Case(name=n, image=Path(n), labels=(Path(n),), split=s) for n, s in zip(names, splits, strict=True)]
    cohort = cohort_of(*cases)
    card = {"split": {"train": ["a"], "validation": ["b"], "test": ["c", "elsewhere"]}}
    chosen, source = select_cases(cohort, card, "test")
    assert [case.name for case in chosen] == ["c"] and "1 of the 2 test cases that are stored with the model" in source
    assert [case.name for case in select_cases(cohort, card, "all")[0]] == list(names)
    assert [case.name for case in select_cases(cohort, {}, "test")[0]] == ["a", "b"]


def test_cases_that_a_model_was_trained_on_never_pass_as_held_out(tmp_path: Path) -> None:
    cases = [Case(name=n, image=Path(n), labels=(Path(n),), split="test") for n in ("a", "b", "c")]
    card = {"split": {"train": ["a"], "validation": ["b"], "test": ["elsewhere"]}}
    chosen, source = select_cases(cohort_of(*cases), card, "test")
    assert [case.name for case in chosen] == ["c"] and "own split" in source
    with pytest.raises(CohortError, match="trained or selected on every case"):
        select_cases(cohort_of(*cases[:2]), card, "test")
    with pytest.raises(CohortError, match="there is no split 'tset'"):
        select_cases(cohort_of(*cases), {}, "tset")


def test_an_unlabelled_folder_is_taken_whole(tmp_path: Path) -> None:
    cohort = cohort_of(*[Case(name=n, image=Path(n)) for n in ("a", "b")])
    chosen, source = select_cases(cohort, {"split": {"test": ["z"]}}, "test")
    assert len(chosen) == 2 and "no labels" in source
