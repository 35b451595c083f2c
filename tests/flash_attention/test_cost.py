"""Closed forms against the plans counted step by step, against the papers, and against what must be."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuedu.flash_attention.cost import (
    FP32_TENSORS,
    GPT2_MEDIUM,
    SRAM_ELEMENTS,
    Elements,
    Traffic,
    attention_time,
    best_splits,
    decoding_table,
    extra_elements,
    figure_2,
    floor_sum,
    kernel_costs,
    kernel_times,
    leading_traffic,
    least_traffic,
    plan_extra_elements,
    plan_traffic,
    plan_work,
    traffic,
    visits,
    work,
)
from gpuedu.flash_attention.plan import (
    KERNELS,
    AttentionShape,
    Op,
    TilePlan,
    Tiles,
    blocks,
    tiles_from_sram,
    visited_tiles,
)
from gpuedu.hardware import GPUS

from .shapes import PLANS, attentions, make, tiles

A100 = GPUS["A100-40GB"]


@given(st.integers(0, 40), st.integers(0, 50), st.integers(-200, 200), st.integers(1, 40))
def test_floor_sum_is_the_sum(count, slope, offset, divisor):
    expected = sum((slope * i + offset) // divisor for i in range(count))
    assert floor_sum(count, slope, offset, divisor) == expected


@given(attentions(60), tiles(20))
def test_visits_are_the_tiles_listed(attention, tile):
    listed = visited_tiles(attention, tile)
    counted = visits(attention, tile.rows, tile.columns)
    lengths = [(rows[1] - rows[0], columns[1] - columns[0]) for rows, columns in listed]
    assert counted.tiles == len(listed)
    assert counted.area == sum(r * c for r, c in lengths)
    assert counted.columns == sum(c for _, c in lengths)
    assert counted.tile_rows == sum(r for r, _ in lengths)
    assert counted.rows == sum(stop - start for start, stop in {rows for rows, _ in listed})


@pytest.mark.parametrize("name", PLANS)
@given(attention=attentions(), tile=tiles(), splits=st.integers(1, 6))
def test_closed_forms_are_the_plan_counted(name, attention, tile, splits):
    splits = splits if name == "split_kv" else 1
    plan = make(name, attention, tile, splits)
    assert traffic(name, attention, tile, splits).tensors == plan_traffic(plan).tensors
    assert work(name, attention, tile, splits) == plan_work(plan)
    kernels = kernel_costs(name, attention, tile, splits)
    for programs, kernel in zip(plan.phases, kernels, strict=True):
        phase = TilePlan("phase", attention, tile, (programs,), plan.splits)
        moved = {n: Elements(*counts) for n, counts in kernel.tensors.items() if any(counts)}
        assert moved == plan_traffic(phase).tensors
        assert kernel.matmul_flops == plan_work(phase).matmul_flops
        assert kernel.programs in (None, len(programs) * attention.units)


@pytest.mark.parametrize("name", PLANS)
@given(attention=attentions(16, shortest=1), tile=tiles(), splits=st.integers(1, 6))
@settings(max_examples=40)
def test_memory_beside_inputs_and_outputs_is_what_the_plan_names(name, attention, tile, splits):
    splits = splits if name == "split_kv" else 1
    plan = make(name, attention, tile, splits)
    expected = plan_extra_elements(plan)
    if plan_traffic(plan).tensors.get("m", Elements()).moved == 0 and name.startswith("version_1"):
        return  # everything is hidden: the plan names no statistic that it would move
    if name in ("version_2_backward", "two_pass_backward") and "LSE" not in plan_traffic(plan).tensors:
        return
    assert extra_elements(name, attention, tile, splits) >= expected
    if not attention.masked:
        assert extra_elements(name, attention, tile, splits) == expected


def by_the_table(name, n, m, d, rows, columns):
    """The formulas of the docstring of ``traffic``, one head, no mask: (moved, filled)."""
    t_r, t_c = len(blocks(n, rows)), len(blocks(m, columns))
    return {
        "standard": (2 * n * d + 2 * m * d + 4 * n * m, 0),
        "version_1": (2 * m * d + t_c * n * (3 * d + 4), n * (d + 2)),
        "version_2": (2 * n * d + n + t_r * 2 * m * d, 0),
        "standard_backward": (4 * n * d + 4 * m * d + 7 * n * m, 0),
        "version_1_backward": (4 * m * d + t_c * n * (5 * d + 2), (n + 2 * m) * d),
        "version_2_backward": (2 * n * d + n + 4 * m * d + t_c * n * (4 * d + 2), n * d),
        "two_pass_backward": (
            5 * n * d + 3 * n + 4 * m * d + t_c * n * (2 * d + 2) + t_r * 2 * m * d, 0
        ),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PLANS if name != "split_kv"])
@given(n=st.integers(1, 300), m=st.integers(1, 300), d=st.integers(1, 128), tile=tiles(64))
def test_documented_table_is_what_is_counted(name, n, m, d, tile):
    total = traffic(name, AttentionShape(n, m, d), tile).total
    assert (total.moved, total.filled) == by_the_table(name, n, m, d, tile.rows, tile.columns)


def test_traffic_of_the_papers_algorithm_1_with_a_pencil():
    """N = 4, d = 2, two blocks of keys: K and V once, then twice Q, O, m, l in and O, m, l out."""
    counted = traffic("version_1", AttentionShape(4, 4, 2), Tiles(4, 2)).tensors
    assert counted == {
        "K": Elements(8), "V": Elements(8), "Q": Elements(16), "O": Elements(16, 16, 8),
        "m": Elements(8, 8, 4), "l": Elements(8, 8, 4),
    }  # fmt: skip


def test_grouped_heads_share_what_is_read():
    many = AttentionShape(256, 256, 64, heads=8)
    shared = AttentionShape(256, 256, 64, heads=8, kv_heads=2)
    tile = Tiles(64, 64)

    def read(name, attention, tensor, **options):
        return traffic(name, attention, tile, **options).tensors[tensor].read

    assert read("version_1", shared, "K") * 4 == read("version_1", many, "K")
    assert read("version_2", shared, "K") == read("version_2", many, "K")
    assert read("split_kv", shared, "K", splits=2) * 4 == read("version_2", many, "K")
    written = traffic("version_2_backward", shared, tile).tensors["dK"].written
    assert written * 4 == traffic("version_2_backward", many, tile).tensors["dK"].written


@given(st.sampled_from([2048, 4096, 8192]), st.sampled_from([32, 64, 128]))
def test_traffic_tends_to_theorem_2(length, d):
    """Counts over leading terms tend to 1; what is left over falls with d and with the number of blocks."""
    sram = 16 * 4 * d * 4  # B = 64
    for name in ("version_1", "version_2"):
        tile = tiles_from_sram(name, sram, d)
        counted = traffic(name, AttentionShape(length, length, d), tile).total.moved
        ratio = counted / leading_traffic(name, length, d, sram)
        assert 1 <= ratio < 1 + 2 / d + 2 * 64 / length
    assert traffic(
        "standard", AttentionShape(length, length, d), Tiles(64, 64)
    ).total.moved == leading_traffic("standard", length, d, sram)


@given(attentions(60, shortest=1), tiles(20))
def test_no_forward_without_a_mask_beats_the_least(attention, tile):
    open_one = AttentionShape(
        attention.queries, attention.keys, attention.head_dim, attention.heads, attention.kv_heads,
        attention.batch,
    )  # fmt: skip
    for name in ("standard", "version_1", "version_2", "split_kv"):
        assert traffic(name, open_one, tile).total.moved >= least_traffic(open_one)


def test_larger_blocks_of_the_outer_loop_move_less_and_only_they():
    square = AttentionShape(4096, 4096, 64)

    def moved(name, rows, columns):
        return traffic(name, square, Tiles(rows, columns)).total.moved

    sizes = [16, 32, 64, 128, 256, 512, 1024]
    for name, outer in (("version_1", 1), ("version_2", 0)):
        curve = [moved(name, *((64, s) if outer else (s, 64))) for s in sizes]
        assert curve == sorted(curve, reverse=True)
        assert len({moved(name, *((s, 64) if outer else (64, s))) for s in sizes}) == 1


def test_figure_2_as_far_as_it_can_be_counted():
    rows = figure_2()
    assert round(rows["standard"].hbm_gb, 1) == 25.2  # printed: 40.3
    assert round(rows["version_1"].hbm_gb, 2) == 4.06  # printed: 4.4
    by_hand = 2 * 1024 * (4 * 1024 * 64 + 4 * 1024**2 + 8 * 1024 * 64 + 7 * 1024**2) / 1e9
    assert rows["standard"].hbm_gb == pytest.approx(by_hand)
    assert tiles_from_sram("version_1", SRAM_ELEMENTS, 64) == Tiles(64, 384)
    assert round(figure_2(256)["version_1"].hbm_gb, 2) == 5.15
    with_fills = rows["version_1"].hbm_gb + rows["version_1"].filled_gb
    assert rows["version_1"].hbm_gb < 4.4 < with_fills  # the printed value lies between the two counts


def test_middle_of_figure_2_falls_until_arithmetic_takes_longer():
    """Bytes fall with B_c for ever; the roofline stops falling where products take longer than bytes."""
    curve = {columns: figure_2(columns)["version_1"] for columns in (64, 128, 256, 512, 1024)}
    sizes = list(curve)
    assert all(curve[a].hbm_gb > curve[b].hbm_gb for a, b in pairwise(sizes))
    times = [curve[size].roofline_ms for size in sizes]
    assert times[0] > 2 * times[2]
    assert times[-1] == pytest.approx(times[-2], rel=0.02)


def test_backward_of_standard_attention_reads_what_the_forward_wrote():
    forward, backward = (traffic(n, GPT2_MEDIUM, Tiles(64, 64)).tensors for n in
                         ("standard", "standard_backward"))  # fmt: skip
    assert backward["P"].read == 2 * forward["P"].written


@pytest.mark.parametrize("causal", [False, True])
def test_pricing_a_million_tokens_takes_no_time(causal):
    million = AttentionShape(2**20, 2**20, 128, heads=32, kv_heads=8, causal=causal)
    start = time.process_time()
    for name in PLANS:
        traffic(name, million, Tiles(128, 128))
        work(name, million, Tiles(128, 128))
        attention_time(name, million, Tiles(128, 128), A100)
    assert time.process_time() - start < 0.5


# Time --------------------------------------------------------------------------------------------


def test_decode_leaves_version_2_alone_on_a_few_multiprocessors():
    """16 query heads on 2 key heads before 65,536 tokens: 16 programs on 108 multiprocessors."""
    decode, tile = AttentionShape(1, 65536, 128, heads=16, kv_heads=2), Tiles(1, 128)
    (alone,) = kernel_times("version_2", decode, tile, A100)
    assert alone.busy == pytest.approx(16 / 108)
    parts = best_splits(decode, tile, A100)
    split = attention_time("split_kv", decode, tile, A100, splits=parts)
    assert alone.seconds / split > 20  # Flash-Decoding's authors measured 2,300.6 / 64.4 = 36
    assert 1e6 * split < 64.4  # with the GPU full, a roofline is a bound
    assert 1e6 * alone.seconds == pytest.approx(2300.6, rel=0.3)
    fewest_bytes = 2 * 65536 * 128 * 2 * 2 / A100.memory_bandwidth
    assert fewest_bytes < split < 1.5 * fewest_bytes


def test_flash_decodings_table_comes_out():
    for row in decoding_table():
        assert row.version_2_us == pytest.approx(row.printed_version_2_us, rel=0.125)
        assert 0.6 * row.printed_split_kv_us < row.split_kv_us <= row.printed_split_kv_us
    assert len(decoding_table()) == 10


def test_best_splits_is_the_best_of_all():
    for batch in (1, 3, 16):
        decode, tile = AttentionShape(1, 4096, 64, heads=8, kv_heads=2, batch=batch), Tiles(1, 128)
        times = {n: attention_time("split_kv", decode, tile, A100, splits=n) for n in range(1, 33)}
        assert times[best_splits(decode, tile, A100)] == min(times.values())


@given(attentions(40, shortest=1), tiles())
def test_time_is_the_roofline_of_each_phase(attention, tile):
    for name in PLANS:
        kernels = kernel_costs(name, attention, tile)
        for kernel, priced in zip(kernels, kernel_times(name, attention, tile, A100), strict=True):
            moved = Traffic({n: Elements(*c) for n, c in kernel.tensors.items()})
            nbytes = moved.nbytes(2, fp32=FP32_TENSORS)
            assert priced.memory_s == pytest.approx(nbytes / 1555e9)
            assert priced.compute_s == pytest.approx(kernel.matmul_flops / 312e12)
            assert 0 < priced.busy <= 1
            assert priced.seconds >= max(priced.compute_s, priced.memory_s)


def test_statistics_stay_in_32_bits():
    moved = traffic("version_2", AttentionShape(128, 128, 64), Tiles(64, 64))
    assert moved.nbytes(2, fp32=FP32_TENSORS) - moved.nbytes(2) == 2 * 128
    assert moved.nbytes(4) == 4 * moved.total.moved


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a, t: traffic("flash", a, t), ValueError, "plan='flash': must be one of standard"),
        (lambda a, t: traffic("version_2", a, t, 2), ValueError, "splits=2: must be 1 for version_2"),
        (lambda a, t: traffic("split_kv", a, t, 0), ValueError, "splits=0: must be at least 1"),
        (lambda a, t: extra_elements("flash", a, t), ValueError, "plan='flash': must be one of"),
        (lambda a, t: traffic("standard", a, t).nbytes(0), ValueError, "dtype_bytes=0"),
        (lambda a, t: attention_time("version_2", a, t, A100, "fp8"), ValueError, "dtype='fp8'"),
        (lambda a, t: leading_traffic("split_kv", 8, 8, 8), ValueError, "plan='split_kv'"),
        (lambda a, t: leading_traffic("standard", 0, 8, 8), ValueError, "length=0: must be at least 1"),
        (lambda a, t: figure_2(0), ValueError, "columns=0: must be at least 1"),
        (lambda a, t: visits(a, 0, 4), ValueError, "rows=0, columns=4: must be at least 1"),
        (lambda a, t: floor_sum(-1, 1, 1, 1), ValueError, "count=-1"),
    ],
)
def test_bad_input_says_why(call, error, message):
    with pytest.raises(error, match=message):
        call(AttentionShape(8, 8, 4), Tiles(4, 4))


def test_every_kernel_of_a_plan_is_known():
    for name in PLANS:
        plan = make(name, AttentionShape(8, 8, 4), Tiles(4, 4))
        assert {s.what for s in plan.steps if s.op is Op.COMPUTE} <= set(KERNELS)
