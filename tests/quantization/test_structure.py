"""Moving scales between layers keeps a model's function, or does not happen."""

import copy

import pytest
import torch
from torch import nn

from gpuedu.quantization.run import (
    Reading,
    awq_quantizer,
    calibrate,
    fold_input_scales,
    quantize_model,
    readings,
    smooth_model,
)

WIDTH = 8


class Net(nn.Module):
    """A norm, linear layers, and a function that says who reads what."""

    def __init__(self, forward, norm=nn.LayerNorm, **layers):
        super().__init__()
        self.norm = norm(WIDTH)
        for name in "abo":
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x, self.norm(x))


class OnePlus(nn.Module):
    """Gemma's norm: it multiplies with 1 + weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight)


def tied(net):
    net.b.weight = net.a.weight
    return net


def inputs():
    torch.manual_seed(0)
    return torch.randn(64, WIDTH) * torch.arange(1, WIDTH + 1)


WITH_OTHER_READERS = {
    "parallel": Net(lambda m, x, h: m.o(m.a(h)) + m.b(h)),
    "residual": Net(lambda m, x, h: h + m.a(h)),
    "in a list": Net(lambda m, x, h: m.a(h) + torch.cat([h, x], -1)[:, :WIDTH]),
    "in place": Net(lambda m, x, h: m.a(h) + h.mul_(2)),
    "part of it": Net(lambda m, x, h: m.a(h) + m.b(h.view(h.shape))),
    "returned": Net(lambda m, x, h: {"outputs": [m.a(h), h]}),
    "norm runs twice": Net(lambda m, x, h: m.norm(m.a(h)) * 2),
    "weight is another's": tied(Net(lambda m, x, h: m.b(m.a(h)))),
    "1 + weight": Net(lambda m, x, h: m.a(h), norm=OnePlus),
    "no norm": Net(lambda m, x, h: m.a(h), norm=lambda _: nn.PReLU(WIDTH)),
}


@pytest.mark.parametrize("net", WITH_OTHER_READERS.values(), ids=WITH_OTHER_READERS)
def test_a_norm_that_cannot_take_a_scale_is_left_alone(net):
    """Folded all the same, the outputs were off by half."""
    x = inputs()
    assert {group.source for group in readings(net, x)} == {None}
    with pytest.raises(ValueError, match="at least one input that a norm makes for these layers alone"):
        smooth_model(net, calibrate(net, x))


@pytest.mark.parametrize("skipped", [(), ("b",)])
def test_a_skipped_layer_reads_too(skipped):
    net, x = Net(lambda m, x, h: m.a(h) + m.b(h)), inputs()
    together = readings(net, x, skip=skipped)
    assert together == [Reading(("a",), None) if skipped else Reading(("a", "b"), "norm")]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_looking_at_shapes_is_no_reading(norm):
    net = Net(lambda m, x, h: m.o(m.a(h) + m.b(h)).view(h.shape).to(h.dtype) * len(h), norm=norm)
    x = inputs()
    assert readings(net, x)[0] == Reading(("a", "b"), "norm")
    before = net(x)
    assert list(smooth_model(net, calibrate(net, x))) == ["norm"]
    assert torch.allclose(net(x), before, rtol=1e-4, atol=1e-3)


def test_an_input_scale_of_awq_has_to_have_a_place_before_anything_is_folded():
    net, x = Net(lambda m, x, h: h + m.a(h)), inputs()
    matrices = quantize_model(net, x, awq_quantizer(4))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="a: its input scale must have a norm or a layer of pairs"):
        fold_input_scales(net, matrices, readings(net, x))
    net = Net(lambda m, x, h: m.a(h) + m.b(h))
    matrices = quantize_model(net, x, awq_quantizer(4), skip=("b",))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"groups: \['b'\] must be among the matrices"):
        fold_input_scales(net, matrices, readings(net, x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_rows_before_an_elementwise_product_take_a_scale(small_llama):
    model, ids = small_llama
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.up_proj.weight[7] *= 100  # a channel of the product that is large
            layer.mlp.down_proj.weight[:, 7] /= 100
        exact, statistics = model(ids), calibrate(model, ids)
        norms, both = copy.deepcopy(model), copy.deepcopy(model)
        scales = smooth_model(norms, statistics)
        more = smooth_model(both, statistics, pairs={"down_proj": "up_proj"})
        assert set(more) - set(scales) == {f"layers.{i}.mlp.up_proj" for i in (0, 1)}
        for name, scale in more.items():
            (group,) = (g for g in statistics if name in (g.source, g.linears[0].replace("down", "up")))
            after = calibrate(both, ids)[group].peak
            assert torch.allclose(after, statistics[group].peak / scale, rtol=1e-3)
        for smoothed in (norms, both):
            assert (smoothed(ids) - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize(
    "pairs, message",
    [
        ({"down": "up"}, "'down' must be the end of a layer behind no norm, alone"),
        ({"gate_proj": "up_proj"}, "'gate_proj' must be the end of a layer"),
        ({"down_proj": "silu"}, r"layers\.0\.mlp\.silu must be a linear layer"),
    ],
)
def test_pairs_that_fit_no_layer_say_why(small_llama, pairs, message):
    model, ids = small_llama
    with pytest.raises(ValueError, match=message):
        smooth_model(model, calibrate(model, ids), pairs=pairs)
