"""Grids, rows, packing and the GPTQ log against authorities, and what all of them must obey."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.quantization.plan import (
    AWQ_ORDER,
    BITS,
    BLOCK_FORMATS,
    FORMATS,
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    GROUP_SCALES,
    KINDS,
    NF4,
    Affine,
    FloatFormat,
    Format,
    Grid,
    KVQuantization,
    fit,
    fit_mse,
    gptq,
    hessian,
    integer_format,
    layout,
    peaks,
    round_blocks,
    round_row,
    rounded_product,
    smoothing_scales,
)

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
rows = st.lists(numbers, min_size=1, max_size=24)

# --- floats --------------------------------------------------------------------------------------------

TORCH_FLOATS = [
    (FP8_E4M3, torch.float8_e4m3fn),
    (FP8_E5M2, torch.float8_e5m2),
]


@pytest.mark.parametrize("format, dtype", TORCH_FLOATS, ids=lambda f: getattr(f, "name", ""))
def test_every_code_means_what_torch_says(format, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    ours = torch.tensor([format.decode(code) for code in range(256)])
    theirs = codes.view(dtype).float()
    assert torch.equal(ours.nan_to_num(nan=-1.5), theirs.nan_to_num(nan=-1.5))


def test_every_code_of_e2m1_means_what_the_specification_says():
    # OCP Microscaling Formats 1.0, table 5: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [FP4_E2M1.decode(code) for code in range(16)] == [*positive, *(-x for x in positive)]


def test_fp8_has_the_figures_of_its_paper():
    # Micikevicius et al. 2022, table 1
    assert (FP8_E4M3.grid.largest, FP8_E5M2.grid.largest) == (448, 57344)
    assert (FP8_E4M3.smallest_normal, FP8_E5M2.smallest_normal) == (2**-6, 2**-14)
    assert (FP8_E4M3.smallest_subnormal, FP8_E5M2.smallest_subnormal) == (2**-9, 2**-16)
    assert [c for c in range(256) if math.isnan(FP8_E4M3.decode(c))] == [0x7F, 0xFF]
    assert [c for c in range(256) if math.isnan(FP8_E5M2.decode(c))] == [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]
    assert (FP8_E4M3.bias, FP8_E5M2.bias) == (7, 15)


def neighborhoods(values):
    """Every value, what lies halfway to the next, and the float32 numbers right beside both."""
    exact = torch.tensor(values)
    points = torch.cat((exact, (exact[:-1] + exact[1:]) / 2))
    up, down = torch.full_like(points, torch.inf), torch.full_like(points, -torch.inf)
    return torch.cat((points, torch.nextafter(points, up), torch.nextafter(points, down)))


@pytest.mark.parametrize("format, dtype", TORCH_FLOATS, ids=lambda f: getattr(f, "name", ""))
def test_rounding_is_torchs_cast_around_every_value(format, dtype):
    x = neighborhoods(format.grid.values)
    x = x[x.abs() <= format.grid.largest]  # beyond it, casts saturate or overflow; a grid saturates
    assert len(x) > 4 * len(format.grid.values)
    ours = torch.tensor([format.grid.nearest(number) for number in x.tolist()])
    assert torch.equal(ours, x.to(dtype).float())
    assert format.grid.nearest(1e9) == format.grid.largest == -format.grid.nearest(-1e9)


def test_nf4_is_the_table_of_its_paper():
    # Dettmers et al. 2023, "QLoRA", appendix E
    table = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert NF4.values == pytest.approx(table, abs=3e-7)


@given(numbers, st.sampled_from([FP8_E4M3.grid, FP8_E5M2.grid, FP4_E2M1.grid, NF4]))
def test_nearest_is_nearest(number, grid):
    rounded = grid.nearest(number)
    assert rounded in grid.values
    assert abs(rounded - number) == min(abs(value - number) for value in grid.values)


def test_a_grid_ascends_and_fits_its_bits():
    with pytest.raises(ValueError, match="ascend"):
        Grid("mine", 2, (0.0, 0.0))
    with pytest.raises(ValueError, match="5 values: must be from 1 to 4"):
        Grid("mine", 2, (0.0, 1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ValueError, match="number=nan: must be finite"):
        NF4.nearest(math.nan)
    with pytest.raises(ValueError, match="specials='inf': must be one of ieee, nan, none"):
        FloatFormat("mine", 4, 3, "inf")
    with pytest.raises(ValueError, match="code=256: must be below 256"):
        FP8_E4M3.decode(256)


# --- integers ------------------------------------------------------------------------------------------


@given(rows, st.sampled_from(BITS), st.sampled_from(KINDS), st.sampled_from(["minmax", "mse"]))
def test_integers_hold_zero_exactly_and_round_to_the_nearest(row, bits, kind, clip):
    scale = fit(row, bits, kind, clip)
    assert scale.nearest(0.0) == 0.0
    assert len(scale.grid.values) == 2**bits - (kind == "symmetric")
    for number in row:
        assert abs(scale.nearest(number) - number) <= min(
            abs(value - number) for value in scale.grid.values
        ) + 1e-9 * abs(number)
        assert scale.low <= scale.code(number) <= scale.high


@given(rows, st.sampled_from(BITS), st.sampled_from(KINDS))
def test_an_integer_range_covers_its_numbers_to_half_a_step(row, bits, kind):
    scale = fit(row, bits, kind)
    slack = {"symmetric": 0.5, "full_range": 0.5, "asymmetric": 1.0}[kind]  # a rounded zero shifts the ends
    for number in row:
        assert abs(scale.nearest(number) - number) <= slack * scale.scale * (1 + 1e-9)


@given(rows, st.sampled_from(BITS))
def test_a_symmetric_range_is_symmetric_and_hits_the_largest(row, bits):
    scale = fit(row, bits, "symmetric")
    assert scale.value(scale.low) == -scale.value(scale.high)
    if any(row):
        assert max(map(abs, map(scale.nearest, row))) == pytest.approx(max(map(abs, row)))


@given(st.lists(numbers, min_size=2, max_size=12), st.sampled_from([2, 3, 4]), st.sampled_from(KINDS))
def test_clipping_by_error_is_no_worse_than_covering_all(row, bits, kind):
    def error(scale):
        return sum(abs(scale.nearest(number) - number) ** 2.4 for number in row)

    assert error(fit_mse(row, bits, kind)) <= error(fit(row, bits, kind)) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_with_a_scale_and_a_zero_is_torchs(bits):
    generator = torch.Generator().manual_seed(bits)
    for _ in range(20):
        x = torch.randn(50, generator=generator, dtype=torch.float64)
        scale = fit(x.tolist(), bits)
        theirs = torch.fake_quantize_per_tensor_affine(x.float(), scale.scale, scale.zero, 0, scale.high)
        ours = torch.tensor([scale.nearest(number) for number in x.float().tolist()])
        assert (ours - theirs).abs().max() < 1e-6


def test_rows_are_rounded_group_by_group():
    row = [0.1, 0.9, -3.0, 6.0, 5.0, 5.5, 7.0, 7.5]
    whole = round_row(row, 3, group=2)
    parts = [round_row(row[i : i + 2], 3) for i in range(0, 8, 2)]
    assert whole.values == sum((part.values for part in parts), ())
    assert whole.scales == sum((part.scales for part in parts), ())
    errors = [part.error(row[2 * i : 2 * i + 2]) for i, part in enumerate(parts)]
    assert whole.error(row) == pytest.approx(sum(errors) / 4)


@given(st.lists(numbers, min_size=8, max_size=8), st.sampled_from(BITS), st.sampled_from(KINDS))
def test_what_is_on_the_grid_stays(row, bits, kind):
    once = round_row(row, bits, kind=kind)
    again = [once.scales[0].nearest(value) for value in once.values]
    assert tuple(again) == pytest.approx(once.values)


def test_what_cannot_be_rounded_says_why():
    with pytest.raises(ValueError, match="bits=5: must be one of 2, 3, 4, 8"):
        fit([1.0], 5)
    with pytest.raises(ValueError, match="kind='signed': must be one of symmetric, full_range, asymmetric"):
        fit([1.0], 4, "signed")
    with pytest.raises(ValueError, match="clip='none': must be one of minmax, mse"):
        fit([1.0], 4, clip="none")
    with pytest.raises(ValueError, match="numbers is empty"):
        fit([], 4)
    with pytest.raises(ValueError, match=r"numbers\[1\]=inf: must be finite"):
        fit([1.0, math.inf], 4)
    with pytest.raises(ValueError, match="group=3: must divide the 4 columns"):
        round_row([1.0] * 4, 4, group=3)
    for number, scale in ((5e-324, "0.0"), (-5e-324, "0.0")):
        for kind in KINDS:
            with pytest.raises(ValueError, match=f"their scale {scale} must be above 0 and finite"):
                round_row([number, 0.0], 4, kind=kind)
    with pytest.raises(ValueError, match="their scale inf must be above 0 and finite"):
        round_row([1.7e308, -1.7e308], 2)
    assert set(round_row([1e-320, -1e-320], 2).codes) == {0, 3}  # all steps that there are down there
    with pytest.raises(TypeError, match=r"bits=4\.0: must be an int"):
        round_row([1.0], 4.0)
    with pytest.raises(ValueError, match="scale=0: must be above 0"):
        Affine(4, 0, 8)
    with pytest.raises(ValueError, match="zero=16: must be"):
        Affine(4, 1.0, 16)


# --- block formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_of_zeros_stay_zero(name):
    assert set(round_blocks([0.0] * 64, name)) == {0.0}


@given(st.lists(numbers, min_size=64, max_size=64), st.sampled_from([-3, 1, 5]))
def test_mxfp4_is_the_specifications_algorithm_and_moves_with_powers_of_two(row, exponent):
    rounded = round_blocks(row, "mxfp4")
    for start in (0, 32):
        part = row[start : start + 32]
        largest = max(map(abs, part))
        if largest == 0:
            continue
        shared = 2.0 ** (math.floor(math.log2(largest)) - 2)  # OCP MX 1.0, section 6.3; emax of E2M1 is 2
        for number, value in zip(part, rounded[start : start + 32], strict=True):
            exact = min(FP4_E2M1.grid.values, key=lambda v: abs(v - number / shared))
            assert abs(value / shared - number / shared) == pytest.approx(abs(exact - number / shared))
    moved = round_blocks([x * 2.0**exponent for x in row], "mxfp4")
    assert moved == tuple(value * 2.0**exponent for value in rounded)


@given(st.lists(numbers, min_size=64, max_size=64), st.floats(0.01, 100))
def test_nvfp4_moves_with_any_factor(row, factor):
    moved, rounded = round_blocks([x * factor for x in row], "nvfp4"), round_blocks(row, "nvfp4")
    agree = sum(a == pytest.approx(b * factor, rel=1e-9) for a, b in zip(moved, rounded, strict=True))
    assert agree >= 60  # a number on an edge may fall to either side


def test_nvfp4_follows_a_block_far_below_the_tensors_largest():
    row = [448.0 * 6] + [0.0] * 15 + [0.06] * 16  # scale of the tensor 1, of the second block 0.01
    assert round_blocks(row, "nvfp4")[16:] == (pytest.approx(6 * FP8_E4M3.grid.nearest(0.01)),) * 16


def test_formats_with_finer_scales_round_better():
    row = torch.randn(4096, generator=torch.Generator().manual_seed(0)).tolist()

    def error(values):
        return sum((a - b) ** 2 for a, b in zip(values, row, strict=True))

    nv, mx = error(round_blocks(row, "nvfp4")), error(round_blocks(row, "mxfp4"))
    nf = error(round_blocks(row, "nf4"))
    rtn = error(round_row(row, 4, kind="symmetric", group=64).values)
    assert nv < mx and nf < rtn  # NF4 was made for normal weights


# --- bits ----------------------------------------------------------------------------------------------


def test_bits_of_block_formats():
    double = 4 + 8 / 64 + 32 / (64 * 256)
    expected = {"mxfp4": 4.25, "nvfp4": 4.5, "q4_1": 5.0, "q8_0": 8.5, "nf4": 4.5, "nf4_double": double}
    assert {name: FORMATS[name].bits_per_number() for name in expected} == expected


def test_bits_need_the_row_where_the_row_shares_a_scale():
    assert integer_format(4).bits_per_number(4096) == 4 + 20 / 4096
    with pytest.raises(ValueError, match="row=None: must be the length of a row"):
        integer_format(4).bits_per_number()
    with pytest.raises(ValueError, match="row=576: must be a multiple of the group of 128"):
        integer_format(4, 128).bits_per_number(576)
    with pytest.raises(ValueError, match="multiplied_as='int2': must be one of"):
        Format("mine", 2, multiplied_as="int2")


# --- packing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_layout_uses_every_bit_of_every_word_once(bits):
    words, used = {}, []
    for piece in layout(bits):
        assert piece.shift + piece.width <= 32
        used += [(piece.word, piece.shift + i) for i in range(piece.width)]
        words.setdefault(piece.item, []).append(piece)
    count = {2: 16, 3: 32, 4: 8, 8: 4}[bits]
    assert sorted(used) == [(w, b) for w in range(3 if bits == 3 else 1) for b in range(32)]
    assert sorted(words) == list(range(count))
    for pieces in words.values():  # an item's bits, low ones first
        assert [p.skip for p in pieces] == [sum(q.width for q in pieces[:i]) for i in range(len(pieces))]
        assert sum(p.width for p in pieces) == bits


def test_layout_of_three_bits_is_the_published_one():
    # AutoGPTQ: 10 codes and two bits; the third bit, 10 codes and a bit; two bits and 10 codes
    at = {(p.item, p.skip): (p.word, p.shift, p.width) for p in layout(3)}
    assert at[9, 0] == (0, 27, 3) and at[10, 0] == (0, 30, 2) and at[10, 2] == (1, 0, 1)
    assert at[11, 0] == (1, 1, 3) and at[20, 0] == (1, 28, 3) and at[21, 0] == (1, 31, 1)
    assert at[21, 1] == (2, 0, 2) and at[22, 0] == (2, 2, 3) and at[31, 0] == (2, 29, 3)


def test_awqs_order():
    nibbles = {p.shift // 4: p.item for p in layout(4, "awq")}
    assert tuple(nibbles[i] for i in range(8)) == AWQ_ORDER == (0, 2, 4, 6, 1, 3, 5, 7)
    with pytest.raises(ValueError, match="bits=3: must be 4 in AWQ's order"):
        layout(3, "awq")
    with pytest.raises(ValueError, match="order='marlin': must be one of gptq, awq"):
        layout(4, "marlin")


# --- the window of a quantized cache -------------------------------------------------------------------


@given(st.integers(0, 1000), st.sampled_from([16, 32]), st.integers(1, 4))
def test_window_moves_as_if_tokens_came_one_by_one(tokens, group, windows):
    how = KVQuantization(2, group, group * windows)
    full_keys = full_values = 0
    for _ in range(tokens):  # Liu et al. 2024, algorithm 1
        full_keys, full_values = full_keys + 1, full_values + 1
        full_keys %= how.residual
        full_values = min(full_values, how.residual)
    assert how.quantized_keys(tokens) == tokens - full_keys
    assert how.quantized_values(tokens) == tokens - full_values


def test_a_window_holds_whole_groups():
    with pytest.raises(ValueError, match="group=32: must divide residual=100"):
        KVQuantization(2, 32, 100)
    with pytest.raises(ValueError, match="bits=1: must be one of"):
        KVQuantization(1)


# --- SmoothQuant ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    st.floats(0, 1),
)
def test_smoothing_moves_the_peaks_as_alpha_says(activations, weights, alpha):
    scales = smoothing_scales(activations, weights, alpha)
    for a, w, s in zip(activations, weights, scales, strict=True):
        assert a / s == pytest.approx(a ** (1 - alpha) * w ** (1 - alpha))
        assert w * s == pytest.approx(a**alpha * w**alpha)
        if alpha == 0.5:
            assert a / s == pytest.approx(w * s)


def test_smoothing_rescues_a_product_with_an_outlier():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 24, generator=generator)
    x[:, 5] *= 60
    w = torch.randn(12, 24, generator=generator)
    exact = x @ w.T

    def error(alpha):
        scales = smoothing_scales(peaks(x.tolist()), peaks(w.tolist()), alpha) if alpha else [1.0] * 24
        return (torch.tensor(rounded_product(x.tolist(), w.tolist(), scales)) - exact).square().mean().item()

    assert error(0.5) < error(0) / 10
    assert error(0.5) < error(1.0)


def test_what_cannot_be_smoothed_says_why():
    with pytest.raises(ValueError, match=r"alpha=1\.5: must be from 0 to 1"):
        smoothing_scales([1.0], [1.0], 1.5)
    with pytest.raises(ValueError, match="weight_peaks: 2 channels: must be 1"):
        smoothing_scales([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="must not be negative"):
        smoothing_scales([-1.0], [1.0])
    with pytest.raises(ValueError, match=r"scales: 0\.0: must be above 0"):
        rounded_product([[1.0]], [[1.0]], [0.0])


# --- the log of GPTQ -----------------------------------------------------------------------------------


def small_problem(seed, rows=3, columns=12, tokens=40):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return w.tolist(), x.tolist(), hessian(x.tolist())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_scales", GROUP_SCALES)
def test_log_is_a_chain_of_states(act_order, group_scales):
    w, _, h = small_problem(1)
    log = gptq(w, h, 3, group=4, group_scales=group_scales, act_order=act_order)
    columns = [d.column for d in log.decisions]
    assert sorted(columns) == list(range(12))
    assert (columns == sorted(range(12), key=lambda j: -h[j][j])) == act_order
    for step, decision in enumerate(log.decisions):
        state = log.state(step)
        assert tuple(row[decision.column] for row in state) == pytest.approx(decision.before)
        done = columns[: step + 1]
        assert all(moved[j] == 0 for moved in decision.updates for j in done)
        for scale, code, after in zip(decision.scales, decision.codes, decision.after, strict=True):
            assert scale.value(code) == after
    final = log.state(len(columns))
    assert sum(final, ()) == pytest.approx(sum(log.values, ()))


@pytest.mark.parametrize("seed", range(5))
def test_every_decision_is_optimal_for_the_columns_left(seed):
    """The updates of a column are the least-squares answer: no other change of the rest makes it better."""
    w, x, h = small_problem(seed)
    log = gptq(w, h, 3, damping=0.0)
    inputs, hess = torch.tensor(x, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)
    before, after = (torch.tensor(log.state(s), dtype=torch.float64) for s in (0, 1))
    first, rest = log.decisions[0].column, [j for j in range(12) if j != log.decisions[0].column]
    moved = after[:, first] - before[:, first]
    wanted = torch.linalg.lstsq(inputs[:, rest], -inputs[:, [first]] @ moved[None]).solution.T
    assert torch.allclose(after[:, rest] - before[:, rest], wanted, atol=1e-9)
    difference = after - before
    assert log.output_error(1) == pytest.approx((difference @ inputs.T).square().mean().item())
    assert log.output_error(1) == pytest.approx(((difference @ hess) * difference).sum().item() / 6)


@pytest.mark.parametrize("seed", range(5))
def test_moving_errors_beats_rounding(seed):
    w, _, h = small_problem(seed, rows=8)
    moved, plain = (gptq(w, h, 3, compensate=c).output_error() for c in (True, False))
    assert moved < plain
    untouched = gptq(w, h, 3, compensate=False)
    assert untouched.values == tuple(round_row(row, 3).values for row in w)


def test_a_channel_that_is_never_used_becomes_zero():
    w, x, _ = small_problem(2)
    silent = [[0.0 if j == 4 else value for j, value in enumerate(row)] for row in x]
    log = gptq(w, hessian(silent), 4)
    assert all(row[4] == 0.0 for row in log.values)


def test_what_gptq_cannot_do_says_why():
    w, _, h = small_problem(0)
    with pytest.raises(ValueError, match="inputs is empty"):
        hessian([])
    with pytest.raises(ValueError, match=r"inputs\[0\]\[1\]=nan: must be finite"):
        hessian([[1.0, math.nan]])
    with pytest.raises(ValueError, match="group=5: must divide the 12 columns"):
        gptq(w, h, 4, group=5)
    with pytest.raises(ValueError, match="bits=6"):
        gptq(w, h, 6)
    with pytest.raises(ValueError, match="group_scales='old': must be one of fresh, stale, static"):
        gptq(w, h, 4, group_scales="old")
    with pytest.raises(ValueError, match="hessian has 11 rows: must have 12"):
        gptq(w, h[:-1], 4)
    with pytest.raises(ValueError, match="damping=0: must be larger, the Hessian is singular"):
        gptq([[1.0, 1.0]], hessian([[1.0, 1.0]]), 4, damping=0)
    with pytest.raises(ValueError, match="weights is empty"):
        gptq([], h, 4)


def test_bits_fall_and_errors_grow():
    w, _, h = small_problem(3, rows=6)
    errors = [gptq(w, h, bits).output_error() for bits in BITS]
    assert all(a > b for a, b in pairwise(errors))
