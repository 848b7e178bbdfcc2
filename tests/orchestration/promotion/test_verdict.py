import numpy as np
import pytest
from registered import CASES, scores

from ldseg.orchestration.promotion.evidence import Scores, held_out
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.verdict import judge, table

GATES = Gates()
STRUCTURES = ("organ", "nodule")


def _failed(own, other=None, gates=GATES):
    return [check.gate for check in judge(own, other, gates, STRUCTURES) if not check.passed]


def _without(rows, column):
    return [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.mark.parametrize(
    ("failed", "own"),
    [
        ([], scores(0.75)),
        (["dice"], scores(0.65)),
        (["dice, worst tenth"], scores([0.95] * 10 + [0.02, 0.03], spread=0)),
        (["dice of nodule"], scores(0.9, dice_nodule=0.05)),
        (["cases"], scores(cases=CASES[:2])),
        (["cases"], []),
        ([], _without(scores(), "energy_score")),
        ([], _without(scores(), "nll")),
    ],
)
def test_without_a_champion_each_floor_decides_on_its_own(failed, own):
    assert _failed(own) == failed


@pytest.mark.parametrize(
    ("failed", "own"),
    [
        ([], scores(0.9)),
        ([], scores(0.8951)),
        (["dice", "dice of organ", "dice of nodule"], scores(0.885)),
        (["dice, worst tenth"], scores([0.93] * 10 + [0.8, 0.8])),
        (["dice of nodule"], scores(0.93, dice_nodule=0.85)),
        (["energy score"], scores(energy_score=0.106)),
        ([], scores(energy_score=0.104)),
        (["energy score"], scores(energy_score=[0.1] * 11 + [float("nan")])),
        (["nll"], scores(nll=0.106)),
        (["ece"], scores(ece=0.026)),
        (["seconds a case"], scores(seconds=1.6)),
        ([], scores(seconds=1.4)),
        (["nll"], _without(scores(), "nll")),
        (["nll"], scores(nll=[0.1] * 11 + [float("nan")])),
        (["nll"], scores(nll=[0.1] * 11 + [float("inf")])),
    ],
)
def test_against_a_champion_each_margin_decides_on_its_own(failed, own):
    assert _failed(own, scores(0.9)) == failed


def test_ceilings_of_the_file_hold_without_a_champion():
    gates = GATES.with_values(floors__energy_score=0.09, floors__nll=0.09, floors__seconds=0.5)
    assert _failed(scores(), None, gates) == ["energy score", "nll", "seconds a case"]
    assert _failed(_without(scores(), "energy_score"), None, gates)[0] == "energy score", "a floor must be shown"


def test_what_the_champion_was_not_scored_on_must_be_measured():
    checks = judge(scores(), _without(scores(), "ece"), GATES, STRUCTURES)
    words = [check.words for check in checks if not check.passed]
    assert words == ["not known of the champion for every case: score it by --data DIR"]


@pytest.mark.parametrize(
    ("own", "other", "who"),
    [
        (scores(), _without(scores(), "energy_score"), "the champion"),
        (_without(scores(), "energy_score"), scores(), "the challenger"),
        (_without(scores(), "energy_score"), _without(scores(), "energy_score"), "the challenger and the champion"),
    ],
)
def test_who_was_scored_when_there_was_no_energy_score_is_told_and_not_held(own, other, who):
    checks = judge(own, other, GATES, STRUCTURES)
    assert all(check.passed for check in checks)
    sentence = f"energy score: not comparable, {who} was scored before LDSeg 0.2: score it by --data DIR"
    assert f"ok  {sentence}" in table(checks, "version 2", "version 1", GATES).splitlines()
    some = [{**row, "energy_score": None} if n else row for n, row in enumerate(scores())]
    assert _failed(own, some) == (["energy score"] if who == "the champion" else []), "a gap is no earlier version"
    floor = GATES.with_values(floors__energy_score=0.05)
    assert _failed(own, other, floor) == ["energy score"], "a floor holds whoever the champion is"


def test_a_model_whose_samples_are_all_alike_is_worse_by_the_energy_score():
    """Its single answer as far from the labels as the champion's samples, without their spread."""
    champion = scores(energy_score=0.2 - 0.1 / 2)
    assert _failed(scores(energy_score=0.2), champion) == ["energy score"]


def test_judged_by_the_bound_a_lucky_mean_is_not_enough():
    own = scores(0.9 + np.array([0.06, -0.05] * 6))
    wide = GATES.with_values(margins__worst_decile_dice=1.0)
    assert _failed(own, scores(), wide) == []
    strict = wide.with_values(cases__judge_by="bound")
    assert _failed(own, scores(), strict) == ["dice", "dice of organ", "dice of nodule"]


def test_the_paired_bootstrap_draws_patients_where_both_scorings_name_them():
    """Twelve cases of six patients, two equal ones each: the interval is that of six cases."""
    dice = 0.9 + 0.01 * np.random.default_rng(0).normal(size=6)
    twice = {"dice": np.repeat(dice, 2), "spread": 0}
    patients = [f"p{n // 2}" for n in range(12)]

    def interval(own, other):
        check = next(check for check in judge(own, other, GATES, STRUCTURES) if check.gate == "dice")
        return check.low, check.high

    half = pytest.approx(interval(scores(dice, CASES[:6], spread=0), scores(cases=CASES[:6])), rel=1e-10)
    champion = {"dice": np.repeat([row["dice"] for row in scores(cases=CASES[:6])], 2), "spread": 0}
    by_case = interval(scores(**twice), scores(**champion))
    assert interval(scores(**twice, patient=patients), scores(**champion, patient=patients)) == half
    assert interval(scores(**twice, patient=patients), scores(**champion)) == by_case != half
    assert interval(scores(**twice), scores(**champion, patient=patients)) == by_case
    named = scores(**twice, patient=patients)
    named[0]["patient"] = None  # as Parquet gives a cell that is empty
    assert interval(named, scores(**champion, patient=patients)) != half


def test_a_single_patient_is_no_bound_to_judge_by():
    own, other = (scores(dice, patient="p") for dice in (0.92, 0.9))
    assert _failed(own, other) == []
    strict = GATES.with_values(cases__judge_by="bound")
    assert "dice" in _failed(own, other, strict)


def test_the_table_shows_both_models_the_difference_its_interval_and_what_is_asked():
    own = scores(0.88 + np.random.default_rng(0).normal(0, 0.01, 12))
    checks = judge(own, scores(0.9), GATES, STRUCTURES)
    dice = next(check for check in checks if check.gate == "dice")
    assert dice.low < dice.difference < dice.high < 0
    lines = table(checks, "version 2", "version 1", GATES).splitlines()
    assert lines[0].endswith(" asked") and "difference [95% interval]" in lines[0]
    line = next(line for line in lines if line.startswith("NO  dice  "))
    assert f"{dice.difference:+.4f} [{dice.low:+.4f}, {dice.high:+.4f}]" in line
    assert line.endswith(">= 0.7, difference >= -0.005")
    assert any(line.startswith("ok  seconds a case") and "x 1.00 [1.00, 1.00]" in line for line in lines)
    assert "NO  dice: worse than the champion by more than the margin on 12 cases (the difference decides)" in lines


def _card(train=(), validation=(), contents=None):
    split = {"split": {"train": list(train), "validation": list(validation), "test": []}}
    return split if contents is None else split | {"content": contents}


def _words(evidence, gate="held-out cases"):
    return next(check.words for check in evidence.checks if check.gate == gate)


def _held_out(own, other=None, *cards):
    cards = cards or (_card(),) * 2
    return held_out(Scores(tuple(own)), None if other is None else Scores(tuple(other)), cards, source="")


def test_cases_that_either_model_has_seen_do_not_count_also_under_another_name():
    champion = _card(["a"], ["b"], {"a": "sha256:image-case00", "b": "sha256:image-case01"})
    found = _held_out(scores(), scores(), _card(["case05"], (), {"case05": "sha256:elsewhere"}), champion)
    assert [row["case"] for row in found.own] == [c for c in CASES if c not in ("case00", "case01", "case05")]
    assert [row["case"] for row in found.other] == [row["case"] for row in found.own]
    words = _words(found)
    assert words.startswith("9 cases that no model was trained or selected on; 1 left out by name")
    assert "2 left out by content, a model has seen them under another name" in words
    assert "by name only" not in words
    assert set(found.data) == {row["case"] for row in found.own} and found.data["case02"] == "sha256:image-case02"


def test_old_bundles_and_old_scores_fall_back_to_names_and_the_table_says_so():
    found = _held_out(_without(scores(), "content"), scores(), _card(["case00"]), _card(["x"]))
    assert len(found.own) == 11 and all(check.passed for check in found.checks)
    for words in (
        "the challenger's card has no content hashes of its training cases, so they are known by name only",
        "the champion's card has no content hashes of its training cases",
        "the scores have no content hashes, so their cases are known by name only",
    ):
        assert words in _words(found)


def test_a_challenger_that_does_not_say_what_it_was_trained_on_is_held():
    found = _held_out(scores(), None, {})
    assert not found.checks[0].passed
    assert "the challenger's card does not say what it was trained on" in _words(found)


def test_the_same_image_counts_once_and_rows_pair_by_content_across_names():
    own = scores()
    twice = [*own, {**own[0], "case": "copy"}]
    renamed = [{**row, "case": f"other-{row['case']}", "dice": 0.5} for row in own[::-1]]
    found = _held_out(twice, renamed)
    assert [row["case"] for row in found.other] == [f"other-{case}" for case in CASES]
    assert "1 left out, the same image is there twice" in _words(found)


def test_a_name_with_another_image_or_other_labels_is_no_pair():
    other = scores()
    other[0]["content"], other[1]["labels"] = "sha256:new", "sha256:drawn-again"
    found = _held_out(scores(), other[:-1])
    assert [row["case"] for row in found.own] == list(CASES[2:-1])
    words = _words(found)
    assert "2 left out, their image or labels differ between the two scorings" in words
    assert "1 left out, the champion has no score of them" in words


def test_a_case_on_which_only_the_challenger_fails_holds_it():
    own = scores()
    own[3] = {"case": "case03", "error": "case03: out of range; crop it"}
    found = _held_out(own, scores())
    assert len(found.own) == 11
    assert _words(found, "broken cases") == (
        "the challenger fails on 1 cases that the champion segments, such as case03"
    )
    other = scores()
    other[3] = own[3]
    assert all(check.passed for check in _held_out(own, other).checks)


def test_seconds_of_two_machines_and_scores_of_different_samples_are_not_compared():
    rows = tuple(scores())
    cards = (_card(), _card())
    found = held_out(Scores(rows, "a, 2 cores"), Scores(rows, "b, 64 cores"), cards, source="")
    assert "seconds were measured on a, 2 cores and on b, 64 cores: measure both" in _words(found, "same machine")
    assert len(held_out(Scores(rows, "a"), Scores(rows, "b"), cards, source="", timed=False).checks) == 1
    fewer = _held_out(scores(samples=4), scores())
    assert "scored with [4] samples a case, the champion with [8]" in _words(fewer, "same samples")
