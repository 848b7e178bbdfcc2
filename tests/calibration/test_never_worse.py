"""calibrate never takes a calibration's place with a worse one, unless told to; the older file stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calibrating import bundle_of, write_case

from ldseg.bundle import load_bundle, save_bundle
from ldseg.calibration.familiarity import LEAST_REFERENCE
from ldseg.calibration.file import Worth
from ldseg.commands import calibrate


def cohort(folder: Path, validation: int, train: int = 0, first: int = 0) -> Path:
    lines = ["case,image,label,split"]
    for number, split in enumerate(["validation"] * validation + ["train"] * train, start=first):
        case = write_case(folder, number, 2)
        lines.append(f"{case.name},{case.image.name},{case.labels[0].name},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return cohort(tmp_path_factory.mktemp("data"), 10, LEAST_REFERENCE)


def calibrated(folder: Path, data: Path, *more: str) -> Path:
    """A model whose card names the cohort's split, calibrated with everything there is."""
    bundle = bundle_of(folder)
    split = {"validation": [f"case{n}" for n in range(10)], "train": [f"case{n}" for n in range(10, 20)], "test": []}
    save_bundle(folder, bundle.model, bundle.config, {**bundle.card, "split": split})
    assert run(folder, data, "--missed", "0.3", *more) == 0
    return folder


def run(model: Path, data: Path, *more: str) -> int:
    return calibrate.main(["--model", str(model), "--data", str(data), "--samples", "2", "--alpha", "0.3", *more])


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("one case", "cases: 1 in place of 10; intervals: too few cases"),
        ("another cohort", "familiarity: too few training cases at hand"),
        ("no masks", "cautious masks: no --missed, or too few cases"),
        ("smaller alpha", "intervals: too few cases"),
        ("broken cases", "cases: 9 in place of 10"),
    ],
)
def test_a_worse_calibration_is_refused_and_nothing_written_unless_it_is_to_replace(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, lost: str
) -> None:
    model = calibrated(tmp_path / "model", data)
    good = (model / "calibration.json").read_bytes()
    worth = Worth.of(load_bundle(model).calibration)
    assert worth == Worth(cases=10, intervals=2, masks=worth.masks, familiarity=True) and worth.masks > 0
    files = sorted(model.iterdir())
    other, more = data, ["--missed", "0.3"]
    if change == "one case":
        other = cohort(tmp_path / "other", 1, LEAST_REFERENCE, first=9)
    elif change == "another cohort":
        other = cohort(tmp_path / "other", 10, first=30)
    elif change == "no masks":
        more = []
    elif change == "smaller alpha":
        more += ["--alpha", "0.01"]
    else:
        other = cohort(tmp_path / "other", 10, LEAST_REFERENCE)
        (other / "case3.nii.gz").write_bytes(b"nothing")
    capsys.readouterr()
    assert run(model, other, *more) == 2
    shown = capsys.readouterr()
    assert lost in shown.err and "--replace" in shown.err and shown.err.count("\n") == 1
    assert ("[1/" in shown.out) == (change == "broken cases"), "what is known before is said before the drawing"
    assert (model / "calibration.json").read_bytes() == good and sorted(model.iterdir()) == files

    assert run(model, other, *more, "--replace") == 0
    found = Worth.of(load_bundle(model).calibration)
    assert worth.lost_by(found), "it is the worse one"
    (kept,) = model.glob("calibration-*.json")
    assert kept.read_bytes() == good


def test_the_same_again_and_a_better_one_need_no_leave(data: Path, tmp_path: Path) -> None:
    model = calibrated(tmp_path / "model", data)
    good = (model / "calibration.json").read_bytes()
    assert run(model, data, "--missed", "0.3") == 0
    assert (model / "calibration.json").read_bytes() == good and not list(model.glob("calibration-*.json"))
    assert run(model, data, "--missed", "0.2") == 0
    (kept,) = model.glob("calibration-*.json")
    assert kept.read_bytes() == good
    assert json.loads((model / "calibration.json").read_text())["risk_control"]["alpha"] == 0.2
