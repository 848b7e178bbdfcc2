import importlib.util
import json
import tempfile
from pathlib import Path

import mlflow
import nibabel as nib
import pytest
from registered import register, scores, with_card
from tiny import random_bundle, some_calibration, tiny_config

from ldseg import ROOT
from ldseg.calibration.file import save_calibration
from ldseg.data.cohort import read_cohort
from ldseg.data.content import content_digests
from ldseg.orchestration.promotion import integrity
from ldseg.orchestration.promotion.champion import HEAD
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.integrity import examine, geometry
from ldseg.orchestration.promotion.journal import HISTORY, LOCK, HistoryError, read_history
from ldseg.orchestration.promotion.promote import Measurement, promote, rollback
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import RegistryError, resolve_model

GATES = Gates()


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return mlflow_client.connect(tmp_path_factory.mktemp("home"))


def _champion(tracker, name):
    alias = tracker.client.get_registered_model(name).aliases.get("champion")
    return None if alias is None else int(alias)


def _failed(decision):
    return [check.gate for check in decision.checks if not check.passed]


def _program():
    spec = importlib.util.spec_from_file_location("promote_program", ROOT / "platform" / "promote.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_promotion_leaves_nothing_in_the_folder_for_temporary_files(tracker, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for seed in range(2):
        register(tracker, tmp_path, "tidy", seed, scores(0.9 + 0.02 * seed))
        assert promote(tracker, "tidy", None, GATES).passed
    assert not list(temporary.iterdir())


def test_the_first_champion_passes_the_floors_and_its_record_lies_in_its_run(tracker, tmp_path):
    bundle, _ = register(tracker, tmp_path, "first", 0, scores())
    decision = promote(tracker, "first", None, GATES, reason="the first one")
    assert decision.passed and not _failed(decision), decision.text()
    assert resolve_model("models:/first@champion", tracker.home).name == bundle.digest.removeprefix("sha256:")
    record = read_history(tracker.home).of("first")[-1]
    assert record["action"] == "promote" and record["reason"] == "the first one" and record["before"] is None
    assert record["digest"] == bundle.digest and record["when"].endswith("+00:00") and "@" in record["who"]
    assert record["data"]["cases"]["case03"] == "sha256:image-case03" and record["gates"]["digest"] == GATES.digest
    run = tracker.client.get_model_version("first", "1").run_id
    (artifact,) = tracker.client.list_artifacts(run, "promotions")
    assert json.loads(Path(tracker.client.download_artifacts(run, artifact.path)).read_text()) == record
    head = tracker.client.get_registered_model("first").tags[HEAD]
    assert head == f"{record['number']}:{record['hash']}"
    lines = len(read_history(tracker.home).records)
    again = promote(tracker, "first", "1", GATES)
    assert again.passed and again.text() == "champion of first is version 1 already"
    assert len(read_history(tracker.home).records) == lines


def test_a_worse_challenger_is_held_a_better_one_passes_and_two_rollbacks_go_two_steps_back(tracker, tmp_path, capsys):
    home, main = ["--runs", str(tracker.home)], _program()
    for seed, dice in enumerate((0.9, 0.85, 0.92, 0.95)):
        register(tracker, tmp_path, "duel", seed, scores(dice))
    assert main(["duel", "1", *home]) == 0
    capsys.readouterr()
    assert main(["duel", "2", "--reason", "try", *home]) == 1
    shown = capsys.readouterr().out
    assert "NO  dice " in shown and "champion of duel stays at version 1: version 2 does not pass" in shown
    assert _champion(tracker, "duel") == 1
    refusal = read_history(tracker.home).of("duel")[-1]
    assert (refusal["action"], refusal["version"], refusal["reason"]) == ("refuse", 2, "try")
    assert {c["gate"]: c["passed"] for c in refusal["checks"]}["nll"]
    tracker.client.set_registered_model_alias("duel", "challenger", "3")
    assert main(["duel", "challenger", *home]) == 0
    assert main(["--name", "duel", "--version", "4", *home]) == 0
    assert main(["duel", "--rollback", "--dry-run", *home]) == 0 and _champion(tracker, "duel") == 4
    for expected in (3, 1):
        assert main(["duel", "--rollback", *home]) == 0 and _champion(tracker, "duel") == expected
    capsys.readouterr()
    assert main(["duel", "--rollback", *home]) == 2
    assert capsys.readouterr().err == "promote: duel had no champion before; promote a version instead\n"
    assert main(["duel", "--history", *home]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    actions = [row[5] for row in rows if len(row) > 5 and row[4] == "duel"]
    assert actions == ["promote", "refuse", "promote", "promote", "rollback", "rollback"]


def test_options_of_the_command_line_take_the_place_of_the_files_values(tracker, tmp_path, capsys):
    register(tracker, tmp_path, "options", 0, scores(0.5))
    home = ["--runs", str(tracker.home)]
    assert _program()(["--name", "options", *home]) == 1
    assert _program()(["--name", "options", "--min-dice", "0.4", *home]) == 0
    capsys.readouterr()
    assert _program()(["options", "--gates", str(tmp_path / "none.toml"), *home]) == 2
    assert _program()(["nothing", *home]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "none.toml can't be read (No such file or directory); give a file like platform/gates.toml" in errors[0]
    assert "there is no model 'nothing' in the registry" in errors[1] and len(errors) == 2


def _everything(tracker, name):
    files = {p.relative_to(tracker.home) for p in tracker.home.rglob("*") if not p.name.startswith("mlflow.db")}
    model = tracker.client.get_registered_model(name)
    return files, (tracker.home / HISTORY).read_bytes(), model.aliases, model.tags


def test_a_dry_run_decides_and_changes_nothing(tracker, tmp_path):
    register(tracker, tmp_path, "dry", 0, scores(0.9))
    promote(tracker, "dry", 1, GATES)
    register(tracker, tmp_path, "dry", 1, scores(0.92))
    register(tracker, tmp_path, "dry", 2, scores(0.8))
    (tracker.home / LOCK).unlink()
    before = _everything(tracker, "dry")
    good, bad = (promote(tracker, "dry", version, GATES, dry_run=True) for version in (2, 3))
    assert good.passed and "would be version 2, before it 1 (dry run: nothing was changed)" in good.text()
    assert not bad.passed and _everything(tracker, "dry") == before


def _files(tracker, name):
    """Where the newest model's files lie."""
    digest = tracker.client.get_model_version(name, "1").tags["digest"]
    cards = [p for p in (tracker.home / "artifacts").rglob("card.json") if digest in p.read_text()]
    return max(cards, key=lambda p: p.stat().st_mtime_ns).parent


def test_changed_files_pickles_and_untrue_signatures_are_found_in_the_registry_itself(tracker, tmp_path):
    register(tracker, tmp_path, "files", 77, scores())
    resolve_model("models:/files/1", tracker.home)  # a good copy lies in the cache
    bundle = _files(tracker, "files")
    described = next(p for p in bundle.parents if (p / "MLmodel").is_file()) / "MLmodel"
    version, whole = tracker.client.get_model_version("files", "1"), described.read_text()

    def failed(number):
        found, checks = examine(tracker, version, GATES, tmp_path / f"look{number}")
        return [(c.gate, c.words) for c in checks if not c.passed]

    assert failed(0) == []
    described.write_text(whole.replace("ldseg.orchestration.pyfunc", "mlflow.sklearn"))
    assert "load it by mlflow.sklearn and not by ldseg" in failed(1)[0][1]
    described.write_text(whole.replace("    loader_module", "    code: code\n    loader_module"))
    assert "it brings code of its own" in failed(5)[0][1]
    described.write_text(whole.replace("float32", "float64"))
    assert failed(2) == [
        ("MLflow signature", "its signature is not that of its configuration; register the model again")
    ]
    described.write_text(whole)
    (described.parent / "python_model.pkl").write_bytes(b"")
    assert "python_model.pkl, which may be a pickle" in failed(3)[0][1]
    (described.parent / "python_model.pkl").unlink()
    weights = bundle / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert failed(4)[0][0] == "bundle digest"
    assert _failed(promote(tracker, "files", 1, GATES)) == ["bundle digest"] and _champion(tracker, "files") is None


def test_a_calibration_may_be_asked_for_and_is_the_one_that_was_registered(tracker, tmp_path):
    asked = GATES.with_values(bundle__calibration=True)
    register(tracker, tmp_path, "bare", 0, scores())
    assert _failed(promote(tracker, "bare", 1, asked)) == ["calibration digest"]
    keep = lambda bundle: save_calibration(bundle.path, some_calibration(bundle))  # noqa: E731
    register(tracker, tmp_path, "bare", 78, scores(), change=keep)
    tracker.client.set_model_version_tag("bare", "2", "calibration", "sha256:another")
    assert _failed(promote(tracker, "bare", 2, asked)) == ["calibration digest"]
    register(tracker, tmp_path, "bare", 79, scores(), change=keep)
    assert promote(tracker, "bare", 3, asked).passed


@pytest.mark.parametrize("config", [tiny_config(2), tiny_config(3)], ids=["2D", "3D"])
def test_the_geometry_gate_passes_on_an_oblique_image_and_fails_where_a_written_label_is_moved(
    tmp_path, config, monkeypatch
):
    bundle = random_bundle(tmp_path / "bundle", config)
    assert geometry(bundle, tmp_path / "look", ()).passed
    write = integrity.write_map

    def moved(path, array, like):
        write(path, array, like)
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 1e-3  # millimetres
        nib.save(nib.Nifti1Image(image.get_fdata().astype("uint8"), affine, image.header), path)
        return path

    monkeypatch.setattr(integrity, "write_map", moved)
    check = geometry(bundle, tmp_path / "look", ())
    assert not check.passed and "of the written label differs from the image's" in check.words
    monkeypatch.setattr(integrity, "write_map", lambda path, array, like: write(path, array[::-1].copy(), like))
    assert "other voxels than the model's" in geometry(bundle, tmp_path / "look", ()).words


def test_scores_that_were_changed_after_registration_are_not_believed(tracker, tmp_path):
    register(tracker, tmp_path, "scores", 0, scores(0.5, prefix="sha256:s-"))
    version = tracker.client.get_model_version("scores", "1")
    better = tmp_path / "better"
    better.mkdir()
    register(tracker, better, "unrelated", 0, scores(0.9, prefix="sha256:s-"))
    other = str(better / "tables-unrelated-0" / "cases.parquet")
    tracker.client.log_artifact(version.run_id, other, version.tags["evaluation"])
    decision = promote(tracker, "scores", 1, GATES)
    assert "the scores of version 1 are not those that were registered with it" in decision.text()
    register(tracker, tmp_path, "scores", 1, None)
    assert "was registered without its scores: measure both" in promote(tracker, "scores", 2, GATES).text()
    register(tracker, tmp_path, "scores", 2, scores(model_digest="sha256:another"))
    assert "the scores of version 3 are of another model" in promote(tracker, "scores", 3, GATES).text()
    assert _champion(tracker, "scores") is None


def test_an_alias_moved_by_hand_is_named_recorded_and_can_be_rolled_back(tracker, tmp_path):
    for seed in range(3):
        register(tracker, tmp_path, "hand", seed, scores())
    promote(tracker, "hand", 1, GATES)
    tracker.client.set_registered_model_alias("hand", "champion", "2")
    words = "the alias champion of hand is at version 2, moved by something else than this program"
    assert f"found: {words}" in promote(tracker, "hand", 3, GATES, dry_run=True).text()
    assert f"mended: {words}; recorded as found" in promote(tracker, "hand", 3, GATES).text()
    records = [(r["action"], r["version"], r["before"]) for r in read_history(tracker.home).of("hand")]
    assert records == [("promote", 1, None), ("found", 2, 1), ("promote", 3, 2)]
    assert [rollback(tracker, "hand").version for _ in range(2)] == [2, 1]
    tracker.client.delete_registered_model_alias("hand", "champion")
    assert rollback(tracker, "hand").version == 1 and _champion(tracker, "hand") == 1


def test_a_version_with_other_files_than_it_was_promoted_with_is_not_given_back(tracker, tmp_path):
    register(tracker, tmp_path, "swap", 0, scores())
    register(tracker, tmp_path, "swap", 1, scores())
    promote(tracker, "swap", 1, GATES)
    promote(tracker, "swap", 2, GATES)
    tracker.client.set_model_version_tag("swap", "1", "digest", "sha256:another")
    decision = rollback(tracker, "swap")
    assert not decision.passed and _champion(tracker, "swap") == 2
    assert read_history(tracker.home).of("swap")[-1]["action"] == "refuse"


def test_a_history_that_was_cut_or_changed_holds_everything_and_history_says_where(tracker, tmp_path, capsys):
    for seed in range(2):
        register(tracker, tmp_path, "cut", seed, scores())
        promote(tracker, "cut", seed + 1, GATES)
    path, main = tracker.home / HISTORY, _program()
    whole, home = path.read_text(), ["--runs", str(tracker.home)]
    *earlier, last = whole.splitlines(keepends=True)
    number = len(earlier) + 1
    path.write_text("".join(earlier))
    with pytest.raises(HistoryError, match=f"the registry knows record {number} of cut .* lines were cut off"):
        rollback(tracker, "cut")
    assert main(["--history", *home]) == 1 and f"CHANGED: the registry knows record {number}" in capsys.readouterr().out
    path.write_text("")
    assert main(["--history", *home]) == 1 and f"the registry knows record {number} of cut" in capsys.readouterr().out
    path.write_text("".join([*earlier, last.replace('"version": 2', '"version": 1')]))
    assert main(["--history", *home]) == 1
    assert f"CHANGED: line {number} does not match its own hash" in capsys.readouterr().out
    assert main(["cut", "--rollback", *home]) == 2 and main(["cut", "2", *home]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and f"was changed: line {number} does not match its own hash; put it back" in errors[0]
    path.write_text(whole)
    assert main(["--history", *home]) == 0 and f"the chain of {number} records holds" in capsys.readouterr().out
    path.write_text(whole + '{"number": 3, "wh')  # killed while it wrote
    assert main(["--history", *home]) == 0
    assert "a record was being written when its process was killed (17 bytes)" in capsys.readouterr().out
    assert rollback(tracker, "cut").version == 1
    history = read_history(tracker.home)
    assert history.records[number]["torn"] == 17 and not history.broken


def test_both_models_are_measured_on_cases_that_neither_has_seen_by_content(tracker, tmp_path, phantoms):
    config = tiny_config(2, ("organ", "nodule", "lobe"))
    cases = read_cohort(phantoms).cases
    contents = content_digests(cases, config.data)
    seen = [case.name for case in cases[:15]]
    renamed = {f"elsewhere-{name}": contents[name] for name in seen}
    split = {"split": {"train": list(renamed), "validation": [], "test": []}, "content": renamed}
    register(tracker, tmp_path, "measured", 0, None, change=with_card(split), config=config)
    register(tracker, tmp_path, "measured", 1, None, change=with_card(split), config=config)
    wide = GATES.with_values(
        floors__dice=0.0, floors__worst_decile_dice=0.0, floors__structure_dice=0.0,
        margins__dice=1.0, margins__worst_decile_dice=1.0, margins__structure_dice=1.0, margins__nll=9.0,
        margins__energy_score=1.0,
        margins__ece=1.0, margins__seconds_factor=100.0, cases__samples=2,
    )  # fmt: skip
    said = []
    measurement = Measurement(phantoms, say=said.append)
    assert promote(tracker, "measured", 1, wide, measurement).passed
    decision = promote(tracker, "measured", 2, wide, measurement)
    assert decision.passed, decision.text()
    assert said[1].startswith("measuring on 5 cases of ") and f"scores measured now on {phantoms}" in decision.text()
    assert "exact on 4 images" in decision.text()
    record = read_history(tracker.home).of("measured")[-1]
    assert record["data"]["cases"] == {case.name: contents[case.name] for case in cases[15:]}
    dice = next(check for check in decision.checks if check.gate == "dice")
    assert dice.own != dice.other and dice.low <= dice.difference <= dice.high
    everything = {"split": {"train": list(contents), "validation": [], "test": []}}
    register(tracker, tmp_path, "measured", 2, None, change=with_card(everything), config=config)
    with pytest.raises(RegistryError):
        promote(tracker, "measured", 9, wide)
    held = promote(tracker, "measured", 3, wide, measurement)
    assert "the models have seen every labelled case" in held.text() and _champion(tracker, "measured") == 2
    assert mlflow.active_run() is None
