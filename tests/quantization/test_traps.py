"""Mistakes that others have made on quantization, each guarded by a test."""

import inspect

import pytest
import torch
from torch import nn

from gpuedu.quantization import run
from gpuedu.quantization.plan import FORMATS, integer_format
from gpuedu.quantization.run import (
    awq_quantizer,
    calibrate,
    gptq,
    gptq_quantizer,
    input_statistics,
    pack_gptq,
    packed_bytes,
    quantize_model,
    round_to_nearest,
    rtn_quantizer,
    smooth_model,
    unpack_gptq,
)


def test_trap_15_published_scales_of_small_groups_are_those_of_stale_weights(problem):
    """Groups of 16 in blocks of 64: the published code takes a group's range before the errors of its own
    block have reached it; here both conventions have a name."""
    weight, x = problem(0, rows=8)
    hessian = input_statistics(x).hessian
    stale = gptq(weight, hessian, 3, group=16, group_scales="stale", block=64)
    fresh = gptq(weight, hessian, 3, group=16, group_scales="fresh")
    untouched = round_to_nearest(weight, 3, group=16)
    # with one block over all columns, no weight has changed when the published code looks at it
    assert torch.equal(stale.scales.scale, untouched.scales.scale)
    assert torch.equal(fresh.scales.scale[:, 0], untouched.scales.scale[:, 0])
    assert not torch.equal(fresh.scales.scale[:, 1:], untouched.scales.scale[:, 1:])


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_trap_16_all_three_methods_are_post_training(small_llama, method, monkeypatch):
    """No loss, no gradient, no optimizer: calibration forwards alone."""
    model, ids = small_llama

    def forbidden(*_, **__):
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    monkeypatch.setattr(torch.optim.Optimizer, "step", forbidden)
    if method == "smoothquant":
        smooth_model(model, calibrate(model, ids))
    else:
        quantize_model(model, ids, (gptq_quantizer if method == "gptq" else awq_quantizer)(4, group=32))
    assert all(weights.grad is None for weights in model.parameters())
    assert "torch.optim" not in inspect.getsource(run.walker)


def test_trap_16_quantization_aware_training_is_something_else():
    layer = run.QATLinear(nn.Linear(8, 4), bits=4)
    layer(torch.randn(3, 8)).square().sum().backward()
    assert layer.linear.weight.grad.abs().sum() > 0


def test_trap_17_scales_and_zeros_count(problem):
    assert FORMATS["int4_g128"].bits_per_number() == 4.15625
    weight, _ = problem(1, rows=64, columns=256)
    packed = packed_bytes(pack_gptq(round_to_nearest(weight, 4, group=128)))
    assert 8 * packed / weight.numel() == 4.15625
    # in groups of 8 a weight of 2 bits takes more than one of 4 bits in groups of 128
    assert integer_format(2, 8).bits_per_number() > integer_format(4, 128).bits_per_number()


def test_zeros_of_the_first_gptq_format_are_stored_less_one(problem):
    """AutoGPTQ's first format: read as they are, all weights are off by one step."""
    weight, _ = problem(2, rows=32)
    matrix = round_to_nearest(weight, 4, group=32, scale_dtype=torch.float16)
    first, second = pack_gptq(matrix, version=1), pack_gptq(matrix, version=2)
    assert not torch.equal(first.qzeros, second.qzeros)
    assert torch.equal(first.qweight, second.qweight)
    misread = unpack_gptq(pack_gptq(matrix, version=1).__class__(4, 2, first.qweight, first.qzeros,
                                                                 first.scales, first.g_idx))  # fmt: skip
    off = (misread.dequantize() - matrix.dequantize()) / matrix.scales.scale[:, matrix.group_index]
    wrapped = (matrix.scales.zero == 0)[:, matrix.group_index]
    assert torch.allclose(off[~wrapped], torch.ones_like(off[~wrapped]), atol=1e-4)


def test_hessian_is_over_inputs_and_not_over_outputs_or_tokens(problem):
    weight, x = problem(3, rows=5, columns=32, tokens=77)
    assert input_statistics(x).hessian.shape == (32, 32)
    with pytest.raises(ValueError, match="hessian of shape"):
        gptq(weight, x @ x.T, 4)


def test_a_zero_is_a_whole_code(problem):
    """A zero that is not rounded would make 0 itself inexact."""
    weight, _ = problem(4)
    matrix = round_to_nearest(weight + 0.3, 4, group=16)
    assert torch.equal(matrix.scales.zero, matrix.scales.zero.round())
    weight[:, 5] = 0.0
    assert torch.equal(round_to_nearest(weight, 4, group=16).dequantize()[:, 5], weight[:, 5])


def test_weights_of_one_sign_keep_their_zero_in_range(problem):
    """Ranges that leave zero out would ask for codes that do not exist."""
    weight, _ = problem(5)
    for shifted in (weight.abs() + 5, -weight.abs() - 5):
        matrix = round_to_nearest(shifted, 4)
        steps = (matrix.dequantize() - shifted) / matrix.scales.scale
        assert steps.abs().max() <= 0.5 + 1e-9
        assert quantized_at_ends(matrix)


def quantized_at_ends(matrix):
    return set(matrix.scales.zero.flatten().tolist()) <= {0.0, 15.0}


def test_a_walk_without_calibration_needs_no_tokens(small_llama):
    model, _ = small_llama
    assert len(quantize_model(model, None, rtn_quantizer(4, group=32))) == 14
