import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from ldseg.config import Config
from ldseg.model import LDSeg
from ldseg.networks.blocks import FINE, depth_to_space, space_to_depth
from ldseg.networks.denoiser import MatchedFilter
from ldseg.training.losses import TrainingLoss

DIMS = pytest.mark.parametrize("dims", [2, 3])


def _model(config):
    torch.manual_seed(0)
    return LDSeg(config).eval()


def _batch(config, size=2):
    generator = torch.Generator().manual_seed(1)
    shape = config.data.shape
    images = torch.randn(size, config.data.in_channels, *shape, generator=generator)
    labels = torch.randint(0, config.data.num_classes, (size, *shape), generator=generator)
    latent = LDSeg(config).latent_shape(shape)
    t = torch.randint(0, 1000, (size,), generator=generator)
    draws = [torch.randn(size, *latent, generator=generator) for _ in range(2)]
    return images, labels, t, *draws


@pytest.mark.parametrize("patch", [(2, 2), (4, 1), (2, 2, 2), (2, 4, 1)])
def test_depth_to_space_undoes_space_to_depth(patch):
    x = torch.randn(2, 3, *[8] * len(patch))
    y = space_to_depth(x, patch)
    assert y.shape == (2, 3 * torch.tensor(patch).prod(), *[8 // p for p in patch])
    assert torch.equal(depth_to_space(y, patch), x)


@DIMS
def test_shapes_fit_together(dims):
    config = tiny_config(dims)
    model = _model(config)
    images, labels, *_ = _batch(config)
    one_hot = F.one_hot(labels, config.data.num_classes).movedim(-1, 1).float()
    z = model.encode_label(one_hot)
    assert z.shape == (2, *model.latent_shape(config.data.shape))
    embedding = model.encode_image(images)
    assert model.decode(z, embedding).shape == one_hot.shape
    assert embedding.shape[2:] == z.shape[2:]
    noise = iter([torch.randn_like(z)])
    assert model.sample_latents(embedding, noise, config.sampler).shape == z.shape


def test_a_time_axis_of_any_length_passes_through():
    config = Config.from_dict(
        {
            "data": {"shape": [16, 16, 5]},
            "model": {
                "downsampling": [4, 4, 1],
                "patch": [2, 2, 1],
                "autoencoder_widths": [8, 8],
                "image_widths": [8, 8],
                "denoiser_widths": [8, 16],
            },
        }
    )
    batch = _batch(config)
    assert batch[3].shape[2:] == (4, 4, 5)
    assert torch.isfinite(TrainingLoss(LDSeg(config))(*batch)["loss"])


@DIMS
@pytest.mark.parametrize("skips", [0, 8])
def test_the_decoder_sees_each_finer_level_of_the_image_only_with_skips(dims, skips):
    config = tiny_config(dims).with_overrides(
        {
            "data.shape": [32] * dims,
            "model.downsampling": [8, *[4] * (dims - 1)],  # two levels finer than the latent, one axis halved once
            "model.autoencoder_widths": [8, 16, 8],
            "model.image_widths": [8, 16, 8],
            "model.denoiser_widths": [8],
            "model.image_logits": False,
            "model.decoder_skips": skips,
        }
    )
    model = _model(config)
    for layer in model.label_decoder.skips.values() if skips else ():
        torch.nn.init.normal_(layer.weight)
    images, *_, noise = _batch(config)
    embedding = model.encode_image(images).requires_grad_()
    decoded = model.decode(noise, embedding)
    assert decoded.shape == (2, 3, *config.data.shape)
    assert decoded.requires_grad
    gradient = torch.autograd.grad(decoded.square().sum(), embedding, allow_unused=True)[0]
    if not skips:
        assert gradient is None and embedding.shape[1] == config.model.embedding_channels
        return
    packed = [8, skips * 4 * 2 ** (dims - 1), skips * 2]
    assert [bool(part.abs().amin((0, *range(2, part.ndim))).max() > 0) for part in gradient.split(packed, 1)] == [
        True
    ] * 3


@DIMS
@pytest.mark.parametrize("patch", [2, 4])
def test_a_finer_image_encoder_tells_the_last_convolution_of_single_voxels(dims, patch):
    config = tiny_config(dims).with_overrides(
        {
            "model.patch": [patch] * dims,
            "model.image_logits": False,
            "model.decoder_skips": 8,
            "model.image_patch": [1] * dims,
            "model.autoencoder_widths": [8, 8] if patch == 2 else [8],
            "model.image_widths": [8, 8, 16, 16],
        }
    )
    model = _model(config)
    skips = model.label_decoder.skips
    images, *_, noise = _batch(config)
    embedding = model.encode_image(images)
    assert embedding.shape[1] == 8 + FINE * 4**dims + (8 * 2**dims if patch == 2 else 0)
    with torch.no_grad():
        before = model.decode(noise, embedding)
        embedding[:, 8] += 1  # the finest level is packed after the embedding: one channel of one voxel of each patch
        changed = (model.decode(noise, embedding) - before).abs().amax((0, 1))
    # one voxel of each latent position's 4 per axis, and its neighbours under a kernel of three
    assert set(torch.unique((changed > 0).sum(tuple(range(1, dims))) > 0).tolist()) == {False, True}
    TrainingLoss(model)(*_batch(config))["loss"].backward()
    assert all(float(weight.grad.abs().max()) > 0 for weight in skips.parameters() if weight.ndim > 1)


@DIMS
@pytest.mark.parametrize("climb", [False, True])
def test_only_an_image_encoder_that_climbs_back_tells_the_finest_grid_of_the_deepest(dims, climb):
    config = tiny_config(dims).with_overrides(
        {
            "model.image_logits": False,
            "model.image_patch": [1] * dims,
            "model.image_widths": [8, 8, 16, 16],
            "model.decoder_skips": 8,
            "model.image_climb": climb,
        }
    )
    model = _model(config)
    deepest = model.image_encoder.downs[-1].weight
    context, finest, middle = model.encode_image(_batch(config)[0]).split([8, FINE * 4**dims, 8 * 2**dims], dim=1)
    assert torch.autograd.grad(context.square().sum(), deepest, retain_graph=True)[0].abs().max() > 0
    for level in (finest, middle):
        (gradient,) = torch.autograd.grad(level.square().sum(), deepest, retain_graph=True, allow_unused=True)
        assert (gradient is not None and float(gradient.abs().max()) > 0) is climb


def _two_levels(dims, **overrides):
    """Two levels finer than the latent, of which one axis is halved once more than the others."""
    changed = {
        "data.shape": [32] * dims,
        "model.downsampling": [8, *[4] * (dims - 1)],
        "model.autoencoder_widths": [8, 16, 8],
        "model.image_widths": [8, 16, 8, 16],
        "model.denoiser_widths": [8],
        **overrides,
    }
    return tiny_config(dims).with_overrides(changed)


@DIMS
@pytest.mark.parametrize("logits", [False, True])
def test_the_decoder_sees_the_image_only_with_its_logits(dims, logits):
    config = _two_levels(dims, **{"model.image_logits": logits})
    model = _model(config)
    for layer in model.label_decoder.skips if logits else ():
        torch.nn.init.normal_(layer.weight)
    images, *_, noise = _batch(config)
    embedding = model.encode_image(images).requires_grad_()
    decoded = model.decode(noise, embedding)
    assert decoded.shape == (2, 3, *config.data.shape)
    gradient = torch.autograd.grad(decoded.square().sum(), embedding, allow_unused=True)[0]
    if not logits:
        assert gradient is None and embedding.shape[1] == config.model.embedding_channels
        return
    positions = 4 * 2 ** (dims - 1)  # of the patches' grid in one of the latent's
    assert embedding.shape[1] == 8 + positions * (8 + 3 * 2**dims)
    context, handed = gradient.split([8, gradient.shape[1] - 8], 1)
    assert context.abs().amax((0, *range(2, dims + 2))).min() > 0
    assert handed.abs().amax((0, *range(2, dims + 2))).min() > 0


@DIMS
def test_a_sample_is_the_images_logits_and_a_residual(dims):
    config = _two_levels(dims)
    model = _model(config)
    images, _, _, noise, other = _batch(config)
    embedding = model.encode_image(images)
    alone = model.image_logits(embedding)
    assert torch.equal(model.decode(noise, embedding), model.decode(noise, model.hand_over(embedding)))
    assert alone.shape == (2, 3, *config.data.shape)
    assert (model.decode(noise, embedding) - model.decode(other, embedding)).abs().max() > 1e-3
    for parameter in model.label_decoder.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(model.decode(noise, embedding), alone)


@DIMS
def test_a_voxels_logits_stay_where_it_is(dims):
    """Features and logits are packed and unpacked once more than they are computed: the positions must come back."""
    config = _two_levels(dims)
    model = _model(config)
    encoder, seen = model.image_encoder, []
    encoder.features.register_forward_hook(lambda _, inputs, output: seen.append(output))
    encoder.ups[-1].register_forward_hook(lambda _, inputs, output: seen.append(output))
    embedding = model.encode_image(_batch(config)[0])
    features, _ = model.label_decoder.unpack(embedding)
    logits, expected = seen
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(model.image_logits(embedding), logits)


@DIMS
@pytest.mark.parametrize("widths", [[8, 16, 24, 16], [8, 16, 24]], ids=["deeper than the latent", "down to it"])
def test_the_images_logits_see_its_deepest_level(dims, widths):
    config = _two_levels(dims, **{"model.image_widths": widths})
    model = _model(config)
    deepest = model.image_encoder.bottom.shortcut.weight
    logits = model.image_logits(model.encode_image(_batch(config)[0]))
    assert torch.autograd.grad(logits.square().sum(), deepest)[0].abs().max() > 0


@DIMS
def test_an_item_does_not_depend_on_its_batch(dims):
    config = tiny_config(dims)
    model = _model(config)
    images, _, t, noise, *_ = _batch(config, 3)
    together = model.denoise(noise, t, model.encode_image(images))
    alone = model.denoise(noise[1:2], t[1:2], model.encode_image(images[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)  # float32 sums in another order


@DIMS
def test_samples_of_one_image_are_those_of_its_copies(dims):
    """What the denoiser sees of an image is made once for all of its samples."""
    config = tiny_config(dims)
    model = _model(config)
    images, _, _, noise, _ = _batch(config)
    embedding = model.encode_image(images[:1])
    seen = []
    model.denoiser.matched.filter.register_forward_hook(lambda *_: seen.append(1))
    once = model.sample_latents(embedding.expand(2, *embedding.shape[1:]), iter([noise]), config.sampler)
    copies = model.sample_latents(torch.cat([embedding, embedding]), iter([noise]), config.sampler)
    torch.testing.assert_close(once, copies, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2  # and not once a step


@DIMS
@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_one_loss_trains_all_four_networks(dims, kind):
    config = tiny_config(dims).with_overrides({"diffusion.prediction_type": kind})
    loss = TrainingLoss(LDSeg(config))
    for _ in range(2):  # zero-initialised branches pass gradients from the second step on
        terms = loss(*_batch(config))
        loss.zero_grad()
        terms["loss"].backward()
        torch.optim.SGD(loss.parameters(), 0.05).step()
    for name, network in loss.model.named_children():
        if name != "direct":
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters()), name
            assert sum(float(p.grad.abs().sum()) for p in network.parameters()) > 0, name


@DIMS
def test_the_matched_filter_hears_a_pattern_that_lies_under_the_noise(dims):
    channels, grid, amplitude = 8, (32,) * dims, 0.1
    matched = MatchedFilter(tiny_config(dims).model, channels, 16)
    centre = (slice(None), slice(None), *[1] * dims)
    for layer in (matched.signal, matched.filter):  # each passes its first channel through
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        layer.weight.data[centre][0, 0] = 1
    heard = []
    matched.context.register_forward_pre_hook(lambda _, inputs: heard.append(float(inputs[0][0, 0])))
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(1, 8, *grid, generator=generator).sign()
    for sign in (1, -1, 0):
        z_t = sign * amplitude * pattern[:, :2] + torch.randn(1, 2, *grid, generator=generator)
        _, change = matched(z_t, matched.filter(pattern))
        assert not change.any(), "it starts without a say"
    # one position has a signal of 0.1 to 1; all of them together one of 0.1 sqrt(positions) to 1
    expected = amplitude * pattern[0, 0].numel() ** 0.5
    assert heard == pytest.approx([expected, -expected, 0], abs=3)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = tiny_config(2).with_overrides({"loss.denoising": 3.0, "loss.dice": 0.5, "loss.cross_entropy": 2.0})
    terms = TrainingLoss(_model(config))(*_batch(config))
    total = 2.0 * terms["cross_entropy"] + 0.5 * terms["dice_loss"] + 3.0 * terms["denoising"] + terms["reconstruction"]
    total += terms["image"]
    torch.testing.assert_close(terms["loss"].detach(), total)


def test_a_detached_target_keeps_the_denoising_term_out_of_the_label_encoder():
    config = tiny_config(2).with_overrides(
        {"loss.cross_entropy": 0.0, "loss.dice": 0.0, "diffusion.prediction_type": "x0"}
    )
    images, labels, _, *draws = _batch(config)
    noisiest = torch.full((2,), 999)  # at the last step z_t holds no label, so only the target could pass gradients
    for detach, expected in ((True, False), (False, True)):
        model = LDSeg(config.with_overrides({"loss.detach_target": detach}))
        TrainingLoss(model)(images, labels, noisiest, *draws)["loss"].backward()
        gradient = model.label_encoder.layers[0].weight.grad
        assert (float(gradient.abs().max()) > 1e-4) is expected


def test_the_no_diffusion_control_decodes_its_embedding_and_never_varies():
    config = tiny_config(2).with_overrides({"loss.deterministic": True})
    model = _model(config)
    images, _, _, noise, *_ = batch = _batch(config)
    terms = TrainingLoss(model)(*batch)
    assert set(terms) == {"loss", "cross_entropy", "dice_loss"}
    embedding = model.encode_image(images)
    a, b = (model.sample_latents(embedding, iter([torch.randn_like(noise)]), config.sampler) for _ in range(2))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="deterministic"):
        _model(tiny_config(2)).direct_latents(embedding)
