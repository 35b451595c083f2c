"""Methods on tensors against the plan's own pure Python, against each other, and what they must obey."""

import copy
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpuedu.llama import KVCache, linear_layers
from gpuedu.quantization import plan
from gpuedu.quantization.plan import BITS, BLOCK_FORMATS, GROUP_SCALES, KINDS, KVQuantization
from gpuedu.quantization.run import (
    InputStatistics,
    LLMInt8Linear,
    PackedLinear,
    QATLinear,
    QuantizedKVCache,
    W8A8Linear,
    awq,
    awq_quantizer,
    calibrate,
    fit,
    fold,
    fold_input_scales,
    gptq,
    gptq_quantizer,
    input_statistics,
    int8_matmul,
    output_error,
    pack,
    pack_awq,
    pack_gptq,
    packed_bytes,
    packed_matmul,
    quantize_model,
    readings,
    replace_linears,
    round_symmetric,
    round_to_blocks,
    round_to_grid,
    round_to_nearest,
    rtn_quantizer,
    search_clip,
    search_scale,
    show_progress,
    smooth_model,
    smoothing_scale,
    unpack,
    unpack_awq,
    unpack_gptq,
)

# --- rounding ------------------------------------------------------------------------------------------

OPTIONS = list(product(BITS, KINDS, (None, 16), ("minmax", "mse")))


@pytest.mark.parametrize("bits, kind, group, clip", OPTIONS)
def test_rows_are_rounded_as_the_plan_rounds_them(problem, bits, kind, group, clip):
    weight, _ = problem(0, rows=3, columns=32)
    matrix = round_to_nearest(weight, bits, kind=kind, group=group, clip=clip)
    for i, row in enumerate(weight.tolist()):
        expected = plan.round_row(row, bits, kind=kind, group=group, clip=clip)
        assert matrix.codes[i].tolist() == list(expected.codes)
        assert matrix.dequantize()[i].tolist() == pytest.approx(expected.values)
        assert matrix.scales.zero[i].tolist() == [scale.zero for scale in expected.scales]


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_are_rounded_as_the_plan_rounds_them(name):
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1, :64] = 0.0
    whole = torch.tensor(plan.round_blocks(x.flatten().tolist(), name), dtype=torch.float64).view_as(x)
    assert (round_to_blocks(x, name) - whole).abs().max() < 1e-12


