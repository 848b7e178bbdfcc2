"""What a client may ask for is bounded where it is asked: every product of sizes, not each factor alone."""

from __future__ import annotations

from typing import Any

import pytest

from serve.http.problems import Problem
from serve.intake.requests import CohortRequest
from serve.settings import Settings

SETTINGS = Settings(model="m")
ADAPTIVE = {"min": 8, "max": 200, "tolerance": 1e-9}


def check(**asked: Any) -> None:
    cases = [{"name": "a", "image": "a.nii.gz"}]
    CohortRequest.model_validate({"cases": cases} | asked).check(SETTINGS, SETTINGS.max_steps)


def test_as_much_as_is_allowed_is_taken() -> None:
    check(samples=256, steps=100)
    check(samples={"min": 8, "max": 256, "tolerance": 1e-9})
    check(samples=32, models=["models:/m/1"] * 8)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"steps": 101}, "steps: at most 100 of a sample here, got 101"),
        ({"samples": 257}, "samples: at most 256 of a case here, got 257"),
        ({"samples": ADAPTIVE | {"max": 257}}, "samples: at most 256 of a case here, got 257"),
        ({"samples": 33, "models": ["m"] * 8}, "samples: at most 256 of a case here, got 33 of each of 8 models"),
        ({"samples": ADAPTIVE, "models": ["m"] * 2}, "got 200 of each of 2 models"),
    ],
)
def test_one_more_is_refused_by_a_sentence_that_names_the_limit(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Problem) as caught:
        check(**asked)
    assert sentence in str(caught.value.detail)
