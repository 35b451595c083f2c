"""Mistakes that others have made on pipeline schedules, each guarded by a test."""

from fractions import Fraction

import pytest

from gpuedu.pipeline_parallel.cost import (
    bubble_ratio,
    bubble_share,
    peak_activations,
    timeline,
    zb_h1_span_bubble,
    zb_h2_span_bubble,
)
from gpuedu.pipeline_parallel.plan import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    interleaved_1f1b,
    one_f_one_b,
    zb_h1,
    zb_h2,
    zb_v,
)


def test_trap_01_the_bubble_has_three_definitions():
    p, m, forward, backward = 8, 32, 1, 2
    t = timeline(one_f_one_b(p, m), forward=forward, backward_input=backward, backward_weight=0)
    ideal = m * (forward + backward)
    assert t.bubble_time == (p - 1) * (forward + backward) == 21
    assert t.bubble_ratio == bubble_ratio(p, m) == 7 / 32
    assert t.bubble_share == bubble_share(p, m) == 7 / 39
    assert t.makespan == ideal * (1 + Fraction(7, 32)) == ideal / (1 - Fraction(7, 39))
    assert t.makespan != pytest.approx(ideal * (1 + t.bubble_share))
    assert (p - 1) / (p * m) not in (t.bubble_ratio, t.bubble_share)


@pytest.mark.parametrize("make", [zb_h2, zb_v])
def test_trap_02_zero_bubble_is_zero_within_a_ranks_span(make):
    t = timeline(make(8, 32), forward=2, backward_input=2, backward_weight=2)
    assert t.span_bubble_time == 0
    assert set(t.stage_span) == set(t.busy)  # a parallelogram: each rank works without a pause ...
    starts = [rank[0] for rank in t.starts]
    assert starts == sorted(starts) and starts[-1] > 0  # ... but not at the same time
    assert t.bubble_time == starts[-1] > 0
    # The next step may fill the corners only if rank 0 may start it before the last rank is done: without
    # a synchronization in between, which is what post-validation of the optimizer step buys.
    assert t.ends[0][-1] < t.makespan


def test_trap_03_b_is_not_b():
    # The zero-bubble papers' B is our I. In DualPipe's table B is the full backward: its bubbles for 1F1B,
    # (PP - 1)(F + B), and for ZB1P, (PP - 1)(F + B - 2W), are the same as (p - 1)(F + I + W) and
    # (p - 1)(F + I - W) here, and wrong with B taken for I.
    p, forward, i, w = 8, 4, 5, 3
    full = i + w
    price = {"forward": forward, "backward_input": i, "backward_weight": w}
    assert timeline(one_f_one_b(p, 16), **price).bubble_time == (p - 1) * (forward + full)
    h1 = timeline(zb_h1(p, 16), **price).span_bubble_time
    assert (
        h1
        == zb_h1_span_bubble(p, **price)
        == (p - 1) * (forward + i - w)
        == (p - 1) * (forward + full - 2 * w)
    )
    assert h1 != (p - 1) * (forward + i - 2 * w) == zb_h2_span_bubble(p, **price)
    kinds = {action.kind for actions in zb_h1(p, 16).actions for action in actions}
    assert {BACKWARD_INPUT, BACKWARD_WEIGHT} <= kinds


def test_trap_04_interleaved_with_one_chunk_is_not_1f1b():
    p, m = 8, 32
    plain, doubled = one_f_one_b(p, m), interleaved_1f1b(p, m, 1)
    assert plain.actions[:-1] != doubled.actions[:-1]
    assert plain.actions[-1] == doubled.actions[-1]
    assert timeline(plain).makespan == timeline(doubled).makespan
    assert peak_activations(plain)[0] == 8
    assert peak_activations(doubled)[0] == 15
    for rank in range(p):
        assert peak_activations(doubled)[rank] == 2 * (p - 1 - rank) + 1


def test_trap_22_the_bubble_is_there_on_an_infinitely_fast_network():
    p, m = 8, 32
    assert timeline(one_f_one_b(p, m), transfer=0).bubble_share == (p - 1) / (m + p - 1) > 0.17
    assert (
        timeline(one_f_one_b(1, m), transfer=100).bubble_time == 0
    )  # no dependency between stages, no bubble
    slower = [timeline(one_f_one_b(p, m), transfer=Fraction(k, 10)).bubble_time for k in range(4)]
    assert slower == sorted(set(slower))  # latency adds to it
