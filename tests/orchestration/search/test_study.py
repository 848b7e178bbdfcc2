import dataclasses
import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ldseg.config import ConfigError
from ldseg.data.cohort import read_cohort
from ldseg.orchestration.home import STUDIES_URL
from ldseg.orchestration.search.pareto import FRONT, Point, front, points
from ldseg.orchestration.search.search import read_trials
from ldseg.orchestration.search.searcher import OptunaPruner, StudySearcher
from ldseg.orchestration.search.spaces import load_space
from ldseg.orchestration.search.study import (
    REASON,
    REFUSED,
    STANDS_FOR,
    Study,
    objectives,
    open_study,
    read_study,
    study_names,
    trained,
)
from ldseg.orchestration.training import run
from ldseg.orchestration.training.run import HISTORY

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 4}}
SPACE = {
    "latent": ("options", {
        "small": {"loss.dice": ("uniform", 1.0, 2.0)},
        "large": {"model.patch": [2, 2], "loss.denoising": ("uniform", 0.5, 1.0)},
    }),
    "model.latent_channels": ("choice", [2, 4]),
}
METRIC = ("val_dice", "max")
"""
STEPS = (1, 2, 4, 8, 16)


@pytest.fixture
def study(phantoms, tmp_path):
    space = tmp_path / "mine.py"
    space.write_text(SPACE)
    return Study(name="s", home=str(tmp_path), data=str(phantoms), space=str(space), trials=4, epochs=8, seed=3)


def _searcher(study, resume=False):
    space = load_space(study.space)
    return StudySearcher(study, space, open_study(study, space, resume=resume))


def _history(study, number, **metrics):
    folder = _folder(study, number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HISTORY).write_text(json.dumps({"epoch": 8, **metrics}) + "\n")


def _folder(study, number):
    return Path(study.home) / "train" / study.run_name(number)


def _scored(dice=0.8, energy_score=0.1):
    return {
        name: value
        for n in STEPS
        for name, value in {
            f"val_dice_steps{n}": dice,
            f"val_energy_score_steps{n}": energy_score,
            f"val_nll_steps{n}": 0.3,
            f"val_seconds_steps{n}": 0.1 * n,
            f"val_agreement_steps{n}": 0.9,
        }.items()
    }


def test_what_hangs_on_an_option_is_drawn_for_that_option_only(study):
    searcher = _searcher(study)
    for number in range(4):
        values = searcher.suggest(str(number))["values"]
        other = {"small": "large", "large": "small"}[values["latent"]]
        assert any(key.startswith(f"latent={values['latent']}:") for key in values)
        assert not any(key.startswith(f"latent={other}:") for key in values)
        config = searcher.space.configuration(values, {})
        drawn = next(key for key in values if ":" in key)
        section, name = drawn.rpartition(":")[2].split(".")
        assert getattr(getattr(config, section), name) == values[drawn]


def test_a_search_reads_its_cohort_once(study, monkeypatch, tmp_path):
    reads = []
    monkeypatch.setattr(run, "read_cohort", lambda *a, **k: reads.append(a) or read_cohort(*a, **k))
    study = dataclasses.replace(study, split_seed=17)  # no other test has read it
    searcher = _searcher(study)
    for number in range(4):
        searcher.suggest(str(number))
        _history(study, number, **_scored())
        searcher.on_trial_complete(str(number), {})
    assert len(read_trials(study, searcher.space, searcher.stored)) == 4 and len(reads) == 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_search_that_was_killed_draws_what_it_would_have_drawn_and_takes_up_what_was_running(
    study, database, request, monkeypatch
):
    if database == "postgresql":
        monkeypatch.setenv(STUDIES_URL, request.getfixturevalue("postgres").new())
    whole = dataclasses.replace(study, name="whole")
    uninterrupted = _searcher(whole)
    expected = []
    for number in range(4):
        expected.append(uninterrupted.suggest(str(number)))
        _history(whole, number, **_scored())
        uninterrupted.on_trial_complete(str(number), {})

    first = _searcher(study)
    found = [first.suggest("0")]
    _history(study, 0, **_scored())
    first.on_trial_complete("0", {})
    found.append(first.suggest("1"))  # running when the driver dies
    second = _searcher(study, resume=True)
    again = second.suggest("x")
    assert again == found[1], "the trial that was running keeps its number and its values"
    _history(study, 1, **_scored())
    second.on_trial_complete("x", {})
    found += [second.suggest("y"), second.suggest("z")]
    assert second.suggest("w") is None, "a trial that runs may have to be started again"
    for number, trial in enumerate("yz", start=2):
        _history(study, number, **_scored())
        second.on_trial_complete(trial, {})
    assert second.suggest("w") == StudySearcher.FINISHED
    assert found[:3] == expected[:3]
    assert [trial.number for trial in trained(second.stored)] == [0, 1, 2, 3]


def test_one_database_holds_all_studies_and_its_password_is_not_told(study, postgres, monkeypatch):
    monkeypatch.setenv(STUDIES_URL, postgres.new())
    for name in ("one", "two"):
        _searcher(dataclasses.replace(study, name=name)).suggest("0")
    assert study_names(Path(study.home)) == ["one", "two"] and not list(Path(study.home).rglob("*.db"))
    assert len(read_study(Path(study.home), "two").trials) == 1
    with pytest.raises(ConfigError, match="the study one exists; give --resume"):
        _searcher(dataclasses.replace(study, name="one"))
    with pytest.raises(ConfigError, match="there is no study three in postgresql.*there is one, two"):
        read_study(Path(study.home), "three")
    (Path(study.home) / "studies" / "old.db").touch()
    with pytest.raises(ConfigError, match="the study old lies in .*old.db; unset LDSEG_STUDIES_URL"):
        _searcher(dataclasses.replace(study, name="old"))
    monkeypatch.setenv(STUDIES_URL, "postgresql+psycopg://me:secret@127.0.0.1:1/studies")
    with pytest.raises(ConfigError, match="LDSEG_STUDIES_URL .*can't be used") as caught:
        _searcher(study)
    assert "secret" not in str(caught.value)


def test_a_configuration_that_is_not_possible_is_refused_before_it_starts(study, tmp_path):
    text = SPACE.replace('"loss.dice": ("uniform", 1.0, 2.0)', '"model.patch": ("choice", [[1, 1], [3, 3]])')
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(ConfigError, match="needs 3 entries"):
        load_space(str(tmp_path / "odd.py"))  # an option that never works is told at once
    # each of the two works with the default of the other; both together need not
    (tmp_path / "odd.py").write_text(
        SPACE[: SPACE.index("SPACE =")]
        + "SPACE = {f'diffusion.beta_{end}': ('uniform', 1e-4, 0.02) for end in ('start', 'end')}\n"
        + "METRIC = ('val_dice', 'max')\n"
    )
    searcher = _searcher(dataclasses.replace(study, name="odd", space=str(tmp_path / "odd.py")))
    drawn = [searcher.suggest(str(n))["values"] for n in range(4)]
    assert searcher.suggest("5") is None
    assert all(v["diffusion.beta_start"] <= v["diffusion.beta_end"] for v in drawn)
    refused = [t for t in searcher.stored.trials if REFUSED in t.user_attrs]
    assert refused and all("beta_start <= beta_end" in t.user_attrs[REASON] for t in refused)
    assert len(trained(searcher.stored)) == 4


def test_a_space_without_a_possible_configuration_is_told(study, tmp_path):
    (tmp_path / "never.py").write_text(
        SPACE[: SPACE.index("SPACE =")]
        + "SPACE = {'diffusion.beta_start': ('uniform', 0.01, 0.02), 'diffusion.beta_end': ('uniform', 1e-4, 0.005)}\n"
        + "METRIC = ('val_dice', 'max')\n"
    )
    searcher = _searcher(dataclasses.replace(study, name="never", space=str(tmp_path / "never.py")))
    assert searcher.suggest("0") == StudySearcher.FINISHED
    assert searcher.exhausted.startswith(
        "200 configurations in a row were not possible, the last because diffusion needs"
    )
    assert trained(searcher.stored) == []


def test_memory_that_ran_out_is_a_failure_with_a_reason_and_infeasible_to_the_sampler(study):
    searcher = _searcher(study)
    number = searcher.suggest("0")["number"]
    study.failure(number).write_text(json.dumps({"reason": "CUDA out of memory. Tried to allocate 9 GiB"}))
    searcher.on_trial_complete("0", None, error=True)
    failed, told = searcher.stored.trials
    assert failed.state == TrialState.FAIL and "out of memory" in failed.user_attrs[REASON]
    assert told.user_attrs[STANDS_FOR] == number and told.params == failed.params
    assert told.constraints == {"memory": 1.0}
    assert len(trained(searcher.stored)) == 1
    with pytest.raises(ValueError):
        searcher.stored.best_trial  # noqa: B018  nothing feasible: Optuna itself says so


def test_a_model_without_a_number_fails_and_does_not_stay_running(study):
    searcher = _searcher(study)
    searcher.suggest("0")
    _history(study, 0, **_scored(dice=float("nan")))
    searcher.on_trial_complete("0", {})
    assert searcher.stored.trials[0].state == TrialState.FAIL
    assert "is no number" in searcher.stored.trials[0].user_attrs[REASON]


class _TuneTrial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


def test_early_stopping_remembers_its_rungs_after_a_restart(study):
    study = dataclasses.replace(study, trials=9)
    searcher = _searcher(study)
    pruner = OptunaPruner(searcher)
    for n in range(8):
        searcher.suggest(str(n))
        pruner.on_trial_result(None, _TuneTrial(str(n)), {"epoch": 2, "val_dice": 0.8 + 0.01 * n})
        _history(study, n, **_scored(0.8 + 0.01 * n))
        searcher.on_trial_complete(str(n), {})
    later = _searcher(study, resume=True)
    later.suggest("last")
    stop = OptunaPruner(later).on_trial_result(None, _TuneTrial("last"), {"epoch": 2, "val_dice": 0.1})
    assert stop == "STOP"
    later.on_trial_complete("last", {"epoch": 2})
    assert later.stored.trials[8].state == TrialState.PRUNED


def test_several_objectives_are_told_at_the_steps_that_serve_best(study):
    study = dataclasses.replace(study, front=True)
    searcher = _searcher(study)
    searcher.suggest("0")
    _history(study, 0, **_scored(0.7, 0.2))
    searcher.on_trial_complete("0", {})
    assert searcher.stored.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]
    assert searcher.stored.trials[0].values == [0.7, 0.2, 0.1]
    with pytest.raises(ConfigError, match="begun with another front"):
        _searcher(dataclasses.replace(study, front=False), resume=True)


def test_a_front_goes_on_with_the_objectives_that_it_was_begun_with(study):
    assert objectives(optuna.create_study()) == ["val_dice", "val_nll", "val_seconds"], "version 0.1 named none"
    study = dataclasses.replace(study, front=True)
    first = _searcher(study)
    assert objectives(first.stored) == [name for name, _ in FRONT]
    first.stored.set_user_attr("objectives", ["val_dice", "val_nll", "val_seconds"])
    later = _searcher(study, resume=True)
    later.suggest("0")
    _history(study, 0, **_scored(0.7, 0.2))
    later.on_trial_complete("0", {})
    assert later.stored.trials[0].values == [0.7, 0.3, 0.1]


def test_a_warm_start_tries_the_best_of_an_earlier_study_first(study):
    searcher = _searcher(study)
    for n, dice in enumerate((0.5, 0.9, 0.7, 0.6)):
        searcher.suggest(str(n))
        _history(study, n, **_scored(dice))
        searcher.on_trial_complete(str(n), {})
    later = _searcher(dataclasses.replace(study, name="later", warm_start="s"))
    assert later.suggest("0")["values"] == later.space.suggest(
        optuna.trial.FixedTrial(searcher.stored.trials[1].params)
    )


def test_checkpoints_of_what_is_on_the_front_or_among_the_best_are_kept_and_no_others(study):
    study = dataclasses.replace(study, trials=5)
    searcher = _searcher(study)
    for n, (dice, energy_score) in enumerate([(0.5, 0.5), (0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.4, 0.1)]):
        searcher.suggest(str(n))
        (_folder(study, n) / "checkpoint_1").mkdir(parents=True)
        _history(study, n, **_scored(dice, energy_score))
        searcher.on_trial_complete(str(n), {})
    kept = [n for n in range(5) if (_folder(study, n) / "checkpoint_1").exists()]
    assert kept == [1, 2, 3, 4], "0 is beaten in everything and not among the best three; 4 has the best energy score"


def test_the_front_is_what_nothing_beats():
    a, b, c = Point(0, 1, (0.8, 0.1, 1.0)), Point(0, 2, (0.8, 0.1, 2.0)), Point(1, 1, (0.6, 0.1, 0.5))
    assert front([a, b, c]) == [a, c]
    assert [p.steps for p in points(7, _scored())] == list(STEPS) and len(FRONT) == 3
    assert points(7, {"val_dice_steps1": 0.5}) == []


def test_a_trial_whose_process_dies_without_a_word_is_started_again_twice_in_an_epoch_and_keeps_its_checkpoints(study):
    searcher = _searcher(study)
    given = searcher.suggest("0")
    kept = _folder(study, 0) / "checkpoint_000001"
    for epoch, deaths in ((1, 2), (2, 3)):
        _history(study, 0, epoch=epoch)
        kept.mkdir(exist_ok=True)
        for death in range(1, deaths + 1):
            searcher.on_trial_complete("0", error=True)
            if death < 3:
                assert kept.is_dir() and searcher.suggest("0") == given
    trial = searcher.stored.trials[0]
    assert trial.state == TrialState.FAIL and "died 3 times in the same epoch" in trial.user_attrs[REASON]
    assert searcher.suggest("1")["number"] == 1
