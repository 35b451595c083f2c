"""Mistakes that others have made on attention, each guarded by a test."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpuedu.flash_attention.cost import PUBLISHED, figure_2, plan_traffic, traffic, work
from gpuedu.flash_attention.plan import AttentionShape, Tiles, version_1, version_2
from gpuedu.flash_attention.run import attention, combine_parts

WAYS = [{}, {"plan": "version_1"}, {"plan": "split_kv", "splits": 2}, {"plan": "standard"}]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.get("plan", "version_2"))


def tensors(queries, keys, heads=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, n, 8, generator=generator, dtype=torch.float64) for n in (queries, keys, keys)
    ]


@each_way
def test_trap_13_with_a_cache_the_causal_mask_is_aligned_at_the_bottom_right(way):
    """Two new tokens after six cached ones give the last two rows of all eight."""
    q, k, v = tensors(8, 8)
    whole = sdpa(q, k, v, is_causal=True)
    new = attention(q[:, :, 6:], k, v, causal=True, tiles=Tiles(2, 4), **way)
    torch.testing.assert_close(new, whole[:, :, 6:])
    top_left = sdpa(q[:, :, 6:], k, v, is_causal=True)  # what SDPA's flag means: key 0, then keys 0 and 1
    assert (top_left - whole[:, :, 6:]).abs().max() > 0.1


@each_way
def test_trap_13_a_fully_masked_row_is_zero_with_lse_minus_infinity_and_no_nan_in_gradients(way):
    q, k, v = (t.requires_grad_() for t in tensors(6, 2))
    out, lse = attention(q, k, v, causal=True, tiles=Tiles(4, 4), return_lse=True, **way)
    assert (out[:, :, :4] == 0).all() and (lse[:, :, :4] == -math.inf).all()
    assert (out[:, :, 4:] != 0).all() and torch.isfinite(lse[:, :, 4:]).all()
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][:, :, :4] == 0).all()


def test_trap_13_minus_infinity_less_minus_infinity_is_no_number_between_parts_either():
    out, lse = combine_parts(torch.zeros(2, 1, 4), torch.full((2, 1), -math.inf))
    assert (out == 0).all() and (lse == -math.inf).all()


def test_trap_14_flash_attention_does_more_flops_and_moves_fewer_bytes():
    shape, tile = AttentionShape(1024, 1024, 64, heads=16, batch=64), Tiles(64, 384)

    def both(function, plan):
        return function(plan) + function(f"{plan}_backward")

    def flops(plan):
        return work(plan, shape, tile).matmul_flops

    def moved(plan):
        return traffic(plan, shape, tile).nbytes(2)

    for plan in ("version_1", "version_2"):
        assert both(flops, plan) / both(flops, "standard") == pytest.approx(7 / 6)  # 14 / 12 products
        assert both(moved, plan) < both(moved, "standard") / 3


def test_trap_14_elements_are_not_bytes():
    """Both of the paper's numbers for SRAM and HBM are bytes; a count of elements is half of them."""
    plan = version_1(AttentionShape(64, 64, 16), Tiles(16, 16))
    counted = plan_traffic(plan)
    assert counted.nbytes(2, fills=False) == 2 * counted.total.moved
    assert counted.nbytes(4, fills=False) == 2 * counted.nbytes(2, fills=False)


def test_trap_14_what_figure_2_prints_and_what_counting_gives():
    rows = figure_2()
    assert (PUBLISHED["standard"]["hbm_gb"], PUBLISHED["version_1"]["hbm_gb"]) == (40.3, 4.4)
    assert rows["standard"].hbm_gb == pytest.approx(25.2, abs=0.05)  # not 40.3: say so
    assert rows["version_1"].hbm_gb == pytest.approx(4.06, abs=0.005)
    # Ratio of printed GFLOPs is near 14 / 12; as numbers they are a twelfth of what the shape has
    printed = PUBLISHED["version_1"]["gflops"] / PUBLISHED["standard"]["gflops"]
    assert printed == pytest.approx(7 / 6, rel=0.04)
    assert rows["standard"].gflops > 12 * PUBLISHED["standard"]["gflops"]


def test_division_is_counted_once_a_row_in_version_2_and_once_a_tile_in_version_1():
    shape, tile = AttentionShape(256, 256, 32), Tiles(64, 64)
    first, second = (work(plan, shape, tile) for plan in ("version_1", "version_2"))
    assert second.divided == 256 * 32 and first.divided == 4 * 256 * 32
    assert first.rescaled == second.rescaled == 4 * 256 * 32
    assert first.exponentials - second.exponentials == 4 * 256


@each_way
def test_rescaling_is_not_forgotten_when_the_maximum_rises_late(way):
    """The largest score stands in the last tile: whatever came before must shrink to nothing."""
    q = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    k = torch.cat([torch.zeros(1, 1, 30, 4), torch.full((1, 1, 2, 4), 25.0)], 2).double()
    v = torch.cat([torch.full((1, 1, 30, 4), 1000.0), torch.ones(1, 1, 2, 4)], 2).double()
    torch.testing.assert_close(attention(q, k, v, tiles=Tiles(1, 8), **way), torch.ones_like(q))


def test_repeating_heads_must_interleave():
    """Query heads 0 and 1 share key head 0; ``repeat`` would give head 1 key head 1."""
    q, k, v = tensors(4, 4, heads=4)
    ours = attention(q, k[:, :2], v[:, :2])
    right, wrong = (
        sdpa(q, *(t for t in pair)) for pair in (
            [t[:, :2].repeat_interleave(2, 1) for t in (k, v)], [t[:, :2].repeat(1, 2, 1, 1) for t in (k, v)],
        )
    )  # fmt: skip
    torch.testing.assert_close(ours, right)
    assert (ours - wrong).abs().max() > 0.1


def test_causal_skips_tiles_and_a_mask_alone_would_not():
    square, causal = AttentionShape(512, 512, 16), AttentionShape(512, 512, 16, causal=True)
    tiles = [sum(step.what == "tile" for step in version_2(a, Tiles(64, 64)).steps) for a in (square, causal)]
    assert tiles == [64, 36]
    assert work("standard", causal, Tiles(64, 64)) == work("standard", square, Tiles(64, 64))
