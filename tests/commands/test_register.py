"""`ldseg register`: a bundle that lies in a folder becomes a version with its evidence, once."""

import json

import pytest
from tiny import random_bundle, tiny_config

from ldseg.commands.registry import promote, register
from ldseg.data.cohort import read_cohort
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.orchestration.tracking import mlflow_client


@pytest.mark.slow
def test_a_bundle_is_registered_with_its_scores_once_and_can_be_promoted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_phantoms(tmp_path / "data", PhantomConfig(dims=2, cases=20, shape=(16, 16), fractions=(0.5, 0.1, 0.4)))
    bundle = random_bundle(tmp_path / "mine", tiny_config(2, ("organ", "nodule", "lobe")))
    home, data = str(tmp_path / "runs"), str(tmp_path / "data")
    command = [str(bundle.path), "tiny", "--data", data, "--runs", home, "--samples", "2"]
    assert register.main(command) == 0
    said = capsys.readouterr().out
    assert f"8 labelled cases that {bundle.path} has not seen" in said and "registered: models:/tiny/1" in said
    version = mlflow_client.connect(tmp_path / "runs").client.get_model_version_by_alias("tiny", "challenger")
    assert version.tags["digest"] == bundle.digest and float(version.tags["test_cases"]) == 8
    assert register.main(command) == 0 and "registered before: models:/tiny/1" in capsys.readouterr().out
    assert promote.main(["tiny", "challenger", "--runs", home, "--min-dice", "0", "--min-cases", "8"]) in (0, 1)
    decision = capsys.readouterr().out
    assert "8 cases that no model was trained or selected on" in decision and "registered without" not in decision


def test_a_bundle_that_has_seen_every_case_is_refused_in_a_sentence(tmp_path, capsys):
    write_phantoms(tmp_path / "data", PhantomConfig(dims=2, cases=5, shape=(16, 16)))
    names = [case.name for case in read_cohort(tmp_path / "data").cases]
    bundle = random_bundle(tmp_path / "mine", tiny_config(2, ("organ", "nodule", "lobe")))
    card = bundle.card | {"split": {"train": names, "validation": [], "test": []}}
    (bundle.path / "card.json").write_text(json.dumps(card))
    assert register.main([str(bundle.path), "x", "--data", str(tmp_path / "data"), "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "the model was trained or selected on every case" in said and len(said.splitlines()) == 1
