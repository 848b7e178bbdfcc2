"""End-to-end training draws from the posterior and not around its mean, where the posterior is known."""

import subprocess
import sys

import pytest

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.data.cohort import read_cohort
from ldseg.evaluation.cases import known_posterior
from ldseg.evaluation.evaluate import Scoring, evaluate
from ldseg.posterior.draws import Draws


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_training_of_minutes_recovers_the_posterior_of_phantoms_and_one_step_does_not(tmp_path):
    data, out = str(tmp_path / "phantoms"), str(tmp_path / "out")
    run("-m", "ldseg.data.phantom", "--out", data, "--dims", "2", "--cases", "600", "--seed", "1")
    shipped = ["--space", "phantom2d", "--epochs", "30", "--only", "as shipped", "--train-only"]
    run("benchmarks/quality/ablation.py", "--data", data, *shipped, "--out", out)
    bundle, cases = load_bundle(tmp_path / "out" / "as-shipped"), read_cohort(data).split("test")[:60]

    def means(steps: int | None = None) -> dict[str, float]:
        found = evaluate(bundle, cases, Draws(16, steps), scoring=Scoring(known_posterior(data)))
        return {name: entry["mean"] for name, entry in found.summary["metrics"].items()}

    drawn, repeated = means(), means(1)
    assert drawn["ged"] < 1.6 * drawn["ged_truth"] < 2 * drawn["ged_truth"] < repeated["ged"]
    assert 0.6 < drawn["organ_size_sd"] < 1.2 and repeated["organ_size_sd"] < 0.05
    for name, bar in (("organ_size_crps", 1.2), ("nodule_presence_error", 2), ("lobe_mode_error", 2)):
        assert drawn[name] < bar * drawn[f"{name}_truth"], (name, drawn[name], drawn[f"{name}_truth"])
