"""The page about a study: what it says, and that a hostile name stays text."""

import json
import re

import optuna
import pytest
from PIL import Image

from ldseg.orchestration.search.report import write_report
from ldseg.orchestration.search.search import Trial
from ldseg.orchestration.search.spaces import load_space
from ldseg.orchestration.search.study import Study


@pytest.fixture
def study(tmp_path):
    study = Study(name="a<b>&c", home=str(tmp_path), data="/d", space="phantom2d", trials=4, epochs=3)
    study.folder.mkdir(parents=True)
    return study


def _trial(number, home, reason=""):
    metrics = {"epoch": 3.0}
    for steps in (1, 2, 4, 8, 16):
        scores = {"val_dice": 0.5 + 0.1 * number, "val_nll": 0.3 - 0.01 * number, "val_seconds": 0.01 * steps}
        scores["val_energy_score"] = 0.2 - 0.01 * number
        metrics |= {f"{name}_steps{steps}": value for name, value in scores.items()}
    folder = home / "train" / f"s-{number}"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text(json.dumps({"epoch": 1, "val_nll": 0.4, "seconds": 3600.0}) + '\n{"ep')
    return Trial(
        number=number, name=f"s-{number}", values={"optim.learning_rate": 0.001 * (number + 1)},
        metrics={} if reason else metrics, run=None, steps=0 if reason else 2, checkpoint="", reason=reason,
        stopped=False,
    )  # fmt: skip


def _write(study, trials):
    stored = optuna.create_study()
    for trial in trials:
        if not trial.reason:
            distributions = {key: optuna.distributions.FloatDistribution(0, 1) for key in trial.values}
            value = trial.metrics["val_nll_steps2"]
            stored.add_trial(optuna.trial.create_trial(value=value, params=trial.values, distributions=distributions))
    home = study.folder.parents[1]
    page = write_report(study, load_space("phantom2d"), stored, trials, home).read_text()
    return re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)


def test_the_page_tells_of_the_trials_the_front_pictures_failures_and_cost(study, tmp_path):
    trials = [_trial(number, tmp_path) for number in range(4)] + [_trial(4, tmp_path, "diverged: <script>&")]
    (tmp_path / "evaluations" / "s-0" / "pictures").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "evaluations" / "s-0" / "pictures" / "case1.png")
    page = _write(study, trials)
    assert "5 trials: 4 trained to the end, 0 stopped early, 1 failed. Space phantom2d, val_nll (min)" in page
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Accuracy, uncertainty and speed", "Trials", "Learning curves", "What mattered", "Parallel coordinates",
        "Held-out cases", "Failures", "Cost",
    ]  # fmt: skip
    assert page.count('class="plotly-graph-div"') == 5 and '<tr class="best"><td>0</td><td>0.3</td><td>2</td>' in page
    assert "s-0, 2 steps, case case1" in page and "5.00 hours of training in all" in page
    assert "<b>" not in page and "a&lt;b&gt;&amp;c" in page and "diverged: &lt;script&gt;&amp;" in page


def test_a_study_of_which_nothing_came_says_none_in_each_section(study):
    page = _write(study, [])
    assert page.count("None.") == len(re.findall("<h2>", page)) == 7
    assert "Not told from 0 finished trials: it takes at least 4." in page
