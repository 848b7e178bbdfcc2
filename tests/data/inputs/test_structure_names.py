"""A cohort's labels are a model's structures by name, whatever their numbers; other names are refused."""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from scored import write_case

import ldseg
from ldseg.calibration.file import read_calibration
from ldseg.commands import calibrate, evaluate, train
from ldseg.data.cohort import CohortError, for_model, read_cohort
from ldseg.data.reading import read_case
from ldseg.orchestration.promotion.evidence import measure
from ldseg.posterior.draws import Draws
from tests.helpers.tiny import random_bundle, tiny_config

OWN = {"0": "background", "1": "organ", "2": "nodule"}
SWAPPED = {"0": "background", "1": "Nodule", "2": "organ"}
FAR = {"0": "background", "7": "organ", "4": "nodule"}
OTHER = {"0": "background", "1": "organ", "2": "vessel"}


def cohort(folder: Path, labels: dict[str, str] | None, cases: int = 3) -> Path:
    """The same boxes, in files whose numbers are what `labels` says."""
    number = {name.lower(): int(value) for value, name in (labels or OWN).items()}
    rows = ["case,image,label,split"]
    for index in range(cases):
        case = write_case(folder, f"case{index}", 3, seed=index)
        drawn = nib.load(case.labels[0])
        values = np.array([0, number["organ"], number.get("nodule", 2)], np.uint8)[np.asarray(drawn.dataobj)]
        nib.save(nib.Nifti1Image(values, drawn.affine), case.labels[0])
        rows.append(f"{case.name},{case.image.name},{case.labels[0].name},test")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("names") / "model", tiny_config())


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    kinds = {"own": OWN, "swapped": SWAPPED, "far": FAR, "other": OTHER, "nameless": None}
    return {name: cohort(root / name, labels) for name, labels in kinds.items()}


@pytest.mark.parametrize("kind", ["own", "swapped", "far", "nameless"])
def test_labels_are_read_as_the_models_classes(bundle, cohorts, kind):
    matched, said = for_model(read_cohort(cohorts[kind]), bundle.config.data)
    wanted = read_case(read_cohort(cohorts["own"]).cases[0], bundle.config.data)[1][0]
    assert set(np.unique(wanted)) == {0, 1, 2}
    assert np.array_equal(read_case(matched.cases[0], bundle.config.data)[1][0], wanted)
    assert bool(said) == (kind == "nameless")


@pytest.mark.parametrize("kind", ["swapped", "far", "nameless"])
def test_evaluate_scores_every_structure_by_its_name(bundle, cohorts, tmp_path, capsys, kind):
    tables = []
    for name in ("own", kind):
        options = ["--model", str(bundle.path), "--data", str(cohorts[name]), "--out", str(tmp_path / name)]
        assert evaluate.main([*options, "--samples", "2"]) == 0
        shown = capsys.readouterr().out
        assert ("labels are taken by number, not by name: nameless names no structures" in shown) == (
            name == "nameless"
        )
        tables.append(pq.read_table(tmp_path / name / "cases.parquet").to_pylist())
    for own, other in zip(*tables, strict=True):
        assert own["dice_organ"] != own["dice_nodule"]
        assert [own[c] for c in own if "dice" in c] == [other[c] for c in own if "dice" in c]
        assert own["labels"] == other["labels"], "the same classes, so the same labels"


def test_other_names_are_refused_with_both_lists(bundle, cohorts, tmp_path, capsys):
    given = ["--model", str(bundle.path), "--data", str(cohorts["other"])]
    for program, more in ((evaluate, ["--out", str(tmp_path / "out")]), (calibrate, [])):
        assert program.main([*given, *more]) == 2
        told = capsys.readouterr().err
        assert "the structures of other are organ, vessel, the model's organ, nodule" in told
        assert len(told.strip().splitlines()) == 1
    assert not (bundle.path / "calibration.json").exists() and not list((tmp_path / "out").glob("*"))
    for call in (
        lambda: ldseg.evaluate(bundle.path, cohorts["other"]),
        lambda: measure(bundle, None, cohorts["other"], Draws(2), print),
    ):
        with pytest.raises(CohortError, match="the model's organ, nodule"):
            call()


def test_a_model_without_names_takes_a_named_cohort_by_number(tmp_path, cohorts):
    data = tiny_config(structures=("structure_1", "structure_2")).data
    matched, said = for_model(read_cohort(cohorts["swapped"]), data)
    assert said == "labels are taken by number, not by name: the model's structures have no names"
    assert matched.cases == read_cohort(cohorts["swapped"]).cases


def test_a_calibration_is_the_same_whatever_the_numbers(cohorts, tmp_path):
    found = []
    for kind in ("own", "swapped"):
        model = random_bundle(tmp_path / kind, tiny_config())
        given = ["--model", str(model.path), "--data", str(cohorts[kind]), "--split", "test"]
        assert calibrate.main([*given, "--samples", "2", "--alpha", "0.4"]) == 0
        found.append(read_calibration(model.path, model.digest, model.config.data.structures))
    assert found[0] == found[1] and np.isfinite(found[0].intervals.quantiles).all()


def test_promotion_scores_both_models_by_name_though_their_classes_have_another_order(bundle, cohorts, tmp_path):
    turned = random_bundle(tmp_path / "turned", tiny_config(structures=("nodule", "organ")))
    own, other = measure(bundle, turned, cohorts["far"], Draws(2), lambda line: None)
    for scores, model in ((own, bundle), (other, turned)):
        alone = ldseg.evaluate(model.path, cohorts["own" if model is bundle else "swapped"], samples=2).rows
        assert [row["dice_organ"] for row in scores.rows] == [row["dice_organ"] for row in alone]
        assert [row["dice_nodule"] for row in scores.rows] == [row["dice_nodule"] for row in alone]


def described(data: Path, home: Path, **given: object) -> argparse.Namespace:
    options = train.parse(["--data", str(data), "--name", "tuned", "--runs", str(home)])
    config = home / "tiny.json"
    values = tiny_config().to_dict()
    del values["data"]["structures"], values["data"]["label_values"]
    home.mkdir(exist_ok=True)
    config.write_text(json.dumps(values))
    return argparse.Namespace(**vars(options) | {"config": config} | given)


def test_fine_tuning_keeps_the_models_classes_and_takes_their_numbers_from_the_cohort(
    bundle, cohorts, tmp_path, capsys
):
    for kind, numbers in (("own", [0, 1, 2]), ("far", [0, 7, 4]), ("swapped", [0, 2, 1]), ("nameless", [0, 1, 2])):
        copied = cohort(tmp_path / kind, {"far": FAR, "swapped": SWAPPED, "own": OWN, "nameless": None}[kind], 6)
        (copied / "manifest.csv").write_text((copied / "manifest.csv").read_text().replace(",test", ","))
        plan = train.describe(described(copied, tmp_path / "home", start_from=bundle.path))
        data = plan.config["data"]
        assert list(data["structures"]) == ["organ", "nodule"] and list(data["label_values"]) == numbers
        assert ("labels are taken by number" in capsys.readouterr().out) == (kind == "nameless")
    with pytest.raises(CohortError, match="organ, vessel, the model's organ, nodule"):
        train.describe(described(cohorts["other"], tmp_path / "home", start_from=bundle.path))
