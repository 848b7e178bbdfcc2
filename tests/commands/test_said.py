"""What programs say and leave behind when something of what they were given can't be used."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import programs
import pyarrow.parquet as pq
import pytest
from scored import write_case
from service import write_image
from smalldisk import small_disk
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.bundle import Bundle
from ldseg.commands import calibrate, evaluate, segment
from ldseg.commands.main import COMMANDS

NAMES = ("organ", "nodule")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("model") / "bundle", tiny_config(3, NAMES))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two labelled test cases, one broken and one missing."""
    lines = ["case;image;label;split"]
    for number, name in enumerate(("first", "second", "broken", "lost")):
        case = write_case(tmp_path / "data", name, 3, seed=number)
        lines.append(f"{name};{case.image.name};{case.labels[0].name};test")
    (tmp_path / "data" / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / "lost.nii.gz").unlink()
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "data"


def rows(out: Path, name: str = "table.parquet") -> list[dict]:
    return pq.read_table(out / name).to_pylist()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_what_the_exit_status_means(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "ldseg", name, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert "Exit status: 0 " in done.stdout and done.returncode == 0


def test_the_exit_status_says_whether_all_some_or_none_was_done(bundle: Bundle, cohort: Path, tmp_path: Path) -> None:
    """And there are as many rows as cases were meant."""
    few = {"evaluate": evaluate.main, "segment": segment.main}
    for name, main in few.items():
        out = tmp_path / name
        common = ["--model", str(bundle.path), "--samples", "1", "--data"]
        done = programs.run(main, *common, str(cohort), "--split", "test", "--out", str(out))
        assert done.returncode == 1, done.stderr
        table = rows(out, "cases.parquet" if name == "evaluate" else "table.parquet")
        errors = {row["case"]: row["error"] or "" for row in table}
        assert sorted(errors) == ["broken", "first", "lost", "second"]
        assert "is missing" in errors["lost"] and "can't be read" in errors["broken"] and not errors["first"]
        good = tmp_path / f"{name}.csv"
        good.write_text(f"case,image\na,{cohort / 'first.nii.gz'}\n")
        assert programs.run(main, *common, str(good), "--out", str(tmp_path / f"{name}0")).returncode == 0
        good.write_text(f"case,image\na,{cohort / 'broken.nii.gz'}\nb,{cohort / 'first.nii.gz'}\n")
        bad = tmp_path / f"{name}bad.csv"
        bad.write_text(f"case,image,split\na,{cohort / 'first.nii.gz'},tset\nb,{cohort / 'gone.nii.gz'},\n")
        none = programs.run(main, *common, str(bad), "--out", str(tmp_path / f"{name}2"))
        assert none.returncode == 2 and none.stderr.count("\n") == 1 and "no usable case" in none.stderr
    for study in (["--noise", "0,0.1"], ["--corrupt", "crop"]):
        options = [*common, str(cohort), "--out", str(tmp_path / "study"), *study]
        assert programs.run(evaluate.main, *options).returncode == 1
    done = programs.run(calibrate.main, *common, str(cohort), "--split", "test")
    assert done.returncode == 1 and (bundle.path / "calibration.json").is_file(), done.stderr
    (bundle.path / "calibration.json").unlink()


def test_a_table_is_of_all_calls_with_one_out(bundle: Bundle, tmp_path: Path) -> None:
    out, spoilt = tmp_path / "out", tmp_path / "spoilt.nii.gz"
    spoilt.write_bytes(b"no image")
    images = [write_image(tmp_path / f"{name}.nii.gz", seed) for seed, name in enumerate("abc")]
    for number, image in enumerate([images[0], spoilt, images[1], images[2]], start=1):
        options = ["--model", str(bundle.path), "--data", str(image), "--out", str(out), "--samples", str(number)]
        done = programs.run(segment.main, *options)
        assert done.returncode == (2 if image == spoilt else 0), done.stderr
        assert len(rows(out)) == number
    table = rows(out)
    assert {row["case"]: row["samples"] for row in table} == {"a": 1, "spoilt": None, "b": 3, "c": 4}
    assert [row["rank"] for row in table] == [1, 2, 3, 4] and list(table[0])[:4] == ["rank", "case", "state", "error"]
    assert table[0]["case"] == "spoilt" and "can't be read" in table[0]["error"]
    agreement = [row["agreement"] or 0.0 for row in table[1:]]
    assert agreement == sorted(agreement)
    text = list(csv.DictReader((out / "table.csv").open()))
    assert [row["case"] for row in text] == [row["case"] for row in table]
    sizes = [(row["organ_volume_ml_p50"], exact["organ_volume_ml_p50"]) for row, exact in zip(text, table, strict=True)]
    for size, exact in sizes[1:]:
        assert float(size) == pytest.approx(exact, rel=1e-3) and len(size.replace(".", "").strip("0")) <= 4
    write_image(spoilt, 5)
    assert programs.run(segment.main, *[*options[:3], str(spoilt), *options[4:]]).returncode == 0
    assert {row["state"] for row in rows(out)} == {"done"}


def test_the_cases_to_look_at_first_are_on_top(tmp_path: Path) -> None:
    from ldseg.results.gathering import gather, record, record_failure

    for name, agreement, unfamiliar in (("sure", 0.9, 0), ("unsure", 0.5, 0), ("strange", 0.95, 1)):
        (tmp_path / "maps" / name).mkdir(parents=True)
        numbers = {"case": name, "agreement": agreement, "unfamiliar": unfamiliar}
        record(tmp_path, name, {"name": name, "state": "done", "error": None, "numbers": numbers})
    record(tmp_path, "gone", {"name": "gone", "state": "done", "error": None, "numbers": {}})  # its maps were removed
    record_failure(tmp_path, "../evil", "it is left out")
    assert gather(tmp_path)["case"].to_pylist() == ["strange", "../evil", "unsure", "sure"]
    assert not (tmp_path / "evil.json").exists()


def mains(bundle: Bundle, data: Path, out: Path) -> Iterator[tuple[str, list[str]]]:
    for name in ("segment", "evaluate"):
        options = ["--model", str(bundle.path), "--data", str(data), "--samples", "1", "--split", "all"]
        yield name, [*options, "--out", str(out)]


def refused(name: str, options: list[str], word: str, path: Path) -> None:
    """Before anything is drawn, with one sentence that names the path."""
    main = {"segment": segment.main, "evaluate": evaluate.main, "calibrate": calibrate.main}[name]
    done = programs.run(main, *options)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1
    assert word in done.stderr and str(path) in done.stderr, done.stderr


def test_where_results_go_is_tried_before_the_work(bundle: Bundle, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, options in mains(bundle, cohort, tmp_path / "file"):
        refused(name, options, "a file lies in its way", tmp_path / "file")
    for name, options in mains(bundle, cohort, tmp_path / "file" / "below"):
        refused(name, options, "a file lies in its way", tmp_path / "file" / "below")
    with small_disk(tmp_path / "disk", 512) as disk:
        with open(disk / "ballast", "wb") as ballast:
            try:
                ballast.write(bytes(2**20))
            except OSError:
                pass
        for name, options in mains(bundle, cohort, disk / "out"):
            refused(name, options, "the disk is full", disk)
    with small_disk(tmp_path / "still", 8192) as still:
        model = random_bundle(still / "bundle", tiny_config(3, NAMES)).path
        subprocess.run(["mount", "-o", "remount,ro", str(still)], check=True)
        for name, options in mains(bundle, cohort, still / "out"):
            refused(name, options, "Read-only file system", still / "out")
        options = ["--model", str(model), "--data", str(cohort), "--split", "test", "--samples", "1"]
        refused("calibrate", options, "Read-only file system", model)


def test_a_disk_that_fills_up_ends_with_a_sentence_and_keeps_the_scores(
    bundle: Bundle, cohort: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 80) as disk:  # one trial, and no room for pictures
        options = ["--model", str(bundle.path), "--data", str(cohort), "--split", "all", "--samples", "1"]
        done = programs.run(evaluate.main, *options, "--out", str(disk), "--pictures", "2")
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        assert "/4] first  Dice" in done.stdout and "4 cases, 2 labelled, 2 failed" in done.stdout
        assert "full" in done.stderr and str(disk) in done.stderr


LONG = """
import time
from ldseg.commands import Progress
with Progress(3, silence_s=0.05) as progress:
    progress.show(1, "case_b")
    print("begun", flush=True)
    input()
"""


def test_a_program_that_works_in_silence_says_so_into_a_pipe_too() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", LONG], stdin=pipe, stderr=pipe, stdout=pipe, text=True, cwd=ROOT
    ) as it:
        assert it.stderr is not None and it.stdin is not None
        assert it.stderr.readline() == "[1/3] case_b\n"
        assert all("[1/3] case_b, " in it.stderr.readline() for _ in range(3))
        it.stdin.write("\n")
        it.stdin.close()
        assert it.wait(60) == 0


def test_a_piped_segmentation_says_a_line_a_case(bundle: Bundle, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "data" / f"{name}.nii.gz", seed)
    options = ["--model", str(bundle.path), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    program = [sys.executable, str(ROOT / "platform" / "segment.py"), *options, "--samples", "1"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines() == ["[0/2] a", "[1/2] b", "[2/2]"], done.stderr
    document = json.loads((tmp_path / "out" / "cases" / "a.json").read_text())
    assert document["state"] == "done" and np.isfinite(document["agreement"])
