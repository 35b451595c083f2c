"""GPTQ against one written from the paper with other mathematics; AWQ and SmoothQuant as exact transforms."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from gpuedu.quantization.plan import FORMATS, GROUP_SCALES
from gpuedu.quantization.run import (
    fold,
    gptq,
    input_statistics,
    output_error,
    round_to_nearest,
    search_scale,
    smoothing_scale,
    upper_root,
)

gptq_columns = import_module("gpuedu.quantization.run.gptq_columns")


def obq_in_fixed_order(weight, x, bits, group, group_scales, block, damping=0.01, order=None):
    """Equations 2 and 3 of Frantar et al. 2023, as they stand: no Cholesky factor, no lazy batch.

    After each column the inverse Hessian of the columns left is computed anew with a general inverse; the
    updates of the columns left are ``-(w_q - quant(w_q)) / [H^-1]_qq * (H^-1)_(:,q)``.
    """
    w, columns = weight.copy(), weight.shape[1]
    h = 2 * x.T @ x / len(x)
    h += damping * np.mean(np.diag(h)) * np.eye(columns)
    order = list(range(columns)) if order is None else order
    group = group or columns
    first, at_block, scales = w.copy(), w.copy(), {}

    def parameters(part):
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scale = (high - low) / (2**bits - 1)
        return scale, np.round(-low / scale)

    for at, q in enumerate(order):
        if at % block == 0:
            at_block = w.copy()
        where = q // group if group_scales == "static" else at // group
        if where not in scales:
            members = order[where * group : (where + 1) * group]
            if group_scales == "static" or group == columns:
                members = list(range(where * group, (where + 1) * group))
            source = {"fresh": w, "stale": at_block, "static": first}[group_scales]
            scales[where] = parameters((first if group == columns else source)[:, members])
        scale, zero = scales[where]
        value = scale * (np.clip(np.round(w[:, q] / scale) + zero, 0, 2**bits - 1) - zero)
        left = order[at:]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        w[:, left] -= np.outer((w[:, q] - value) / inverse[0, 0], inverse[0])
        w[:, q] = value
    return w


@pytest.mark.parametrize("group_scales", GROUP_SCALES)
@pytest.mark.parametrize("group", [None, 8, 32])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [16, 24])
def test_gptq_is_the_papers_equations(problem, group_scales, group, act_order, block):
    weight, x = problem(0, rows=10)
    hessian = input_statistics(x).hessian
    order = hessian.diagonal().argsort(descending=True).tolist() if act_order else None
    expected = obq_in_fixed_order(weight.numpy(), x.numpy(), 3, group, group_scales, block, order=order)
    how = {"group": group, "group_scales": group_scales, "block": block, "act_order": act_order}
    matrix = gptq(weight, hessian, 3, **how)
    assert np.abs(matrix.dequantize().numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("group", [None, 16, 32])
def test_result_does_not_depend_on_how_columns_are_blocked(problem, monkeypatch, group):
    """Trap 15: with scales a row, or scales from the weights of the moment, in float64."""
    weight, x = problem(1, rows=16, columns=96)
    hessian = input_statistics(x).hessian
    results = []
    for block, neighbors in ((256, 32), (96, 96), (48, 16), (32, 1), (16, 8), (1, 1)):
        monkeypatch.setattr(gptq_columns, "BLOCK", block)
        monkeypatch.setattr(gptq_columns, "NEIGHBORS", neighbors)
        results.append(gptq(weight, hessian, 4, group=group).codes)
    assert all(torch.equal(results[0], codes) for codes in results[1:])


def test_in_float32_almost_all_roundings_are_the_same(problem):
    """Trap 15: sums in another precision flip some; the error stays."""
    weight, x = problem(2, rows=128, columns=128, tokens=1000)
    exact = gptq(weight, input_statistics(x).hessian, 4)
    single = gptq(weight.float(), input_statistics(x.float()).hessian, 4)
    assert (exact.codes == single.codes).double().mean() > 0.99
    hessian = input_statistics(x).hessian
    errors = [output_error(m.dequantize().double() - weight, hessian) for m in (exact, single)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("act_order", [False, True])
def test_permuted_rows_give_permuted_rows(problem, group, act_order):
    weight, x = problem(3)
    hessian = input_statistics(x).hessian
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    straight = gptq(weight, hessian, 4, group=group, act_order=act_order)
    permuted = gptq(weight[order], hessian, 4, group=group, act_order=act_order)
    assert torch.equal(permuted.codes, straight.codes[order])


def test_act_order_is_permuting_the_columns_and_back(problem):
    weight, x = problem(4)
    hessian = input_statistics(x).hessian
    order = hessian.diagonal().argsort(descending=True)
    by_hand = gptq(weight[:, order], hessian[order][:, order], 3).codes
    assert torch.equal(gptq(weight, hessian, 3, act_order=True).codes[:, order], by_hand)


@pytest.mark.parametrize("columns", [1, 7, 129, 300])
def test_root_is_the_inverse_of_the_published_one(columns):
    """``cholesky(cholesky_inverse(cholesky(H)), upper=True)``, as the reference code makes it."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(2 * columns, columns, generator=generator, dtype=torch.float64)
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    published = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    root = upper_root(hessian, 0.01)
    assert torch.allclose(root @ published, torch.eye(columns, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(root @ root.T, damped, atol=1e-9)


def test_stale_and_fresh_scales_differ_only_where_groups_are_smaller_than_blocks(problem):
    """Trap 15: both conventions, and where they agree."""
    weight, x = problem(5)
    hessian = input_statistics(x).hessian

    def codes(when, group, block):
        return gptq(weight, hessian, 3, group=group, group_scales=when, block=block).codes

    assert torch.equal(codes("fresh", 16, 16), codes("stale", 16, 16))
    assert torch.equal(codes("fresh", 32, 16), codes("stale", 32, 16))
    assert not torch.equal(codes("fresh", 16, 16), codes("stale", 16, 32))
    assert torch.equal(codes("fresh", 16, 16), codes("fresh", 16, 32))


@pytest.mark.parametrize("group", [16, 32])
def test_static_groups_keep_the_scales_of_the_untouched_weights(problem, group):
    weight, x = problem(6)
    hessian = input_statistics(x).hessian
    for act_order in (False, True):
        matrix = gptq(weight, hessian, 4, group=group, group_scales="static", act_order=act_order)
        rounded = round_to_nearest(weight, 4, group=group)
        assert torch.equal(matrix.scales.scale, rounded.scales.scale)
        assert torch.equal(matrix.group_index, rounded.group_index)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_awqs_and_smoothquants_transforms_preserve_the_function(problem, norm):
    """Before anything is rounded, to 1e-5."""
    _, x = problem(7, dtype=torch.float32, outliers=(3, 9))
    torch.manual_seed(0)
    for method in ("awq", "smoothquant"):
        before, linears = norm(64), [nn.Linear(64, 8), nn.Linear(64, 5)]
        nn.init.uniform_(before.weight, 0.1, 30)
        with torch.no_grad():
            inputs = before(x)
            statistics = input_statistics(inputs)
            weights = [linear.weight for linear in linears]
            scale = (
                search_scale(weights, statistics, 4, group=32).scale
                if method == "awq"
                else smoothing_scale(statistics.peak, weights, 0.5)
            )
            assert scale.max() / scale.min() > 2
            expected = [linear(inputs) for linear in linears]
            fold(before, linears, scale)
            for linear, y in zip(linears, expected, strict=True):
                assert (linear(before(x)) - y).abs().max() < 1e-5 * y.abs().max()


def test_formats_have_the_bits_that_others_publish():
    """Trap 17: scales and zeros count."""
    assert FORMATS["int4_g128"].bits_per_number() == 4 + 16 / 128 + 4 / 128 == 4.15625
    # Dettmers et al. 2023, "QLoRA", section 3: double quantization takes 0.5 bits of scales to 0.127
    assert FORMATS["nf4"].bits_per_number() - 4 == 0.5
    assert round(FORMATS["nf4_double"].bits_per_number() - 4, 3) == 0.127
    # GGUF: a block of 32 weights takes 20 bytes in Q4_1 and 34 in Q8_0
    assert FORMATS["q4_1"].bits_per_number() * 32 / 8 == 20
    assert FORMATS["q8_0"].bits_per_number() * 32 / 8 == 34
    # OCP MX 1.0, table 1: 32 elements of 4 bits and a scale of 8
    assert FORMATS["mxfp4"].bits_per_number() * 32 == 32 * 4 + 8
