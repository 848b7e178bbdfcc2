"""Labels that can't be used are one sentence before anything is started; nearly whole numbers are those numbers."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import ray

from ldseg.commands import train, tune
from ldseg.config import DataConfig
from ldseg.data.cohort import read_cohort
from ldseg.data.dataset import check_trainable
from ldseg.data.errors import CaseError, CohortError
from ldseg.data.volume import read_label, read_volume
from tests.helpers.tiny import tiny_config

BOX = np.zeros((9, 8, 7), np.float32)
BOX[2:6, 2:6, 2:6] = 1
LABELS = {"0": "background", "1": "organ"}


def cohort(folder: Path, label: np.ndarray, labels: dict[str, str] | None = LABELS) -> Path:
    """Six cases with the same label."""
    rows = ["case,image,label"]
    for number in range(6):
        image = np.random.default_rng(number).normal(size=label.shape).astype(np.float32)
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"c{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"c{number}_label.nii.gz")
        rows.append(f"c{number},c{number}.nii.gz,c{number}_label.nii.gz")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    if labels:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def program(kind: str, data: Path, home: Path) -> int:
    home.mkdir()
    base = tiny_config(structures=("organ",)).to_dict()
    del base["data"]["structures"], base["data"]["label_values"]
    common = ["--data", str(data), "--name", "first", "--runs", str(home), "--address", "local"]
    if kind == "train":
        (home / "tiny.json").write_text(json.dumps(base))
        return train.main([*common, "--config", str(home / "tiny.json")])
    space = {"optim.learning_rate": ("loguniform", 1e-4, 1e-3)}
    (home / "tiny.py").write_text(f'METRIC = ("val_dice", "max")\nBASE = {base!r}\nSPACE = {space!r}\n')
    return tune.main([*common, "--space", str(home / "tiny.py"), "--trials", "1"])


@pytest.mark.parametrize("kind", ["train", "tune"])
@pytest.mark.parametrize(
    ("label", "told"),
    [
        (255 * BOX, "none of the 4 train cases of data can be used; the first: c"),
        (0 * BOX, "no label of the 4 train cases of data holds a structure"),
        (0.4 * BOX, "holds values that are no integers"),
    ],
    ids=["0 and 255", "background", "probabilities"],
)
def test_labels_that_cannot_be_used_are_one_sentence_before_anything_is_started(tmp_path, capsys, kind, label, told):
    data = cohort(tmp_path / "data", label)
    assert program(kind, data, tmp_path / "home") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{kind}: ") and error.count("\n") == 1 and "Traceback" not in error and told in error
    assert not ray.is_initialized()


def test_one_case_of_each_split_that_can_be_used_is_enough(tmp_path):
    data = cohort(tmp_path / "data", 255 * BOX)
    found, config = read_cohort(data), DataConfig(shape=(16, 16, 16))
    for split in ("train", "validation"):
        with pytest.raises(CohortError, match=f"{split} cases of data can be used"):
            check_trainable(found, config)
        nib.save(nib.Nifti1Image(BOX, np.eye(4)), found.split(split)[-1].labels[0])
    check_trainable(found, config)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("value", [0.9999999, 1.0009, 0.9991])
def test_values_within_a_thousandth_of_an_integer_are_that_integer(tmp_path, named, value):
    data = cohort(tmp_path / "data", value * BOX, LABELS if named else None)
    found = read_cohort(data)
    assert found.label_values == (0, 1)
    case, config = found.cases[0], DataConfig(shape=(16, 16, 16))
    label = read_label(case.labels[0], read_volume(case.image, case=case.name, spatial_dims=3), config)
    assert np.array_equal(label, BOX)


def test_values_that_are_farther_from_an_integer_are_refused(tmp_path):
    case = read_cohort(cohort(tmp_path / "data", np.float32(1.002) * BOX)).cases[0]
    with pytest.raises(CaseError, match="no integers"):
        volume = read_volume(case.image, case=case.name, spatial_dims=3)
        read_label(case.labels[0], volume, DataConfig(shape=(16, 16, 16)))
