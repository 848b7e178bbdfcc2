import json

import pytest

from ldseg import ROOT
from ldseg.config import Config, ConfigError, DataConfig, ModelConfig


def test_a_configuration_survives_json():
    config = Config(data=DataConfig(spacing_mm=(1.0, 1.0, 2.5)))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelt_key_is_an_error_that_names_the_right_one():
    with pytest.raises(
        ConfigError, match=r"unknown configuration key 'model\.latent_chanels'; did you mean 'latent_channels'"
    ):
        Config.from_dict({"model": {"latent_chanels": 8}})
    with pytest.raises(ConfigError, match=r"did you mean 'loss\.denoising'"):
        Config().with_overrides({"loss.denoisin": 2.0})


def test_an_override_replaces_one_value():
    assert Config().with_overrides({"loss.dice": 1}).loss.dice == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.shape": [48, 60, 48]}, r"data\.shape\[1\] = 60 must be a multiple of 8 for this model; 64 would do"),
        ({"model.latent_channels": 0}, "latent_channels"),
        ({"model.downsampling": [4, 3, 4]}, "powers of two"),
        ({"model.patch": [1, 1]}, "one entry per axis"),
        ({"model.patch": [3, 2, 2]}, r"patch \(3, 2, 2\) must divide"),
        ({"model.image_widths": [24]}, "image_widths .* needs at least 2"),
        ({"model.image_patch": [1, 1]}, "one entry per axis"),
        ({"model.image_patch": [4, 2, 2], "model.image_widths": [24, 64, 96]}, r"image_patch \(4, 2, 2\) must divide"),
        ({"model.image_patch": [1, 1, 1], "model.image_widths": [24, 64]}, "image_widths .* needs at least 3"),
        ({"data.max_rotation": [5, 25]}, "max_rotation needs 1 or 3 entries"),
        ({"optim.accumulate": 0}, "accumulate"),
        ({"sampler.num_sample_steps": 0}, "num_sample_steps"),
        ({"diffusion.prediction_type": "noise"}, "prediction_type"),
        ({"optim.learning_rate": "fast"}, "learning_rate must be of type float"),
        ({"data.structures": ["a", "b"]}, "must name each foreground value"),
    ],
)
def test_a_value_out_of_range_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        Config().with_overrides(overrides)


def test_a_time_axis_is_not_downsampled_and_needs_no_multiple():
    model = ModelConfig(
        downsampling=(8, 8, 1), patch=(2, 2, 1), autoencoder_widths=(8, 8, 8), image_widths=(8, 8, 8, 8)
    )
    assert model.levels == 2
    assert model.multiple == (16, 16, 1)


def test_an_image_encoder_with_finer_patches_has_levels_of_its_own():
    model = ModelConfig(
        downsampling=(8, 8, 1), patch=(4, 4, 1), image_patch=(1, 1, 1), autoencoder_widths=(8, 8),
        image_widths=(8, 8, 8, 8, 8),
    )  # fmt: skip
    assert (model.levels, model.image_levels, model.multiple) == (1, 3, (16, 16, 1))
    # the grids of both must meet: an axis that it does not divide keeps its patch, the others share one ratio
    with pytest.raises(ConfigError, match="image_patch"):
        ModelConfig(patch=(4, 2, 2), image_patch=(1, 1, 1), image_widths=(8, 8, 8, 8))


def test_logits_of_the_image_take_the_place_of_what_was_handed_over():
    for asked in ({"model.decoder_skips": 24}, {"model.image_climb": True}):
        with pytest.raises(ConfigError, match="image_logits takes the place"):
            Config().with_overrides({"model.image_logits": True, **asked})


def test_updates_of_the_image_alone_need_logits_of_its_own():
    with pytest.raises(ConfigError, match=r"loss\.image_alone needs model\.image_logits"):
        Config().with_overrides({"loss.image_alone": 0.5})
    with pytest.raises(ConfigError, match="image_alone must lie in"):
        Config().with_overrides({"model.image_logits": True, "loss.image_alone": 1.0})


def test_one_rotation_stands_for_all_planes():
    assert Config.from_dict({"data": {"max_rotation": 12}}).data.max_rotation == (12.0,)


def test_platform_is_no_package():
    root = ROOT
    assert not (root / "platform" / "__init__.py").exists(), "it would hide Python's own platform module"
