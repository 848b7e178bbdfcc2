"""A case's folder is whole or absent: after kills at any instant, on a full disk, when it is published again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from publishing import NAMES, fault, image, summary_of
from service import ROOT
from smalldisk import small_disk

from ldseg.data.errors import CaseError
from ldseg.posterior.ensemble import EnsembleSummary
from ldseg.posterior.summary import write_summary
from ldseg.results import publication
from ldseg.results.publication import DiskFull, publish, sweep


def inside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_case_is_published_with_a_manifest_that_tells_every_file(tmp_path: Path) -> None:
    volume, folder = image(tmp_path), tmp_path / "results" / "cohort" / "a"
    described = publish(summary_of(volume, "a", 0), volume, NAMES, folder)
    assert fault(folder) == ""
    entries = {entry["name"]: entry for entry in described["files"].values()}
    assert set(entries) == inside(folder) and {"label", "lookup", "sidecar", "manifest"} <= set(described["files"])
    assert all((folder / name).stat().st_size == entry["bytes"] for name, entry in entries.items())
    assert inside(folder.parent) == {"a", "dataset_description.json"}


def test_several_models_results_are_published_like_one_models(tmp_path: Path) -> None:
    volume, folder = image(tmp_path), tmp_path / "cohort" / "a"
    one = summary_of(volume, "a", 0)
    third = one.predictive_entropy / 3
    parts = {"total": 3 * third, "epistemic": third, "aleatoric": 2 * third}
    names = ("case", "label", "mean_probability", "volumes", "unit", "agreement")
    shared = {name: getattr(one, name) for name in names}
    draws = {"num_samples": (4, 4), "num_steps": 2, "seed": 0, "model_digests": ("sha256:a", "sha256:b")}
    means = {name: float(array.mean()) for name, array in parts.items()}
    ensemble = EnsembleSummary(**shared, **parts, **draws, means=means, seconds={"read": 0.1}, label_values=(0, 1, 2))
    described = publish(ensemble, volume, NAMES, folder)
    assert fault(folder) == "" and {"label", "total", "epistemic", "aleatoric"} <= set(described["files"])
    assert described["numbers"]["mean_epistemic"] == means["epistemic"] and described["numbers"]["models"] == 2
    json.dumps(described)


def test_published_again_the_same_stays_and_another_takes_its_place(tmp_path: Path) -> None:
    volume, folder = image(tmp_path), tmp_path / "cohort" / "a"
    first = publish(summary_of(volume, "a", 0), volume, NAMES, folder)
    inode = folder.stat().st_ino
    again = publish(summary_of(volume, "a", 0), volume, NAMES, folder)
    assert folder.stat().st_ino == inode and again["files"] == first["files"]
    (folder / first["files"]["entropy"]["name"]).unlink()  # a folder that lacks a file is not the same
    publish(summary_of(volume, "a", 0), volume, NAMES, folder)
    assert fault(folder) == "" and folder.stat().st_ino != inode
    other = publish(summary_of(volume, "a", 1), volume, NAMES, folder)
    assert fault(folder) == "" and other["files"]["entropy"] != first["files"]["entropy"]
    assert inside(folder.parent) == {"a", "dataset_description.json"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_of_an_earlier_version_or_an_empty_one_is_replaced(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(publication, "_exchange", lambda one, other: False)
    volume = image(tmp_path)
    for case in ("old", "empty"):
        (tmp_path / "cohort" / case).mkdir(parents=True)
    (tmp_path / "cohort" / "old" / "old_label.nii.gz").write_bytes(b"x")
    for case in ("old", "empty"):
        publish(summary_of(volume, case, 0), volume, NAMES, tmp_path / "cohort" / case)
        assert fault(tmp_path / "cohort" / case) == ""
    assert inside(tmp_path / "cohort") == {"old", "empty", "dataset_description.json"}


def test_who_looks_while_it_is_replaced_always_finds_a_whole_one(tmp_path: Path) -> None:
    volume, folder, stop, wrong = image(tmp_path), tmp_path / "cohort" / "a", threading.Event(), []
    publish(summary_of(volume, "a", 0), volume, NAMES, folder)
    looked = 0

    def look() -> None:
        nonlocal looked
        while not stop.is_set():
            try:
                descriptor = os.open(folder, os.O_DIRECTORY)  # this very folder, whatever its name is by now
            except FileNotFoundError:
                wrong.append("absent")
                continue
            os.close(descriptor)
            looked += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for seed in range(1, 30):
            publish(summary_of(volume, "a", seed), volume, NAMES, folder)
    finally:
        stop.set()
        watcher.join()
    assert not wrong and looked > 100


def test_two_that_publish_the_same_case_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    volume, folder, errors = image(tmp_path), tmp_path / "cohort" / "a", []

    def work(seed: int) -> None:
        try:
            for _ in range(8):
                publish(summary_of(volume, "a", seed), volume, NAMES, folder)
        except OSError as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors and fault(folder) == ""
    assert inside(folder.parent) == {"a", "dataset_description.json"}


@pytest.mark.parametrize("how", ["exchange", "aside"])
def test_killed_at_random_instants_every_case_is_whole_or_absent(tmp_path: Path, how: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "publishing.py"), str(tmp_path), "20", how]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert told["left"] > 5, "the kills fell into publications"
    assert told["there"] == ["a", "b", "c"]


def test_what_was_set_aside_comes_back_at_the_next_start(tmp_path: Path) -> None:
    volume, cohort = image(tmp_path), tmp_path / "results" / "cohort"
    for case in ("a", "b"):
        publish(summary_of(volume, case, 0), volume, NAMES, cohort / case)
    (cohort / "a").rename(cohort / ".aside-a")  # killed between the two steps
    (cohort / ".aside-b").mkdir()  # killed before the old one went
    (cohort / ".staging-1").mkdir()
    (cohort / ".0.tmp").write_bytes(b"half of a description")
    sweep(tmp_path / "results", older_than_s=0)
    assert inside(cohort) == {"a", "b", "dataset_description.json"}
    assert fault(cohort / "a") == "" and fault(cohort / "b") == ""


@pytest.mark.parametrize("kilobytes", [0, 4, 12, 20, 28])
def test_a_full_disk_leaves_no_half_folder_and_says_one_sentence(tmp_path: Path, kilobytes: int) -> None:
    volume = image(tmp_path)
    files = write_summary(summary_of(volume, "a", 0), tmp_path / "once", volume, NAMES).values()
    needed = sum(path.stat().st_size for path in files)
    assert needed > 28 * 1024
    with small_disk(tmp_path / "disk", 160) as disk:
        publish(summary_of(volume, "a", 0), volume, NAMES, disk / "cohort" / "a")
        (disk / "ballast").write_bytes(bytes(max(0, free(disk) - 1024 * kilobytes)))
        before = inside(disk / "cohort")
        for case in ("a", "b"):  # one that is to be replaced, and a new one
            with pytest.raises(DiskFull) as caught:
                publish(summary_of(volume, case, 1), volume, NAMES, disk / "cohort" / case)
            text = str(caught.value)
            assert text.startswith(f"{case}: the disk of ") and "free some space" in text and "\n" not in text
            assert caught.value.errno == errno.ENOSPC
        assert inside(disk / "cohort") == before and fault(disk / "cohort" / "a") == ""
        (disk / "ballast").unlink()
        publish(summary_of(volume, "a", 1), volume, NAMES, disk / "cohort" / "a")
        assert fault(disk / "cohort" / "a") == "", "with room again it is published"


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def test_a_case_can_not_be_called_like_what_lies_beside_the_cases(tmp_path: Path) -> None:
    volume = image(tmp_path)
    for name in ("dataset_description.json", ".staging-a", ".aside-a"):
        with pytest.raises(CaseError, match="call the case otherwise"):
            publish(summary_of(volume, name, 0), volume, NAMES, tmp_path / "cohort" / name)


def test_another_fault_than_a_full_disk_is_told_as_what_it_is(tmp_path: Path) -> None:
    volume = image(tmp_path)
    (tmp_path / "cohort").write_bytes(b"a file where the folder should be")
    with pytest.raises(OSError) as caught:
        publish(summary_of(volume, "a", 0), volume, NAMES, tmp_path / "cohort" / "a")
    assert not isinstance(caught.value, DiskFull)
