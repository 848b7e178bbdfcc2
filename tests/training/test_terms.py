"""What the switches of the loss do to its terms."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from ldseg.model import LDSeg
from ldseg.training.losses import TrainingLoss, draw_training

DIMS = pytest.mark.parametrize("dims", [2, 3])


def _inputs(config, size=3):
    generator = torch.Generator().manual_seed(1)
    shape = config.data.shape
    images = torch.randn(size, config.data.in_channels, *shape, generator=generator)
    labels = torch.randint(0, config.data.num_classes, (size, *shape), generator=generator)
    latent = (size, *LDSeg(config).latent_shape(shape))
    t = torch.tensor([10, 500, 900])[:size]
    return images, labels, t, *[torch.randn(latent, generator=generator) for _ in range(2)]


def _terms(config, inputs, decode_clean=None):
    """All terms of the same random model."""
    torch.manual_seed(0)
    model = LDSeg(config).eval()
    for layer in model.label_decoder.skips:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return {name: term.detach() for name, term in TrainingLoss(model)(*inputs, decode_clean).items()}


@DIMS
def test_decoding_one_of_two_in_turns_is_the_same_loss_in_the_mean(dims):
    """Also where the decoded estimate weighs by its step, and an item's turn is not its neighbour's."""
    config = tiny_config(dims).with_overrides(
        {"loss.timestep_weight": "alphas_cumprod", "loss.reconstruction": 0.7, "loss.estimate_dice": False}
    )
    inputs = _inputs(config)
    both = _terms(config, inputs)
    for turn in ([True, False, True], [True, True, True]):
        first = torch.tensor(turn)
        one, other = _terms(config, inputs, first), _terms(config, inputs, ~first)
        assert float(one["loss"]) != pytest.approx(float(both["loss"]), rel=1e-3)
        for name in ("loss", "cross_entropy", "dice_loss", "reconstruction", "denoising", "image"):
            mean = (float(one[name]) + float(other[name])) / 2
            assert mean == pytest.approx(float(both[name]), rel=1e-5), name  # float32 sums in another order


@DIMS
def test_an_item_that_decodes_one_of_two_weighs_it_twice(dims):
    config = tiny_config(dims)
    images, labels, t, noise, perturbation = inputs = _inputs(config, 1)
    both = _terms(config, inputs)
    estimate, clean = (_terms(config, inputs, torch.tensor([turn])) for turn in (False, True))
    assert float(estimate["cross_entropy"]) == pytest.approx(2 * float(both["cross_entropy"]), rel=1e-5)
    assert float(clean["reconstruction"]) == pytest.approx(2 * float(both["reconstruction"]), rel=1e-5)
    assert float(clean["cross_entropy"]) == float(estimate["reconstruction"]) == 0


def test_every_other_item_of_a_batch_decodes_its_clean_latent_and_either_begins():
    config = tiny_config(2)
    turns = config.with_overrides({"loss.decodings": "one"})
    images, generator = torch.zeros(4, 1, *config.data.shape), torch.Generator().manual_seed(0)
    drawn = [draw_training(LDSeg(turns), images, generator)[3].tolist() for _ in range(20)]
    assert {tuple(turn) for turn in drawn} == {(True, False, True, False), (False, True, False, True)}
    assert len(draw_training(LDSeg(config), images, generator)) == 3


@DIMS
def test_without_dice_the_estimate_has_its_cross_entropy_and_all_else_is_as_it_was(dims):
    config = tiny_config(dims).with_overrides({"loss.dice": 1.5})
    inputs = _inputs(config)
    with_dice, without = _terms(config, inputs), _terms(config.with_overrides({"loss.estimate_dice": False}), inputs)
    taken = float(with_dice["loss"] - without["loss"])
    assert taken == pytest.approx(1.5 * float(with_dice["dice_loss"]), rel=1e-4) and taken > 0.1
    for name in ("cross_entropy", "dice_loss", "reconstruction", "denoising", "image"):
        assert torch.equal(with_dice[name], without[name]), name


@DIMS
def test_the_images_own_term_has_its_weight(dims):
    config = tiny_config(dims).with_overrides({"loss.cross_entropy": 0.5, "loss.dice": 1.5})
    images, labels, *_ = inputs = _inputs(config)
    terms = {weight: _terms(config.with_overrides({"loss.image": weight}), inputs) for weight in (0.0, 1.0, 3.0)}
    image = float(terms[1.0]["image"])
    for weight, found in terms.items():
        assert float(found["loss"] - terms[0.0]["loss"]) == pytest.approx(weight * image, rel=1e-4, abs=1e-6)
    torch.manual_seed(0)
    model = LDSeg(config).eval()
    logits = model.image_logits(model.encode_image(images)).detach()
    one_hot = F.one_hot(labels, config.data.num_classes).movedim(-1, 1)[:, 1:].float()
    p, axes = logits.softmax(1)[:, 1:], tuple(range(2, dims + 2))
    dice = 1 - (2 * (p * one_hot).sum(axes) + 1) / (p.sum(axes) + one_hot.sum(axes) + 1)
    expected = 0.5 * float(F.cross_entropy(logits, labels)) + 1.5 * float(dice.mean())
    assert image == pytest.approx(expected, rel=1e-5)
    plain = config.with_overrides({"model.image_logits": False})
    assert "image" not in _terms(plain, inputs)


@DIMS
def test_an_update_of_the_image_alone_reaches_the_image_encoder_and_no_other_network(dims):
    config = tiny_config(dims).with_overrides({"loss.image": 0.5})
    images, labels, *drawn = _inputs(config)
    torch.manual_seed(0)
    model = LDSeg(config).eval()
    terms = TrainingLoss(model)(images, labels)
    terms["loss"].backward()
    assert set(terms) == {"loss", "image"}
    assert float(terms["loss"]) == pytest.approx(
        0.5 * float(_terms(config, (images, labels, *drawn))["image"]), rel=1e-5
    )
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == {"image_encoder"}


def test_as_many_updates_are_of_the_image_alone_as_asked():
    config = tiny_config(2)
    images, generator = torch.zeros(2, 1, *config.data.shape), torch.Generator().manual_seed(0)
    model = LDSeg(config.with_overrides({"loss.image_alone": 0.75}))
    drawn = [draw_training(model, images, generator) for _ in range(400)]
    alone = sum(not one for one in drawn)
    assert 270 <= alone <= 330  # 3.5 deviations of a binomial
    assert all(len(one) == 3 for one in drawn if one)
    assert all(draw_training(LDSeg(config), images, generator) for _ in range(20))
