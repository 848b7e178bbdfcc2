"""Which cases come first, and why."""

from __future__ import annotations

import random

import pytest

from serve.api.review.attention import FEW, REASONS, Line, rank
from serve.store.records import width_of


def done(number: int, **more: float | bool | None) -> Line:
    told = {"agreement": 0.9, "width": 0.1} | more
    return Line(number=number, name=f"c{number}", state="done", **told)


def test_unfamiliar_and_failed_cases_come_before_the_worst_and_these_before_the_rest() -> None:
    lines = [done(k, agreement=0.5 + k / 100, width=0.3 - k / 100) for k in range(20)]
    lines[7] = done(7, agreement=0.99, unfamiliar=True)
    lines[9] = Line(number=9, name="c9", state="failed")
    lines.append(Line(number=20, name="c20", state="queued"))
    random.Random(0).shuffle(lines)
    found = rank(lines)
    assert found.order[:2] == (7, 9) and found.order[-1] == 20
    assert found.reasons["c7"] == ("unfamiliar",) and found.reasons["c9"] == ("failed",)
    # of the eighteen others the two with the lowest agreement have the widest intervals too
    assert {name for name in found.reasons if name not in ("c7", "c9")} == {"c0", "c1"}
    assert found.reasons["c0"] == ("wide-interval", "low-agreement")
    assert found.order[2:-1] == tuple(k for k in range(20) if k not in (7, 9))


def test_the_worst_by_one_measure_alone_is_found_with_its_reason() -> None:
    lines = [done(k, agreement=0.9 + k / 1000) for k in range(10)]
    lines[4] = done(4, agreement=0.2)
    lines[6] = done(6, width=1.9)
    found = rank(lines)
    assert found.reasons == {"c6": ("wide-interval",), "c4": ("low-agreement",)}
    assert found.order[:2] == (6, 4)


@pytest.mark.parametrize("count", [0, 1, FEW - 1])
def test_a_few_cases_have_no_worst_one(count: int) -> None:
    assert rank([done(k, agreement=k / 10) for k in range(count)]).reasons == {}


def test_cases_that_are_all_alike_have_no_worst_one() -> None:
    assert rank([done(k) for k in range(30)]).reasons == {}


def test_cases_without_numbers_are_ranked_last_of_their_kind() -> None:
    lines = [done(0, agreement=None, width=None), *(done(k, agreement=k / 10) for k in range(1, 8))]
    assert rank(lines).order[-1] == 0 and "c0" not in rank(lines).reasons


def test_every_reason_is_in_the_order_of_its_gravity() -> None:
    assert tuple(REASONS) == ("unfamiliar", "failed", "wide-interval", "low-agreement")


def test_the_width_is_that_of_the_promised_interval_over_its_middle() -> None:
    organ = {"organ_volume_ml_p05": 9.0, "organ_volume_ml_p50": 10.0, "organ_volume_ml_p95": 11.0}
    assert width_of({"numbers": organ}) == pytest.approx(0.2)
    assert width_of({"numbers": organ | {"organ_volume_ml_low": 5.0, "organ_volume_ml_high": 15.0}}) == pytest.approx(1)
    gone = {"lesion_volume_ml_p05": 0.0, "lesion_volume_ml_p50": 0.0, "lesion_volume_ml_p95": 0.0}
    assert width_of({"numbers": gone}) == 0 and width_of({"numbers": organ | gone}) == pytest.approx(0.2)
    assert width_of(None) is None and width_of({"numbers": {"organ_volume_ml_p50": 1.0}}) is None
    assert width_of({"numbers": organ | {"organ_volume_ml_p05": float("nan")}}) is None
