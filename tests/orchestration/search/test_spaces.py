import importlib
import pkgutil

import pytest

import tune_spaces
from ldseg.config import Config, ConfigError
from ldseg.orchestration.search.pareto import choose_steps
from ldseg.orchestration.search.spaces import load_space
from ldseg.orchestration.search.study import Study, open_study

SPACES = sorted(m.name for m in pkgutil.iter_modules(tune_spaces.__path__))


@pytest.mark.parametrize("name", SPACES)
def test_every_key_and_every_option_of_a_space_makes_a_configuration(name):
    space, module = load_space(name), importlib.import_module(f"tune_spaces.{name}")
    for key, domain in module.SPACE.items():
        choices = list(domain[1]) if domain[0] in ("options", "choice") else list(domain[1:])
        for choice in choices:
            assert isinstance(space.configuration({key: choice}, {}), Config)


def test_a_space_with_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("BASE = {}\nSPACE = {'loss.dise': ('uniform', 0, 1)}\nMETRIC = ('val_dice', 'max')\n")
    with pytest.raises(ConfigError, match=r"unknown configuration key 'loss\.dise'; did you mean 'loss\.dice'"):
        load_space(str(path))


def test_an_unknown_space_names_the_known_ones():
    with pytest.raises(ConfigError, match="choose one of echo, glas, hippocampus, knee, lidc, phantom2d, phantom3d"):
        load_space("brain")


def test_the_operators_overrides_win_over_the_trial():
    space = load_space("hippocampus")
    assert space.configuration({"model.latent_channels": 8}, {"model.latent_channels": 2}).model.latent_channels == 2


def _scores(values, name="val_energy_score"):
    return {f"{name}_steps{steps}": value for steps, value in zip((1, 2, 4, 8, 16), values, strict=True)}


def test_steps_are_the_cheapest_with_nearly_the_best_energy_score():
    # one step's samples are all alike, two's nearly: both cost energy score though their Dice may be the best
    assert choose_steps(_scores([0.14, 0.12, 0.101, 0.1, 0.1]) | _scores([0.9] + [0.8] * 4, "val_dice"), 10) == 4
    assert choose_steps(_scores([0.14, 0.13, 0.12, 0.1021, 0.1]), 10) == 16
    assert choose_steps(_scores([0.1, 0.12, 0.13, 0.14, 0.15]), 10) == 1


def test_a_model_that_was_not_scored_keeps_its_own_steps_and_one_of_an_earlier_version_goes_by_likelihood():
    assert choose_steps({}, 10) == 10
    assert choose_steps(_scores([0.3, 0.2, 0.2, 0.2, 0.2], "val_nll"), 10) == 2


def test_steps_whose_score_is_no_number_are_not_taken():
    nan = float("nan")
    assert choose_steps(_scores([nan, 0.1, 0.1, 0.1, nan]), 10) == 2
    assert choose_steps(_scores([nan] * 5), 10) == 10


def test_a_choice_between_lists_can_be_where_a_search_begins(tmp_path):
    widths = [[24, 64, 96], [24, 48, 96]]
    body = 'BASE = {}\nSPACE = {"model.image_widths": ("choice", %r)}\nSTART = [{"model.image_widths": %r}]\n'
    (tmp_path / "lists.py").write_text(body % (widths, widths[1]) + 'METRIC = ("val_dice", "max")\n')
    space = load_space(str(tmp_path / "lists.py"))
    study = Study(name="s", home=str(tmp_path), data="d", space="x", trials=1, epochs=1)
    stored = open_study(study, space, resume=False)
    assert space.suggest(stored.ask()) == {"model.image_widths": widths[1]}