@pytest.mark.parametrize(
    "format, dtype", [(plan.FP8_E4M3, torch.float8_e4m3fn), (plan.FP8_E5M2, torch.float8_e5m2)]
)
def test_float8_is_torchs_on_a_million_numbers(format, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** torch.empty(10**6).uniform_(-6, 2, generator=generator)
    x = sizes * torch.randn(10**6, generator=generator)
    x = x.clamp(-format.grid.largest, format.grid.largest)
    assert torch.equal(round_to_grid(x, format.grid), x.to(dtype).float())


@pytest.mark.parametrize("grid", [plan.FP8_E4M3.grid, plan.FP4_E2M1.grid], ids=lambda g: g.name)
def test_halves_go_where_the_plan_sends_them(grid):
    values = torch.tensor(grid.values, dtype=torch.float64)
    x = torch.cat((values, (values[1:] + values[:-1]) / 2))
    assert round_to_grid(x, grid).tolist() == [grid.nearest(number) for number in x.tolist()]


def test_scales_are_rounded_before_the_weights(problem):
    weight, _ = problem(0)
    matrix = round_to_nearest(weight.float(), 4, group=16, scale_dtype=torch.float16)
    assert torch.equal(matrix.scales.scale.half().float(), matrix.scales.scale)
    steps = (matrix.dequantize() - weight) / matrix.scales.scale[:, matrix.group_index]
    assert steps.abs().max() < 1.01  # a range that ends a rounded zero away, at most
    assert steps.abs().mean() < 0.26  # and a quarter of a step where numbers fall anywhere


# --- statistics ----------------------------------------------------------------------------------------


def test_statistics_are_sums_over_all_tokens(problem):
    _, x = problem(0, columns=600)
    found = input_statistics([x[:100].view(4, 25, 600), x[100:]])
    assert torch.allclose(found.hessian, 2 * x.T @ x / len(x))
    assert torch.allclose(found.mean_abs, x.abs().mean(0)) and torch.equal(found.peak, x.abs().amax(0))
    assert found.tokens == len(x)


def test_output_error_is_that_of_the_outputs(problem):
    weight, x = problem(1)
    changed = round_to_nearest(weight, 3).dequantize()
    expected = ((changed - weight) @ x.T).square().mean().item()
    assert output_error(changed - weight, input_statistics(x).hessian) == pytest.approx(expected)


# --- GPTQ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_scales", GROUP_SCALES)
@pytest.mark.parametrize("group, block", [(None, 16), (8, 16), (24, 16), (16, 24), (12, 7)])
@pytest.mark.parametrize("kind, clip", [("symmetric", "minmax"), ("asymmetric", "mse")])
def test_gptq_is_the_plans_log(problem, act_order, group_scales, group, block, kind, clip):
    weight, x = problem(2, rows=3, columns=48)
    x[:, 5] = 0.0
    hessian = input_statistics(x).hessian
    how = {"kind": kind, "group": group, "group_scales": group_scales, "block": block, "act_order": act_order}
    matrix = gptq(weight, hessian, 3, **how, clip=clip)
    log = plan.gptq(weight.tolist(), hessian.tolist(), 3, **how, clip=clip)
    assert (matrix.dequantize() - torch.tensor(log.values, dtype=torch.float64)).abs().max() < 1e-9
    by_column = {decision.column: decision for decision in log.decisions}
    for column, group_of in enumerate(matrix.group_index.tolist()):
        used = [scale.scale for scale in by_column[column].scales]
        assert matrix.scales.scale[:, group_of].tolist() == pytest.approx(used)


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_leaves_a_smaller_error_than_rounding(problem, bits):
    weight, x = problem(3)
    hessian = input_statistics(x).hessian
    rounded = round_to_nearest(weight, bits, group=32).dequantize()
    moved = gptq(weight, hessian, bits, group=32).dequantize()
    ordered = gptq(weight, hessian, bits, group=32, act_order=True).dequantize()
    for better in (moved, ordered):
        assert output_error(better - weight, hessian) < 0.7 * output_error(rounded - weight, hessian)
    assert (moved - weight).square().mean() > (rounded - weight).square().mean()  # weights go further away


def test_gptq_with_uncorrelated_inputs_is_rounding(problem):
    weight, _ = problem(4)
    matrix = gptq(weight, torch.eye(64, dtype=torch.float64), 4, group=16)
    assert torch.equal(matrix.codes, round_to_nearest(weight, 4, group=16).codes)


def test_stacked_matrices_do_not_see_each_other(problem):
    weight, x = problem(5)
    hessian = input_statistics(x).hessian
    whole = gptq(weight, hessian, 3, group=16)
    for start, stop in ((0, 10), (10, 24)):
        alone = gptq(weight[start:stop], hessian, 3, group=16)
        assert torch.allclose(whole.rows(start, stop).dequantize(), alone.dequantize(), atol=1e-9)


def test_stored_order_of_columns_is_the_matrix_own(problem):
    """Act-order must not leave the columns, or their groups, permuted: what is packed multiplies right."""
    weight, x = problem(6)
    for when in GROUP_SCALES:
        how = {"group": 16, "group_scales": when, "act_order": True}
        matrix = gptq(weight, input_statistics(x).hessian, 4, **how, scale_dtype=torch.float16)
        assert (matrix.group_index.diff() < 0).any() == (when != "static")
        assert (matrix.dequantize() - weight).abs().mean() < 0.4
        packed = pack_gptq(gptq(torch.cat([weight] * 4)[:64], input_statistics(x).hessian, 4, **how,
                                scale_dtype=torch.float16))  # fmt: skip
        y = packed_matmul(x, packed)
        assert torch.allclose(y[:, :24], x @ matrix.dequantize().T, atol=1e-9)


# --- AWQ -----------------------------------------------------------------------------------------------


def test_awqs_errors_are_those_of_outputs(problem):
    """The Hessian gives the error that the published search finds by running tokens through the layer."""
    weights = [problem(seed, outliers=(3,))[0] for seed in (7, 8)]
    _, x = problem(7, outliers=(3,))
    found = search_scale(weights, input_statistics(x), 3, group=16)
    errors = []
    for step in range(20):
        scale = x.abs().mean(0).pow(step / 20).clamp(min=1e-4)
        scale /= (scale.max() * scale.min()).sqrt()
        outputs = [x @ (round_to_nearest(w * scale, 3, group=16).dequantize() / scale - w).T for w in weights]
        errors.append(torch.cat(outputs, 1).square().mean().item())
    assert found.errors == pytest.approx(errors)
    assert found.ratio == errors.index(min(errors)) / 20 > 0
    assert min(errors) < errors[0]  # exponent 0 is plain rounding


def test_awqs_ranges_leave_the_least_error_of_each_group(problem):
    weight, x = problem(9, rows=6)
    clipped = search_clip(weight, input_statistics(x).hessian, 2, group=16)
    for row, start in product(range(6), range(0, 64, 16)):
        part, inputs = weight[row : row + 1, start : start + 16], x[:, start : start + 16]

        def error(limit, part=part, inputs=inputs):
            tried = part.clamp(-limit, limit)
            return ((round_to_nearest(tried, 2).dequantize() - part) @ inputs.T).square().mean().item()

        largest = part.abs().amax().item()
        best = min(error(largest * (1 - step / 20)) for step in range(10))
        got = clipped[row : row + 1, start : start + 16]
        assert error(got.abs().amax().item()) == pytest.approx(best)


def test_awq_beats_rounding_where_inputs_differ_in_size(problem):
    weight, x = problem(10, outliers=(3, 40))
    statistics = input_statistics(x)
    plain, scaled = round_to_nearest(weight, 3, group=32), awq([weight], statistics, 3, group=32)[0]
    errors = [output_error(m.dequantize() - weight, statistics.hessian) for m in (plain, scaled)]
    assert errors[1] < errors[0] / 4
    (unscaled,) = awq([weight], statistics, 3, group=32, scale=False)
    assert unscaled.input_scale is None


# --- folding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_scales_folded_into_norm_or_layer_leave_the_function(bias):
    torch.manual_seed(0)
    scale = torch.empty(16).uniform_(0.05, 20)
    for before in (nn.LayerNorm(16), nn.RMSNorm(16), nn.Linear(8, 16, bias=bias)):
        linears = [nn.Linear(16, 5), nn.Linear(16, 7)]
        x = torch.randn(9, 8 if isinstance(before, nn.Linear) else 16)
        expected = [linear(before(x)) for linear in linears]
        fold(before, linears, scale)
        for linear, y in zip(linears, expected, strict=True):
            assert torch.allclose(linear(before(x)), y, atol=1e-5)


def test_what_cannot_be_folded_says_why():
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        fold(nn.LayerNorm(4), [nn.Linear(4, 4)], torch.tensor([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"scale of shape \(3,\): must be \(4,\)"):
        fold(nn.LayerNorm(4), [nn.Linear(4, 4)], torch.ones(3))
    with pytest.raises(TypeError, match="before=ReLU: must have a weight"):
        fold(nn.ReLU(), [nn.Linear(4, 4)], torch.ones(4))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_smoothing_scale_is_the_plans(problem, alpha):
    weight, x = problem(22, outliers=(2,))
    x[:, 7] = 0.0
    found = smoothing_scale(x.abs().amax(0), [weight, weight / 3], alpha)
    expected = plan.smoothing_scales(plan.peaks(x.tolist()), plan.peaks(weight.tolist()), alpha)
    assert found.tolist() == pytest.approx(list(expected))


# --- W8A8 and LLM.int8() -------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_int8_product_is_exact(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-128, 128, (rows, k), generator=generator, dtype=torch.int8) for rows in (m, n))
    assert torch.equal(int8_matmul(a, b).long(), a.long() @ b.long().T)


def test_w8a8_is_the_plans_product(problem):
    weight, x = problem(11, rows=6, columns=24, tokens=5)
    layer = nn.Linear(24, 6, bias=False, dtype=torch.float64)
    layer.weight.data = weight
    for per in ("token", "tensor"):
        expected = plan.rounded_product(x.tolist(), weight.tolist(), [1.0] * 24, per_tensor=per == "tensor")
        assert torch.allclose(W8A8Linear(layer, per)(x), torch.tensor(expected, dtype=torch.float64))


def test_w8a8_keeps_bias_and_shape(problem):
    _, x = problem(12, columns=32, dtype=torch.float32)
    layer = nn.Linear(32, 8)
    for kind in (W8A8Linear, LLMInt8Linear):
        y = kind(layer)(x.view(3, 100, 32))
        assert y.shape == (3, 100, 8)
        assert (y - layer(x).view_as(y)).abs().mean() < 0.05 * layer(x).abs().mean()


def test_outliers_in_full_precision_rescue_int8(problem):
    weight, x = problem(13, outliers=(7,), dtype=torch.float32)
    x = x / 8  # only the outlier channel reaches the threshold of 6
    layer = nn.Linear(64, 24, bias=False)
    layer.weight.data = weight
    # the weights of the outlier are 8-bit either way: compare what rounding the inputs does
    exact = x @ (W8A8Linear(layer).weight * W8A8Linear(layer).scale[:, None]).T
    plain, split = ((kind(layer)(x) - exact).square().mean() for kind in (W8A8Linear, LLMInt8Linear))
    assert split < plain / 100


def test_round_symmetric_keeps_zero_rows():
    integers, scale = round_symmetric(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert integers.tolist() == [[0, 0], [64, -127]] and (scale > 0).all()


# --- packing -------------------------------------------------------------------------------------------


@given(st.sampled_from([(2, "gptq"), (3, "gptq"), (4, "gptq"), (8, "gptq"), (4, "awq")]), st.integers(1, 3),
       st.integers(0, 3), st.integers(0, 2**31))  # fmt: skip
def test_unpacking_undoes_packing(kind, runs, width, seed):
    bits, order = kind
    shape = (32 * runs, width) if width else (32 * runs,)
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))
    words = pack(codes, bits, order)
    assert words.dtype == torch.int32 and len(words) == runs * bits
    assert torch.equal(unpack(words, bits, order).long(), codes)


def test_words_are_those_of_the_published_loops():
    """AutoGPTQ's and AutoAWQ's loops, written out: shifts of 4 bits, and AWQ's order of eight neighbors."""
    codes = torch.randint(0, 16, (16, 3), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 3, dtype=torch.int64)
    for word, column in product(range(2), range(3)):
        for i in range(8):
            expected[word, column] |= codes[8 * word + i, column] << (4 * i)
    assert torch.equal(pack(codes, 4).long() % 2**32, expected)
    expected.zero_()
    for word, column in product(range(2), range(3)):
        for i, item in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            expected[word, column] |= codes[8 * word + item, column] << (4 * i)
    assert torch.equal(pack(codes, 4, "awq").long() % 2**32, expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_matrix_comes_back(problem, bits, version, kind):
    weight, _ = problem(14, rows=32, dtype=torch.float32)
    weight[:8] = weight[:8].abs()  # rows without negative weights have the zero 0
    matrix = round_to_nearest(weight, bits, kind=kind, group=32, scale_dtype=torch.float16)
    assert (matrix.scales.zero == 0).any() == (kind == "asymmetric")
    packed = pack_gptq(matrix, version)
    assert torch.equal(unpack_gptq(packed).dequantize(), matrix.dequantize())
    x = torch.randn(3, 5, 64)
    layer = PackedLinear(packed, bias=torch.ones(32))
    assert torch.allclose(layer(x), x @ matrix.dequantize().T + 1, atol=1e-4)


@pytest.mark.parametrize("group", [None, 16, 64])
def test_awqs_packing_comes_back(problem, group):
    weight, _ = problem(15, rows=40, dtype=torch.float32)
    matrix = round_to_nearest(weight, 4, group=group, scale_dtype=torch.float16)
    packed = pack_awq(matrix)
    assert torch.equal(unpack_awq(packed).dequantize(), matrix.dequantize())
    x = torch.randn(7, 64)
    for tile in (1, 32, 1000):
        assert torch.allclose(packed_matmul(x, packed, tile), x @ matrix.dequantize().T, atol=1e-4)


def test_what_cannot_be_packed_says_why(problem):
    weight, x = problem(16, rows=32)
    matrix = round_to_nearest(weight, 4, group=16)
    with pytest.raises(ValueError, match="codes from 0 to 16: must be from 0 to 15"):
        pack(torch.arange(17).repeat(8), 4)
    with pytest.raises(ValueError, match=r"codes of shape \(9,\): must be a multiple of 8"):
        pack(torch.zeros(9, dtype=torch.int64), 4)
    with pytest.raises(TypeError, match=r"words are torch\.int64: must be torch\.int32"):
        unpack(torch.zeros(8, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="version=3: must be 1 or 2"):
        pack_gptq(matrix, 3)
    with pytest.raises(ValueError, match="input scale: must be folded"):
        pack_gptq(replace(matrix, input_scale=torch.ones(64)))
    ordered = gptq(weight, input_statistics(x).hessian, 4, group=16, act_order=True)
    with pytest.raises(ValueError, match="groups must be neighbors"):
        pack_awq(ordered)
    with pytest.raises(ValueError, match="finite and above 0 in float16"):
        pack_gptq(round_to_nearest(weight * 1e7, 4))
    with pytest.raises(ValueError, match="x has 63 columns: must have 64"):
        packed_matmul(x[:, :63], pack_gptq(matrix))


# --- the cache -----------------------------------------------------------------------------------------

HOW = KVQuantization(bits=4, group=8, residual=16)


def keys_with_outliers(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, 2, tokens, 32, generator=generator)
    k[..., 3] *= 20  # a channel of the keys that is large in every token
    return k, v


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_quantized_cache_holds_what_the_window_says(steps):
    cache, k, v = QuantizedKVCache(1, HOW), *keys_with_outliers(sum(steps))
    at = 0
    for count in steps:
        old = cache.length
        keys, values = cache.append(0, k[:, :, at : at + count], v[:, :, at : at + count])
        at += count
        assert keys.shape == values.shape == (1, 2, at, 32) and cache.length == at
        full = HOW.quantized_keys(old), HOW.quantized_values(old)
        for seen, exact, first in ((keys, k, full[0]), (values, v, full[1])):
            assert torch.equal(seen[:, :, first:], exact[:, :, first:at])
            if first:
                error = (seen[:, :, :first] - exact[:, :, :first]).abs()
                assert 0 < error.mean() < 0.2 and error.max() < 4


def test_keys_by_channel_are_better_and_values_by_token_cannot_be_beaten_by_it():
    """KIVI's axes: a scale over tokens keeps the large channel of the keys from the others."""
    k, _ = keys_with_outliers(64)
    how = KVQuantization(bits=2, group=32, residual=32)
    by_channel = QuantizedKVCache(1, how)
    by_channel.append(0, k, k)
    keys, _ = by_channel.append(0, k[:, :, :1], k[:, :, :1])
    by_token = fit(k.flatten(0, 2), 2, group=32)
    parts = k.flatten(0, 2).unflatten(1, (-1, 32))
    codes = (parts / by_token.scale[..., None]).round().add(by_token.zero[..., None]).clamp(0, 3)
    token_wise = ((codes - by_token.zero[..., None]) * by_token.scale[..., None]).flatten(1).view_as(k)
    others = [channel for channel in range(32) if channel != 3]
    channel_error = (keys[:, :, :64] - k)[..., others].square().mean()
    assert channel_error < (token_wise - k)[..., others].square().mean() / 3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_llama_attends_from_a_quantized_cache(small_llama, bits):
    model, ids = small_llama
    how = KVQuantization(bits=bits, group=8, residual=8)
    quantized, full = QuantizedKVCache(2, how), KVCache(model.config, batch=8)
    with torch.no_grad():
        for part in (ids[:, :20], ids[:, 20:21], ids[:, 21:]):
            exact, seen = model(part, full), model(part, quantized)
        error = (seen - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < {2: 0.5, 4: 0.1, 8: 0.01}[bits]
    assert quantized.length == 24
    assert quantized.memory_bytes < full.memory_bytes


def test_what_the_cache_cannot_hold_says_why():
    cache, (k, v) = QuantizedKVCache(1, HOW), keys_with_outliers(4)
    with pytest.raises(ValueError, match="layer=1: must be from 0 to 0"):
        cache.append(1, k, v)
    with pytest.raises(ValueError, match="k holds 1 numbers that are NaN"):
        k[0, 0, 0, 0] = torch.nan
        cache.append(0, k, v)
    with pytest.raises(ValueError, match="group=8: must divide head_dim=31"):
        cache.append(0, v[..., :31], v[..., :31])


@pytest.mark.parametrize("shape", [(2, 2, 1, 32), (1, 4, 1, 32), (1, 2, 1, 8)])
def test_tokens_of_another_batch_are_refused_before_anything_changes(shape):
    cache, (k, v) = QuantizedKVCache(1, HOW), keys_with_outliers(17)
    cache.append(0, k, v)
    other = torch.ones(shape)
    with pytest.raises(ValueError, match=r"must have batch, kv_heads, head_dim \(1, 2, 32\)"):
        cache.append(0, other, other)
    assert cache.length == 17
    assert cache.append(0, k, v)[0].shape == (1, 2, 34, 32)


# --- whole models --------------------------------------------------------------------------------------


def test_structure_of_a_llama(small_llama):
    model, ids = small_llama
    groups = readings(model, ids)
    assert [name for group in groups for name in group.linears] == list(linear_layers(model))
    ends = [tuple(name.rpartition(".")[2] for name in group.linears) for group in groups[:4]]
    assert ends == [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    sources = [group.source for group in groups[:4]]
    assert sources == ["layers.0.input_layernorm", None, "layers.0.post_attention_layernorm", None]


def test_walking_is_quantizing_one_layer_after_the_other_by_hand(small_llama):
    """Each layer sees inputs that the quantized ones before it make."""
    model, ids = small_llama
    by_hand = copy.deepcopy(model)
    quantize_model(model, ids, gptq_quantizer(3, group=32))
    for name, layer in linear_layers(by_hand).items():
        if name.endswith(("k_proj", "v_proj", "up_proj")):
            continue  # quantized with the one that reads the same
        seen = []
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        with torch.no_grad():
            by_hand(ids)
        handle.remove()
        hessian = input_statistics(seen[0]).hessian
        together = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}
        parent, _, end = name.rpartition(".")
        for other in together.get(end, (end,)):
            linear = by_hand.get_submodule(f"{parent}.{other}")
            linear.weight.data = gptq(linear.weight.data, hessian, 3, group=32).dequantize()
    for name, layer in linear_layers(model).items():
        same = torch.isclose(layer.weight, by_hand.get_submodule(name).weight, atol=1e-6).float().mean()
        assert same > 0.99, name  # in float32 a rounding may flip


def test_methods_rank_as_they_should_on_a_model(small_llama):
    model, ids = small_llama
    with torch.no_grad():
        exact = model(ids)
    errors = {}
    for quantizer in (rtn_quantizer(3, group=32), gptq_quantizer(3, group=32), awq_quantizer(3, group=32)):
        changed = copy.deepcopy(model)
        matrices = quantize_model(changed, ids, quantizer)
        assert list(matrices) == list(linear_layers(model))
        with torch.no_grad():
            errors[quantizer.name] = (changed(ids) - exact).square().mean().item()
    assert errors["GPTQ"] < errors["RTN"] and errors["AWQ"] < errors["RTN"]


def test_smoothing_a_model_leaves_its_function_and_helps_w8a8(small_llama):
    model, ids = small_llama
    with torch.no_grad():
        for layer in model.layers:  # channels that are large in every token, made by the norms
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[5] = 300.0
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                linear.weight[:, 5] /= 100
            layer.mlp.gate_proj.weight[:, 5] /= 100
            layer.mlp.up_proj.weight[:, 5] /= 100
        exact = model(ids)
        plain = replace_linears(copy.deepcopy(model))(ids)
        scales = smooth_model(model, calibrate(model, ids))
        smoothed = model(ids)
        rescued = replace_linears(model)(ids)
    assert len(scales) == 4
    assert (smoothed - exact).abs().max() < 1e-5 * exact.abs().max()
    assert (rescued - exact).square().mean() < (plain - exact).square().mean() / 10


def test_awqs_scales_move_into_norms_and_layers(small_llama):
    """After folding, what is left is what a checkpoint holds; the model computes the same."""
    model, ids = small_llama
    groups = readings(model, ids)
    matrices = quantize_model(model, ids, awq_quantizer(4, group=32))
    scaled = {name.rpartition(".")[2] for name, m in matrices.items() if m.input_scale is not None}
    assert scaled == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    with torch.no_grad():
        before = model(ids)
        packable = fold_input_scales(model, matrices, groups, {"down_proj": "up_proj"})
        assert (model(ids) - before).abs().max() < 1e-5 * before.abs().max()
    for name, matrix in packable.items():
        assert torch.allclose(matrix.dequantize(), model.get_submodule(name).weight, atol=1e-5)
        pack_awq(matrix)
    with pytest.raises(ValueError, match="down_proj: its input scale must have"):
        fold_input_scales(model, matrices, groups)


def test_progress_is_told_and_shown(small_llama, capsys):
    model, ids = small_llama
    told = []
    quantize_model(model, ids, gptq_quantizer(4), progress=lambda *what: told.append(what))
    assert told[0] == ("layers.0.self_attn.q_proj", 0, 14) and told[-1] == ("", 14, 14)
    assert all(a < b for (_, a, _), (_, b, _) in pairwise(told))
    show_progress("layers.1.mlp.down_proj", 13, 14)
    assert "13 of 14 layers  layers.1.mlp.down_proj" in capsys.readouterr().err


# --- bad input -----------------------------------------------------------------------------------------


def test_bad_calibration_says_why(problem, small_llama):
    weight, x = problem(17)
    model, ids = small_llama
    with pytest.raises(ValueError, match="batches is empty"):
        input_statistics([])
    with pytest.raises(ValueError, match=r"batches\[0\] of shape \(0, 64\): must not be empty"):
        input_statistics(x[:0])
    with pytest.raises(ValueError, match=r"inputs of shape \(0, 24\): must hold at least one"):
        quantize_model(model, ids[:0], gptq_quantizer(4))
    with pytest.raises(ValueError, match="inputs=None: must be calibration tokens for AWQ"):
        quantize_model(model, None, awq_quantizer(4))
    x[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"batches\[0\] holds 1 numbers that are NaN or infinite"):
        input_statistics(x)
    with pytest.raises(ValueError, match="hessian holds 4096 numbers that are NaN"):
        gptq(weight, torch.full((64, 64), torch.nan, dtype=torch.float64), 4)
    model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_proj: weight holds 1 numbers that are NaN"):
        quantize_model(model, ids, gptq_quantizer(4))


def test_bad_options_say_why(problem, small_llama):
    weight, x = problem(18)
    model, ids = small_llama
    hessian = input_statistics(x).hessian
    with pytest.raises(ValueError, match="bits=1: must be one of 2, 3, 4, 8"):
        gptq(weight, hessian, 1)
    with pytest.raises(ValueError, match="group=48: must divide the 64 columns without rest"):
        gptq(weight, hessian, 4, group=48)
    with pytest.raises(ValueError, match=r"hessian of shape \(63, 64\): must be \(64, 64\)"):
        gptq(weight, hessian[:63], 4)
    with pytest.raises(ValueError, match="damping=-1: must be finite and not negative"):
        gptq(weight, hessian, 4, damping=-1)
    with pytest.raises(ValueError, match="damping=0: must be larger, the Hessian is singular"):
        gptq(weight, torch.ones(64, 64, dtype=torch.float64), 4, damping=0)
    with pytest.raises(TypeError, match="weight: must be a floating-point tensor"):
        gptq(weight.long(), hessian, 4)
    with pytest.raises(ValueError, match=r"weights\[0\] has 63 columns: must have 64"):
        search_scale([weight[:, :63]], input_statistics(x), 4)
    with pytest.raises(ValueError, match="clip has 2 entries: must have 1"):
        awq([weight], input_statistics(x), 4, clip=[True, False])
    with pytest.raises(ValueError, match="alpha=2: must be from 0 to 1"):
        smoothing_scale(x.abs().amax(0), [weight], 2)
    with pytest.raises(ValueError, match=r"weights\[1\] holds 1 numbers that are NaN"):
        smoothing_scale(torch.ones(2), [torch.ones(1, 2), torch.tensor([[torch.nan, 1.0]])])
    with pytest.raises(ValueError, match="group=128: must divide the 64 columns"):
        quantize_model(model, ids, rtn_quantizer(4, group=128))
    with pytest.raises(ValueError, match=r"must have at least one nn\.Linear"):
        quantize_model(nn.ReLU(), None, rtn_quantizer(4))
    with pytest.raises(ValueError, match="per='channel': must be one of token, tensor"):
        round_symmetric(x, "channel")


# --- the contrast --------------------------------------------------------------------------------------


def test_training_with_rounded_weights_beats_rounding_after_training(problem):
    """A small QAT: what post-training methods do without."""
    weight, x = problem(19, rows=8, dtype=torch.float32)
    y = x @ weight.T
    layer = QATLinear(nn.Linear(64, 8, bias=False), bits=3)
    layer.linear.weight.data.copy_(weight)
    first = (layer(x) - y).square().mean().item()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.001)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=200)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
        slower.step()
    assert (layer(x) - y).square().mean().item() < 0.85 * first


def test_packed_bytes_are_the_bits_that_the_plan_counts(problem):
    for bits, group in product(BITS, (None, 32)):
        weight, _ = problem(20, rows=64, columns=96)
        packed = pack_gptq(round_to_nearest(weight, bits, group=group))
        assert 8 * packed_bytes(packed) / (64 * 96) == plan.integer_format(bits, group).bits_per_number(96)


def test_statistics_of_scaled_inputs(problem):
    _, x = problem(21)
    scale = torch.linspace(0.1, 5, 64, dtype=torch.float64)
    a, b = input_statistics(x / scale), input_statistics(x).scaled(scale)
    assert isinstance(b, InputStatistics)
    assert torch.allclose(a.hessian, b.hessian) and torch.allclose(a.mean_abs, b.mean_abs)
    assert torch.allclose(a.peak, b.peak)
