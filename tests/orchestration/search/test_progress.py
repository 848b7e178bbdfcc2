import math
from types import SimpleNamespace

import pytest

from ldseg.commands import tune
from ldseg.orchestration.search.progress import SearchProgress
from ldseg.orchestration.search.study import Study


def _study(**options):
    return Study(name="s", home="/h", data="/d", space="x", trials=12, epochs=5, **options)


def _trial(number):
    return SimpleNamespace(trial_id=str(number), config={"number": number, "values": {"optim.learning_rate": 0.001}})


def test_it_counts_keeps_the_best_and_says_how_long():
    said = []
    before = [{"val_dice": 0.81}, {"val_dice": 0.5}, {}, {}]
    progress = SearchProgress(_study(), said.append, ended=before, failed=1)
    assert progress.best == {"val_dice": 0.81}
    assert math.isnan(progress.minutes_left())
    progress.began -= 120  # two minutes ago
    for number, (dice, score) in enumerate([(0.8, 0.05), (0.7, 0.04)], start=4):
        progress.on_trial_start(0, [], _trial(number))
        progress.on_trial_result(0, [], _trial(number), {"epoch": 1, "val_dice": dice, "val_energy_score": score})
    progress.on_trial_complete(0, [], _trial(4))
    assert progress.status().startswith(
        "4 of 12 done, 1 running, 1 failed; best val_dice 0.8100, val_energy_score 0.0400; about 14"
    )
    progress.on_trial_error(0, [], _trial(5))
    assert said[-1].startswith("4 of 12 done, 0 running, 2 failed") and "about 6 min left" in said[-1]
    assert said[0] == "trial 5/12  starts  optim.learning_rate=0.001"


def test_the_budget_of_hours_bounds_the_time_left_and_quiet_says_nothing(capsys):
    progress = SearchProgress(_study(hours=0.05), None)
    progress.began -= 60
    progress.on_trial_start(0, [], _trial(0))
    progress.on_trial_complete(0, [], _trial(0))
    assert progress.minutes_left() == pytest.approx(2.0, abs=0.1)  # not the 11 that 11 trials would take
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (1, 0.0)),
        (["--trials-at-once", "3"], (3, 0.0)),
        (["--gpus", "4"], (4, 1.0)),
        (["--gpus", "2", "--gpus-per-worker", "0.5"], (4, 0.5)),
        (["--gpus", "4", "--workers", "2"], (2, 1.0)),
        (["--gpus", "4", "--trials-at-once", "2"], (2, 1.0)),
        (["--gpus", "1", "--trials-at-once", "9", "--gpus-per-worker", "0.25"], (4, 0.25)),
    ],
)
def test_gpus_are_shared_out(given, expected):
    assert tune.shares(tune.parse(["--data", "d", "--space", "s", *given])) == expected


@pytest.mark.parametrize("given", [["--gpus", "1", "--workers", "2"], ["--gpus", "-1"], ["--trials-at-once", "0"]])
def test_gpus_that_feed_no_trial_are_refused(given):
    with pytest.raises(ValueError, match="--gpus|--trials-at-once"):
        tune.shares(tune.parse(["--data", "d", "--space", "s", *given]))
