"""A cluster of several node processes on this machine, without root: one joins, one is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
EPOCHS = 60


@pytest.fixture(scope="module")
def seen(phantoms, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "node_loss.py"), str(home), str(phantoms), str(EPOCHS)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_node_that_joins_is_used_by_the_next_trial(seen):
    joined, used = seen["seen"]["a node joined"], seen["seen"]["the second trial trains"]
    assert joined["epochs"][1] == 0, "there was no CPU for the second trial"
    assert used["epochs"][0] < EPOCHS, "the first trial had not ended and given back its CPU"


def test_a_node_that_is_lost_in_mid_training_costs_one_epoch_at_most(seen):
    lost, trained = seen["seen"]["a node was killed"], seen["epochs"][0]
    assert lost["epochs"][0] < EPOCHS, "it was killed too late to show anything"
    assert sorted(set(trained)) == list(range(1, EPOCHS + 1))
    assert len(trained) <= EPOCHS + 1, f"more than one epoch was trained again: {trained}"
    assert seen["epochs"][1] == list(range(1, EPOCHS + 1)), "the other node's trial noticed nothing"
    assert seen["reasons"] == ["", ""]
    assert seen["said"] == []
