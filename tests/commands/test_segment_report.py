"""What `ldseg segment` prints of a case: the interval with a promise first, and what the samples say by its name."""

from __future__ import annotations

import pytest

from ldseg.commands.segment import report

SAMPLES = {"organ_volume_ml_p05": 9.0, "organ_volume_ml_p50": 10.0, "organ_volume_ml_p95": 11.0}
PROMISED = {"organ_volume_ml_low": 8.0, "organ_volume_ml_high": 12.5}


def printed(capsys: pytest.CaptureFixture[str], **more: float | None) -> list[str]:
    report([{"case": "a", "state": "done", "agreement": 0.9, "error": "", **SAMPLES, **more}])
    return capsys.readouterr().out.splitlines()


def test_the_promise_comes_before_what_the_samples_say(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **PROMISED)
    assert lines[1].endswith("8 to 12.5 calibrated, 10 (samples 9 to 11)") and "5th to 95th percentile" in lines[2]


def test_an_unfamiliar_case_is_promised_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, **PROMISED, unfamiliar=1)
    assert "8 to 12.5 not promised, 10" in lines[1] and not any("calibrated" in line for line in lines)


def test_without_a_calibration_the_percentiles_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, organ_volume_ml_low=None, organ_volume_ml_high=None)
    assert lines[1].endswith("  10 (samples 9 to 11)") and lines[2].startswith("samples: 5th to 95th percentile")
