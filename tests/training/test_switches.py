"""The switches that lead from the default towards the authors' code, one fact each."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch.nn.parallel import DistributedDataParallel

from ldseg.config import ConfigError
from ldseg.diffusion import q_sample
from ldseg.model import LDSeg
from ldseg.training.fit import TrainingState, fit
from ldseg.training.losses import TrainingLoss


class Items(torch.utils.data.Dataset):
    """Four random cases that remember in which order they were asked for."""

    has_ignored = False

    def __init__(self, config):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(4, 1, *config.data.shape, generator=generator)
        self.labels = torch.randint(0, config.data.num_classes, (4, *config.data.shape), generator=generator)
        self.asked = []

    def __len__(self):
        return 4

    def set_epoch(self, epoch):
        pass

    def __getitem__(self, index):
        self.asked.append(index)
        return {"image": self.images[index], "label": self.labels[index], "case": str(index)}


def _trained(**overrides):
    config = tiny_config(2).with_overrides({"optim.epochs": 4, "optim.batch_size": 1, **overrides})
    items, state = Items(config), TrainingState.create(config)
    for _ in fit(state, items, None):
        pass
    return state, items


def _inputs(config):
    generator = torch.Generator().manual_seed(1)
    items = Items(config)
    shape = (3, *LDSeg(config).latent_shape(config.data.shape))
    t = torch.tensor([10, 500, 900])
    return items.images[:3], items.labels[:3], t, *[torch.randn(shape, generator=generator) for _ in range(2)]


def _loss(config, *inputs):
    torch.manual_seed(0)
    return float(TrainingLoss(LDSeg(config).eval())(*inputs)["loss"])


def test_without_shuffling_every_epoch_has_the_order_of_the_files():
    assert _trained(**{"optim.shuffle": False})[1].asked == [0, 1, 2, 3] * 4
    asked = _trained()[1].asked
    assert asked != [0, 1, 2, 3] * 4 and sorted(asked) == sorted([0, 1, 2, 3] * 4)


def test_the_average_covers_the_denoiser_alone_or_everything():
    for scope, equal in (("denoiser", True), ("all", False)):
        state, _ = _trained(**{"optim.ema_scope": scope})
        for name in ("label_encoder", "image_encoder", "label_decoder"):
            pairs = zip(getattr(state.ema, name).parameters(), getattr(state.model, name).parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs) == equal, name
        pairs = zip(state.ema.denoiser.parameters(), state.model.denoiser.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)


# a bias before a channel's own normalisation has a gradient of rounding alone, which Adam makes steps of
STEADY = {"model.image_logits": False}


def test_accumulated_batches_make_the_update_of_a_large_one():
    settings = {"loss.deterministic": True, "optim.amp": False, "optim.epochs": 3} | STEADY
    large, _ = _trained(**settings, **{"optim.batch_size": 2})
    small, _ = _trained(**settings, **{"optim.batch_size": 1, "optim.accumulate": 2})
    other, _ = _trained(**settings, **{"optim.batch_size": 1})
    assert (large.updates, small.updates, other.updates) == (6, 6, 12)
    assert _largest_difference(large, small) < 1e-4 < 1e-3 < _largest_difference(large, other)
    # what is left at the end of an epoch is an update of its own: 3 batches and 1
    assert _trained(**settings, **{"optim.batch_size": 1, "optim.accumulate": 3})[0].updates == 6


def test_several_workers_that_accumulate_make_the_update_of_one(tmp_path):
    settings = {"loss.deterministic": True, "optim.amp": False, "optim.epochs": 3, "optim.shuffle": False} | STEADY
    alone, _ = _trained(**settings, **{"optim.batch_size": 4})
    torch.multiprocessing.spawn(_train_share, (settings, str(tmp_path)), nprocs=2)
    for rank in range(2):
        together = TrainingState.create(alone.config)
        together.model.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert _largest_difference(alone, together) < 1e-4


def _train_share(rank, settings, folder):
    """Two of the four items of an update, one after the other, in one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    config = tiny_config(2).with_overrides({"optim.batch_size": 1, "optim.accumulate": 2, **settings})
    items, state = Items(config), TrainingState.create(config)
    # the networks of sampling have no part in this loss
    forward = DistributedDataParallel(TrainingLoss(state.model), find_unused_parameters=True)
    for _ in fit(state, items, None, forward=forward, rank=rank, world_size=2):
        pass
    torch.save(state.model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _largest_difference(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_shared_noise_is_the_first_draw_for_every_item():
    config = tiny_config(2)
    shared = config.with_overrides({"loss.shared_noise": True})
    images, labels, t, noise, perturbation = _inputs(config)
    repeated = noise[:1].repeat(3, 1, 1, 1)
    expected = _loss(config, images, labels, t, repeated, perturbation)
    assert _loss(shared, images, labels, t, noise, perturbation) == pytest.approx(expected, rel=1e-6)
    assert _loss(config, images, labels, t, noise, perturbation) != pytest.approx(expected, rel=1e-6)


def test_the_authors_estimate_is_the_noisy_latent_minus_the_predicted_noise():
    config = tiny_config(2).with_overrides(
        {"loss.decoded_estimate": "difference", "diffusion.prediction_type": "epsilon"}
    )
    images, labels, t, noise, perturbation = _inputs(config)
    torch.manual_seed(0)
    model = LDSeg(config).eval()
    terms = TrainingLoss(model)(images, labels, t, noise, perturbation)
    z_0 = model.encode_label(F.one_hot(labels, config.data.num_classes).movedim(-1, 1).float())
    z_t = q_sample(z_0, t, noise, model.alphas_cumprod)
    embedding = model.encode_image(images)
    logits = model.decode(z_t - model.denoise(z_t, t, embedding), embedding)
    assert float(terms["cross_entropy"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


def test_labels_may_enter_as_one_channel_of_class_numbers():
    config = tiny_config(2).with_overrides({"model.label_input": "value"})
    model = LDSeg(config).eval()
    first = next(model.label_encoder.parameters())
    assert first.shape[1] == 4, "one channel in patches of two by two"
    one_hot = F.one_hot(torch.randint(0, 3, (1, 16, 16)), 3).movedim(-1, 1).float()
    seen = []
    model.label_encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode_label(one_hot)
    assert sorted(seen[0].unique().tolist()) == [0, 1, 2]


def test_latents_first_keeps_what_is_decoded_away_from_denoiser_and_image_encoder():
    config = tiny_config(2).with_overrides(
        {"loss.timestep_weight": "never", "loss.denoising": 0.0, "model.image_logits": False}
    )
    model = LDSeg(config)
    TrainingLoss(model)(*_inputs(config))["loss"].backward()
    for name, reached in (
        ("label_decoder", True),
        ("label_encoder", True),
        ("denoiser", False),
        ("image_encoder", False),
    ):
        gradients = [p.grad for p in getattr(model, name).parameters() if p.grad is not None]
        assert any(bool(g.any()) for g in gradients) == reached, name


@pytest.mark.parametrize(
    "key, value",
    [("model.label_input", "onehot"), ("loss.decoded_estimate", "x_0"), ("optim.ema_scope", "everything")],
)
def test_a_switch_with_a_wrong_value_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        tiny_config(2).with_overrides({key: value})
