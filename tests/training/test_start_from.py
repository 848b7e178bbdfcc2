import pytest
import torch
from tiny import tiny_config

from ldseg.config import ConfigError
from ldseg.training.fit import TrainingState


def test_training_begins_with_the_weights_and_what_is_new_starts_without_a_say():
    plain = tiny_config(2).with_overrides({"model.decoder_skips": 0})
    first = TrainingState.create(plain)
    second = TrainingState.create(tiny_config(2).with_overrides({"optim.seed": 5}))
    fresh = second.start_from(first.model.state_dict())
    assert fresh and all(".skips." in name or ".handed." in name for name in fresh)
    images, latents = torch.randn(1, 1, 16, 16), torch.randn(1, 2, 4, 4)
    for model in (second.model, second.ema):
        torch.testing.assert_close(model.decode(latents, model.encode_image(images)), first.model.decode(latents))


def test_weights_of_another_size_or_with_other_parts_are_refused_by_name():
    state = TrainingState.create(tiny_config(2).with_overrides({"model.decoder_skips": 0}))
    with pytest.raises(ConfigError, match="do not fit: size mismatch for .*: "):
        state.start_from(TrainingState.create(tiny_config(2, ("one",))).model.state_dict())
    with pytest.raises(ConfigError, match="have image_encoder.handed.* which this configuration has not"):
        state.start_from(TrainingState.create(tiny_config(2)).model.state_dict())
