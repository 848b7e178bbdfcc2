"""What ships in models/ works, is small, and still scores what its card says where the data is at hand."""

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.data.cohort import read_cohort
from ldseg.data.volume import read_volume
from ldseg.evaluation.evaluate import evaluate
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior

HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "hippocampus"
MODELS = sorted(p.parent for p in (ROOT / "models").glob("*/card.json"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda p: p.name)
def test_a_shipped_model_is_whole_small_and_has_a_card(folder):
    bundle = load_bundle(folder)
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 10 * 2**20
    assert {"data", "split", "command", "metrics", "licence"} <= bundle.card.keys()
    assert not set(bundle.card["split"]["train"]) & set(bundle.card["split"]["test"])
    assert (folder / "README.md").read_text().count(bundle.digest) == 1


def test_the_manifest_beside_the_hippocampus_model_has_the_cases_and_the_split_of_its_card():
    with open(ROOT / "models" / "hippocampus" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = load_bundle(ROOT / "models" / "hippocampus").card["split"]
    found = {part: sorted(row["case"] for row in rows if row["split"] == part) for part in wanted}
    assert found == {part: sorted(names) for part, names in wanted.items()}
    assert all(row["image"] == f"imagesTr/{row['case']}.nii.gz" and row["label"][:9] == "labelsTr/" for row in rows)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the hippocampus volumes (Decathlon, task 4) are not at hand")
def test_no_model_is_compared_on_cases_that_it_has_seen(tmp_path):
    split = load_bundle(ROOT / "models" / "hippocampus").card["split"]
    roles = {split["train"][0]: "train", split["validation"][0]: "validation", split["train"][1]: "test"}
    lines = [f"{n},{HIPPOCAMPUS}/imagesTr/{n}.nii.gz,{HIPPOCAMPUS}/labelsTr/{n}.nii.gz,{r}" for n, r in roles.items()]
    (tmp_path / "mixed.csv").write_text("\n".join(["case,image,label,split", *lines]))
    command = [sys.executable, ROOT / "benchmarks" / "quality" / "baselines.py", "--data", tmp_path / "mixed.csv"]
    command += ["--space", "hippocampus", "--model", ROOT / "models" / "hippocampus", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and f"has seen 1 of the test cases ({split['train'][1]})" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_hippocampus_model_segments_a_volume_that_is_no_hippocampus(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(33, 47, 29)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "noise.nii.gz")
    volume = read_volume(tmp_path / "noise.nii.gz", case="noise", spatial_dims=3)
    summary = Posterior(load_bundle(ROOT / "models" / "hippocampus")).segment(volume, samples=2)
    assert summary.label.shape == (33, 47, 29) and np.isfinite(summary.mean_probability).all()


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the hippocampus volumes (Decathlon, task 4) are not at hand")
def test_the_hippocampus_model_still_scores_on_held_out_cases():
    bundle = load_bundle(ROOT / "models" / "hippocampus")
    test = set(bundle.card["split"]["test"])
    cases = [case for case in read_cohort(HIPPOCAMPUS).split("all") if case.name in test][:6]
    result = evaluate(bundle, cases, Draws(4))
    stored = {row["case"]: row["dice"] for row in json.loads((ROOT / "models/hippocampus/cases.json").read_text())}
    for row in result.rows:
        # the card's numbers are of more samples: a case moves by a Dice point or two between sets of samples
        assert row["dice"] == pytest.approx(stored[row["case"]], abs=0.03), row["case"]
    metrics = result.summary["metrics"]
    assert metrics["dice"]["mean"] > 0.83 and metrics["sample_diversity"]["mean"] > 0.01
