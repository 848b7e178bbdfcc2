import pytest
import torch
from tiny import tiny_config

from ldseg.config import ConfigError
from ldseg.training.fit import TrainingState


def test_training_begins_with_the_weights_and_says_what_is_new():
    plain = tiny_config(2).with_overrides({"model.denoiser_context": False})
    first = TrainingState.create(plain)
    second = TrainingState.create(tiny_config(2).with_overrides({"optim.seed": 5}))
    fresh = second.start_from(first.model.state_dict())
    assert fresh and all(name.startswith("denoiser.matched.") for name in fresh)
    for name, weight in first.model.state_dict().items():
        for model in (second.model, second.ema):
            assert torch.equal(model.state_dict()[name], weight), name


def test_weights_of_another_size_or_with_other_parts_are_refused_by_name():
    state = TrainingState.create(tiny_config(2).with_overrides({"model.image_logits": False}))
    with pytest.raises(ConfigError, match="do not fit: size mismatch for .*: "):
        state.start_from(TrainingState.create(tiny_config(2, ("one",))).model.state_dict())
    skips = tiny_config(2).with_overrides({"model.image_logits": False, "model.decoder_skips": 8})
    with pytest.raises(ConfigError, match="have image_encoder.handed.* which this configuration has not"):
        state.start_from(TrainingState.create(skips).model.state_dict())
