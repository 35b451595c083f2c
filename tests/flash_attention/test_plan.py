"""Plans are whole, skip what nobody sees, and say what is wrong with a broken one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuedu.flash_attention.plan import (
    BACKWARDS,
    FORWARDS,
    AttentionShape,
    Op,
    Step,
    TilePlan,
    Tiles,
    blocks,
    key_parts,
    on_chip_elements,
    overlapping,
    sequence_lengths,
    split_kv,
    tiles_from_sram,
    validate,
    varlen,
    version_1,
    version_2,
    version_2_backward,
    visited_tiles,
)

from .shapes import PLANS, attentions, make, sees, tiles


@given(attentions())
def test_visible_keys_are_what_the_definition_says(attention):
    pairs = 0
    for query in range(attention.queries):
        seen = {key for key in range(attention.keys) if sees(attention, query, key)}
        assert set(range(*attention.visible(query))) == seen
        pairs += len(seen)
    assert attention.visible_pairs == pairs
    assert attention.masked == (pairs < attention.queries * attention.keys)
    assert attention.transposed().visible_pairs == pairs


@given(attentions(), tiles())
def test_a_tile_is_visited_if_and_only_if_a_query_in_it_sees_a_key(attention, tile):
    visited = set(visited_tiles(attention, tile))
    for rows in blocks(attention.queries, tile.rows):
        for columns in blocks(attention.keys, tile.columns):
            pairs = [sees(attention, q, k) for q in range(*rows) for k in range(*columns)]
            assert ((rows, columns) in visited) == any(pairs)
            assert attention.sees_all(rows, columns) == all(pairs)


@pytest.mark.parametrize("name", PLANS)
@given(attention=attentions(12), tile=tiles(8), splits=st.integers(1, 4))
@settings(max_examples=25)
def test_every_plan_is_valid(name, attention, tile, splits):
    validate(make(name, attention, tile, splits))


def test_loop_orders_are_the_papers():
    attention, tile = AttentionShape(6, 8, 4), Tiles(3, 4)
    visited = {
        make_plan.__name__: [(s.rows[0], s.columns[0]) for s in make_plan(attention, tile).computes
                             if s.what.startswith("tile")]
        for make_plan in (version_1, version_2)
    }  # fmt: skip
    assert visited["version_1"] == [(0, 0), (3, 0), (0, 4), (3, 4)]  # outer loop over keys
    assert visited["version_2"] == [(0, 0), (0, 4), (3, 0), (3, 4)]  # outer loop over queries


def test_programs_that_can_run_side_by_side():
    attention, tile = AttentionShape(512, 1024, 64, heads=8, kv_heads=2), Tiles(128, 128)
    assert [len(p) for p in version_1(attention, tile).phases] == [1]
    assert [len(p) for p in version_2(attention, tile).phases] == [4 * 4]
    assert [len(p) for p in split_kv(attention, tile, 4).phases] == [4 * 4, 4]


@given(st.integers(0, 500), st.integers(1, 64), st.integers(1, 20))
def test_parts_of_keys_are_whole_tiles_and_leave_none_out(keys, columns, splits):
    parts = key_parts(AttentionShape(1, keys, 8), Tiles(1, columns), splits)
    assert len(parts) <= splits
    assert [key for part in parts for key in range(*part)] == list(range(keys))
    assert all(start % columns == 0 for start, _ in parts)


@given(st.integers(0, 100), st.integers(1, 20), st.integers(-5, 110), st.integers(-5, 110))
def test_overlapping_blocks(length, size, start, stop):
    expected = [b for b in blocks(length, size) if max(b[0], start) < min(b[1], stop)]
    assert list(overlapping(length, size, (start, stop))) == expected


@given(st.integers(4, 512), st.integers(100, 2**18), st.sampled_from(["version_1", "version_2"]))
def test_tiles_fit_the_memory_that_they_were_made_for(head_dim, sram, order):
    if sram < 4 * head_dim:
        return
    tile = tiles_from_sram(order, sram, head_dim)
    large, small = max(tile.rows, tile.columns), min(tile.rows, tile.columns)
    assert large == -(-sram // (4 * head_dim)) and small == min(large, head_dim)
    # Q, K, V and O alone take M where both are M / 4 d, the scores and statistics come on top; hence
    # the paper's "on the order of": within a factor of 1.5 and the rounding of M / 4 d
    assert on_chip_elements(order, tile, head_dim) <= 1.5 * sram + 10 * head_dim + large


@pytest.mark.parametrize("name", [*FORWARDS, *BACKWARDS])
def test_a_plan_without_a_read_is_called_out(name):
    plan = make(name, AttentionShape(8, 8, 4, heads=2, kv_heads=1), Tiles(4, 4))
    for number, programs in enumerate(plan.phases):
        program = programs[0]
        for at, step in enumerate(program):
            # The first use of what is read: later reads of it in other tiles stay
            if step.op is Op.READ:
                broken = (program[:at] + program[at + 1 :], *programs[1:])
                phases = (*plan.phases[:number], broken, *plan.phases[number + 1 :])
                with pytest.raises(ValueError, match="not on the chip"):
                    validate(replace(plan, phases=phases))
                break


def changed(plan: TilePlan, change) -> TilePlan:
    """``plan`` with its first program of the last phase changed."""
    *before, last = plan.phases
    return replace(plan, phases=(*before, (change(last[0]), *last[1:])))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: (*p[:-3], p[-3]._replace(rows=(4, 8)), *p[-2:]), "not on the chip"),
        (lambda p: tuple(s for s in p if s.op is not Op.WRITE), "never writes O row 0"),
        (lambda p: (*p[:7], p[6], *p[7:]), "computes query 0, key 0 twice"),
        (lambda p: (*p[:4], *p[7:]), "leaves out pairs"),
        (lambda p: (Step(Op.READ, "S", (0, 1), (0, 4), (0, 8)), *p), "reads S rows 0-3, which nobody"),
    ],
)
def test_a_broken_plan_says_what_is_wrong(change, message):
    plan = version_2(AttentionShape(8, 8, 4), Tiles(4, 4))
    with pytest.raises(ValueError, match=message):
        validate(changed(plan, change))


def test_two_programs_may_add_to_dq_and_to_nothing_else():
    plan = version_2_backward(AttentionShape(8, 8, 4), Tiles(4, 4))
    validate(plan)
    first, second = plan.phases[1]
    same = tuple(s._replace(rows=(0, 4)) if s.what in ("dK", "dV") else s for s in second)
    with pytest.raises(ValueError, match=r"two programs of a phase write dK row 0|not on the chip"):
        validate(replace(plan, phases=(plan.phases[0], (first, same))))


def test_packed_sequences_see_themselves_alone():
    sequences = varlen([0, 3, 3, 10], [0, 5, 6, 9], 8, heads=4, kv_heads=2, causal=True)
    assert [(a.queries, a.keys, a.group, a.causal) for a in sequences] == [
        (3, 5, 2, True), (0, 1, 2, True), (7, 3, 2, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make_it, error, message",
    [
        (lambda: AttentionShape(-1, 4, 8), ValueError, "queries=-1: must be at least 0"),
        (lambda: AttentionShape(4, 4.0, 8), TypeError, "keys=4.0: must be an int"),
        (lambda: AttentionShape(4, 4, 0), ValueError, "head_dim=0: must be at least 1"),
        (lambda: AttentionShape(4, 4, 8, heads=8, kv_heads=3), ValueError, "kv_heads=3: must divide heads=8"),
        (lambda: AttentionShape(4, 4, 8, causal=1), TypeError, "causal=1: must be a bool"),
        (lambda: AttentionShape(4, 4, 8, window=3), TypeError, "window=3: must be a tuple"),
        (lambda: AttentionShape(4, 4, 8, window=(-2, 0)), ValueError, r"window\[0\]=-2: must be at least 0"),
        (lambda: Tiles(0, 4), ValueError, "rows=0: must be at least 1"),
        (lambda: Tiles(4, True), TypeError, "columns=True: must be an int"),
        (lambda: blocks(10, 0), ValueError, "size=0: must be at least 1"),
        (lambda: version_2("gpt2", Tiles(4, 4)), TypeError, "attention='gpt2': must be an AttentionShape"),
        (lambda: version_1(AttentionShape(4, 4, 8), (4, 4)), TypeError, r"tiles=\(4, 4\): must be a Tiles"),
        (
            lambda: split_kv(AttentionShape(1, 9, 8), Tiles(1, 4), 0),
            ValueError,
            "splits=0: must be at least 1",
        ),
        (lambda: tiles_from_sram("version_3", 4096, 64), ValueError, "order='version_3': must be one of"),
        (lambda: tiles_from_sram("version_1", 128, 64), ValueError, "sram_elements=128: must be at least"),
        (lambda: sequence_lengths("cu", [1, 3]), ValueError, "cu=.1, 3.: must be at least two offsets"),
        (lambda: sequence_lengths("cu", [0]), ValueError, "must be at least two offsets"),
        (lambda: sequence_lengths("cu", [0, 5, 3]), ValueError, "cu: 5 is followed by 3; must never fall"),
        (lambda: sequence_lengths("cu", [0, 2.5]), TypeError, "cu=2.5: must be an int"),
        (lambda: varlen([0, 4], [0, 2, 4], 8), ValueError, "1 sequences, cu_seqlens_k 2: must be as many"),
    ],
)
def test_bad_input_says_why(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()
