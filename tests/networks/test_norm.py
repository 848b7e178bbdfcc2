"""How many channels are normalised together."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from ldseg.config import Config, ConfigError
from ldseg.model import LDSeg
from ldseg.networks.blocks import norm


@pytest.mark.parametrize("dims", [2, 3])
def test_a_group_of_one_channel_is_instance_normalisation_and_one_group_is_layer_normalisation(dims):
    x = torch.randn(2, 16, *[5] * dims, dtype=torch.float64)
    assert torch.allclose(norm(16, 1).double()(x), F.instance_norm(x), rtol=1e-10)
    grouped = torch.nn.GroupNorm(16, 16).double()
    for weights in (grouped.weight, grouped.bias):
        torch.nn.init.normal_(weights)
    ours = norm(16, 1).double()
    ours.load_state_dict(grouped.state_dict())
    assert torch.allclose(ours(x), grouped(x), rtol=1e-10)
    assert torch.allclose(norm(16, 16).double()(x), F.layer_norm(x, x.shape[1:]), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 8])
def test_the_way_for_gpus_gives_the_same_numbers_and_gradients(dtype, group):
    x = (3 + 5 * torch.randn(2, 16, 6, 7, 8)).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    layer = norm(16, group).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for weights in (layer.weight, layer.bias):
        torch.nn.init.normal_(weights)
    inputs = [x.clone().requires_grad_(), x.double().clone().requires_grad_()]
    own = layer._wide(inputs[0])
    exact = F.group_norm(inputs[1], 16 // group, layer.weight.double(), layer.bias.double())
    assert own.dtype == dtype
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(own.double(), exact, **near)
    push = torch.randn(exact.shape, dtype=torch.float64)
    own.backward(push.to(dtype))
    exact.backward(push)
    torch.testing.assert_close(inputs[0].grad.double(), inputs[1].grad, **near)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_way_for_few_channels_in_bfloat16_is_off_by_its_rounding(dims):
    """The way's only error is the rounding of its result to 8 bits: half a step of 2^-7."""
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    x = (3 + 5 * torch.randn(1, 24, *[7, 8, 9][:dims])).to(torch.bfloat16).contiguous(memory_format=layout)
    layer = norm(24, 8)
    for weights in (layer.weight, layer.bias):
        torch.nn.init.normal_(weights)
    exact = F.group_norm(x.double(), 3, layer.weight.double(), layer.bias.double())
    with torch.inference_mode():
        own = layer(x)
        assert torch.equal(own, layer._narrow(x))
    assert own.dtype == torch.bfloat16 and own.is_contiguous(memory_format=layout)
    torch.testing.assert_close(own.double(), exact, rtol=2**-8, atol=1e-5)
    with_gradient = layer(x)  # PyTorch's own kernel
    torch.testing.assert_close(with_gradient.double(), exact, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_group_reaches_all_four_networks_and_costs_no_weight(dims):
    def built(group):
        return LDSeg(tiny_config(dims).with_overrides({"model.norm_group": group}))

    one, eight = built(1), built(8)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in eight.state_dict().items()}
    for network in (one.label_encoder, one.image_encoder, one.label_decoder, one.denoiser):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert norms and all(m.num_groups == m.num_channels for m in norms)


def test_a_group_that_does_not_divide_every_width_is_refused():
    with pytest.raises(ConfigError, match=r"norm_group 16 must divide every width"):
        Config.from_dict({"model": {"norm_group": 16}})
