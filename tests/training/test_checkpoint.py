"""Checkpoints on a real disk: a small one that fills up, files that are cut and flipped, a writer that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from smalldisk import small_disk
from tiny import tiny_config

from ldseg import ROOT
from ldseg.files import DiskFullError, append_line
from ldseg.training.checkpoint import (
    DIGEST,
    STATE,
    CheckpointError,
    add_checkpoint,
    checkpoints,
    newest_whole,
    read_state,
    write_state,
)
from ldseg.training.fit import TrainingState


def _add(run, epoch, size=1000):
    return add_checkpoint(run, lambda folder: write_state(folder, {"epoch": epoch, "x": torch.full((size,), epoch)}))


def _resume(run):
    """Epoch that a run goes on from, and what it is told."""
    epochs, told = [], []
    newest_whole(run, lambda folder: epochs.append(read_state(folder)["epoch"]), told.append)
    return (epochs or [0])[-1], told


def _cut(path):
    os.truncate(path, path.stat().st_size // 2)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_training_state_comes_back_and_its_digest_is_what_sha256sum_says(tmp_path):
    state = TrainingState.create(tiny_config(2))
    state.epoch, state.history = 3, [{"epoch": 3.0}]
    state.save(tmp_path)
    again = TrainingState.create(tiny_config(2))
    again.load(tmp_path)
    assert (again.epoch, again.history) == (3, [{"epoch": 3.0}])
    subprocess.run(["sha256sum", "--check", "--quiet", DIGEST], cwd=tmp_path, check=True)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_told_in_a_line_and_the_one_before_is_used(tmp_path, damage):
    for epoch in (1, 2, 3):
        _add(tmp_path, epoch)
    damage(checkpoints(tmp_path)[0] / STATE)
    epoch, told = _resume(tmp_path)
    assert epoch == 2 and len(told) == 1 and "\n" not in told[0] and "the one before is used" in told[0]
    assert _resume(tmp_path) == (2, []), "it is not looked at again"
    damage(checkpoints(tmp_path)[0] / STATE)
    epoch, told = _resume(tmp_path)
    assert epoch == 0 and "starting anew" in told[0]


def test_a_damaged_digest_is_a_damaged_checkpoint(tmp_path):
    _cut(_add(tmp_path, 1) / DIGEST)
    with pytest.raises(CheckpointError, match="its digest is another"):
        read_state(checkpoints(tmp_path)[0])


def test_a_checkpoint_of_an_earlier_version_has_no_digest_and_is_taken_if_it_can_be_read(tmp_path):
    for epoch in (1, 2):
        (_add(tmp_path, epoch) / DIGEST).unlink()
    assert _resume(tmp_path) == (2, [])
    _cut(checkpoints(tmp_path)[0] / STATE)
    epoch, told = _resume(tmp_path)
    assert epoch == 1 and "damaged and has no digest" in told[0]


def test_only_the_newest_two_are_kept(tmp_path):
    paths = [_add(tmp_path, epoch) for epoch in (1, 2, 3)]
    assert checkpoints(tmp_path) == paths[:0:-1] and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_told_with_its_place_and_the_checkpoint_before_is_still_there(tmp_path):
    with small_disk(tmp_path / "run", kilobytes=200) as run:
        _add(run, 1, size=10_000)  # 80 kB
        with pytest.raises(DiskFullError, match=r"the disk is full under .*/run.* \(0\.\d MiB free\)"):
            _add(run, 2, size=20_000)
        assert len(list(run.iterdir())) == 1, "nothing half-written stays"
        assert _resume(run) == (1, [])


def test_a_line_is_appended_after_a_torn_one_and_not_by_halves(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\ntw")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    with small_disk(tmp_path / "small", kilobytes=64) as folder:
        append_line(folder / "lines", "one")
        with pytest.raises(DiskFullError, match="the disk is full"):
            append_line(folder / "lines", "x" * 2**20)
        assert (folder / "lines").read_text() == "one\n"


WRITER = """
import sys
from pathlib import Path
import torch
from ldseg.training.checkpoint import add_checkpoint, write_state

x = torch.zeros(2_000_000)
for epoch in range(1, 10**6):
    add_checkpoint(Path(sys.argv[1]), lambda folder: write_state(folder, {"epoch": epoch, "x": x + epoch}))
    print(epoch, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_checkpoints_and_loses_none(tmp_path):
    for kill in range(4):
        run = tmp_path / str(kill)
        process = subprocess.Popen([sys.executable, "-c", WRITER, run], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        said = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(0.05 + 0.03 * kill)
        os.kill(process.pid, signal.SIGKILL)
        last = int((said + process.communicate()[0].splitlines())[-1])
        epoch, told = _resume(run)
        assert told == [] and epoch in (last, last + 1)
        assert not [path for path in run.iterdir() if path.suffix == ".tmp"]
