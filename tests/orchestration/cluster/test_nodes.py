"""A cluster of several node processes on this machine, without root: one joins, one is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldseg import ROOT

HERE = Path(__file__).resolve().parent
EPOCHS = 20


@pytest.fixture(scope="module")
def seen(phantoms, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    path = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "node_loss.py"), str(home), str(phantoms), str(EPOCHS)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    print(done.stderr)  # the times, if a test fails
    return json.loads((home / "seen.json").read_text())


def test_a_node_that_is_lost_in_mid_training_costs_one_epoch_at_most(seen):
    lost, trained = seen["seen"]["the first node was killed"], seen["epochs"][0]
    assert lost["epochs"][0] < EPOCHS, "it was killed too late to show anything"
    assert sorted(set(trained)) == list(range(1, EPOCHS + 1))
    assert len(trained) <= EPOCHS + 1, f"more than one epoch was trained again: {trained}"
    assert seen["reasons"] == ["", ""] and seen["said"] == []


def test_a_node_that_joined_is_used_by_the_trial_that_lost_its_own_and_by_the_next(seen):
    lost = seen["seen"]["the first node was killed"]
    assert lost["epochs"][1] == 0, "the second trial began later, when no other node was left"
    assert seen["epochs"][1] == list(range(1, EPOCHS + 1))
