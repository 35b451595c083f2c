"""Tensors in 16 bits: computed in 32, cast last; and scales that their dtype cannot hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpuedu.quantization.run import (
    LLMInt8Linear,
    QATLinear,
    W8A8Linear,
    awq,
    calibrate,
    fit,
    gptq,
    input_statistics,
    output_error,
    quantize_model,
    round_symmetric,
    round_to_nearest,
    rtn_quantizer,
    search_clip,
    smooth_model,
    smoothing_scale,
)
from gpuedu.quantization.run.int8 import for_cuda

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [W8A8Linear, LLMInt8Linear])
@pytest.mark.parametrize("outlier", [1.0, 500.0])
def test_int8_layers_do_not_overflow(dtype, kind, outlier):
    """An integer product of 576 columns reaches 576 x 127^2, far beyond 65,504."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(576, 8)
    layer.weight.data = torch.rand(8, 576, generator=generator) / 10
    x = torch.rand(4, 576, generator=generator) + 0.5
    x[:, 3] *= outlier
    layer, x = layer.to(dtype), x.to(dtype)
    y = kind(layer)(x)
    exact = kind(layer.double())(x.double())
    assert y.dtype == dtype and torch.isfinite(y).all()
    assert ((y - exact) / exact).abs().max() < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
def test_codes_of_half_precision_stay_in_their_range(dtype):
    """A scale rounded to 16 bits sends the largest number to 128, which is -128 in 8 bits."""
    x = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0] *= 2.0**-14
    integers, scale = round_symmetric(x)
    assert (integers.amax(1) == 127).all() and scale.dtype == torch.float32
    assert ((integers * scale - x) / scale).abs().max() < 0.501


def test_numbers_too_small_for_a_scale_become_zero():
    integers, scale = round_symmetric(torch.tensor([[1e-45, -1e-44]]))
    assert integers.tolist() == [[0, 0]] and (scale > 0).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_off_by_half_a_step(dtype, bits):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = round_to_nearest(weight, bits, kind="symmetric", group=32)
    steps = (matrix.dequantize() - weight) / matrix.scales.scale[:, matrix.group_index]
    assert steps.abs().max() < 0.501
    same = round_to_nearest(weight.float(), bits, kind="symmetric", group=32)
    assert torch.equal(matrix.codes, same.codes)


@pytest.mark.parametrize("dtype", HALVES)
def test_methods_on_half_precision_are_those_on_the_same_numbers_in_32_bits(problem, dtype):
    weight, x = (t.to(dtype) for t in problem(1))
    statistics, exact = input_statistics(x), input_statistics(x.float())
    assert torch.equal(statistics.hessian, exact.hessian) and torch.equal(statistics.peak, exact.peak)
    for found, same in (
        (gptq(weight, statistics.hessian, 4, group=32), gptq(weight.float(), exact.hessian, 4, group=32)),
        (awq([weight], statistics, 4)[0], awq([weight.float()], exact, 4)[0]),
    ):
        assert torch.equal(found.codes, same.codes)
        assert output_error(found.dequantize() - weight, statistics.hessian) > 0
    clips = (search_clip(w, exact.hessian, 4, group=32) for w in (weight, weight.float()))
    assert torch.equal(*clips)
    scales = (smoothing_scale(exact.peak, [w]) for w in (weight, weight.float()))
    assert torch.equal(*scales)


def test_many_large_inputs_in_float16_do_not_overflow():
    x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).half() * 20
    found = input_statistics(x).hessian
    expected = 2 * x.double().T @ x.double() / len(x)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", HALVES)
def test_models_in_half_precision_stay_so(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 32).to(dtype)
    model = nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 8)).to(dtype)
    before = model(x)
    smooth_model(model, calibrate(model, x))
    assert (model(x) - before).abs().max() < 4 * torch.finfo(dtype).eps
    quantize_model(model, None, rtn_quantizer(4))
    assert model(x).dtype == QATLinear(model[1], 4)(x).dtype == dtype


# --- scales --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_a_scale_that_cannot_be_stored_says_why(clip):
    large, small = torch.tensor([[1e7, -1e7, 3.0]]), torch.tensor([[1e-7, -1e-7, 3e-8], [0.0, 0.0, 0.0]])
    for numbers, scale in ((large, r"1\.33e\+06"), (small, "1.33e-08")):
        for method in (fit, round_to_nearest):
            with pytest.raises(ValueError, match=f"numbers: 1 groups have a scale such as {scale}: must be "
                                                 "above 0 and finite in float16"):  # fmt: skip
                method(numbers, 4, clip=clip, scale_dtype=torch.float16)
            assert torch.isfinite(round_to_nearest(numbers, 4, clip=clip).dequantize()).all()
    for numbers in (torch.tensor([[3e38, -3e38]]), torch.tensor([[1e-45, 0.0]])):
        with pytest.raises(ValueError, match="above 0 and finite in float32"):
            fit(numbers, 4, clip=clip)
    with pytest.raises(ValueError, match="weight: 1 groups have a scale"):
        search_clip(large, torch.eye(3), 4, scale_dtype=torch.float16)
    just_fits = torch.tensor([[7e-7, -7e-7, 0.0]])  # half of it would not: the search for a range goes on
    assert fit(just_fits, 4, clip=clip, scale_dtype=torch.float16).scale.item() < 1e-6


# --- sizes that a GPU takes ----------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_sizes_for_a_gpu_keep_the_product(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-128, 128, (rows, k), generator=generator, dtype=torch.int8) for rows in (m, n))
    left, right = for_cuda(a, b)
    assert len(left) > 16 and left.shape[1] % 8 == right.shape[1] % 8 == 0
    assert torch.equal((left.int() @ right.int())[:m, :n], a.int() @ b.int().T)
