"""The simulation against an independent one, the formulas against the simulation, and what both must obey."""

import graphlib
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.pipeline_parallel.cost import (
    boundary_bytes,
    bubble_ratio,
    bubble_share,
    gpipe_makespan,
    gpipe_peak_activations,
    interleaved_makespan,
    interleaved_peak_activations,
    memory_over_time,
    naive_makespan,
    one_f_one_b_makespan,
    one_f_one_b_peak_activations,
    peak_activations,
    sends,
    tensor_parallel_bytes,
    timeline,
    zb_h1_peak_activations,
    zb_h1_span_bubble,
    zb_h2_peak_activations,
    zb_h2_span_bubble,
    zb_v_peak_activations,
)
from gpuedu.pipeline_parallel.plan import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Placement,
    dualpipe_v,
    gpipe,
    interleaved_1f1b,
    naive,
    one_f_one_b,
    zb_h1,
    zb_h2,
    zb_v,
)

SHAPES = [(1, Placement.LOOP), (2, Placement.LOOP), (3, Placement.LOOP), (2, Placement.V)]
duration = st.fractions(min_value=Fraction(1, 8), max_value=6, max_denominator=8)
delay = st.fractions(min_value=0, max_value=6, max_denominator=8)


def longest_path(schedule, inputs_of, forward, backward_input, backward_weight, transfer):
    """End of every action: the longest path to it through data flow and the ranks' orders."""
    graph = {action: dict.fromkeys(inputs, 0) for action, inputs in inputs_of(schedule).items()}
    for action, inputs in graph.items():
        for source in inputs:
            inputs[source] = transfer if source.stage != action.stage else 0
    for actions in schedule.actions:
        for before, action in pairwise(actions):
            graph[action].setdefault(before, 0)
    ends = {}
    for action in graphlib.TopologicalSorter(graph).static_order():
        rank = action.stage
        time = {
            FORWARD: forward[rank],
            BACKWARD_INPUT: backward_input[rank],
            BACKWARD_WEIGHT: backward_weight[rank],
            FULL_BACKWARD: backward_input[rank] + backward_weight[rank],
        }[action.kind]
        ready = max((ends[source] + lag for source, lag in graph[action].items()), default=0)
        ends[action] = ready + Fraction(time) / schedule.chunks
    return ends


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.sampled_from(SHAPES), delay, st.data())
def test_timeline_is_the_longest_path_on_any_schedule(inputs_of, random_order, seed, p, m, shape, c, data):
    schedule = random_order(seed, p, m, *shape)
    per_rank = st.lists(duration, min_size=p, max_size=p)
    times = [data.draw(per_rank, label=name) for name in ("forward", "backward_input", "backward_weight")]
    priced = timeline(
        schedule, forward=times[0], backward_input=times[1], backward_weight=times[2], transfer=c
    )
    expected = longest_path(schedule, inputs_of, *times, c)
    assert {span.action: span.end for span in priced.spans} == expected
    assert priced.makespan == max(expected.values())
    assert priced.busy == tuple(
        sum(span.end - span.start for span in priced.spans if span.rank == rank) for rank in range(p)
    )


# Formulas -----------------------------------------------------------------------------------------

GRID = list(product((1, 2, 3, 4, 8), (1, 2, 3, 7, 8, 24)))
TIMES = [(1, 1, 1), (1, 2, 0), (2, 1, 3), (Fraction(7, 3), Fraction(1, 2), 1)]


def priced(schedule, times, transfer=0):
    forward, i, w = map(Fraction, times)
    return timeline(schedule, forward=forward, backward_input=i, backward_weight=w, transfer=transfer)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("transfer", [0, Fraction(1, 10), 1, 5])
def test_makespan_formulas(times, transfer):
    price = {"forward": times[0], "backward": times[1] + times[2], "transfer": transfer}
    for p, m in GRID:
        for make, formula in (
            (naive, naive_makespan),
            (gpipe, gpipe_makespan),
            (one_f_one_b, one_f_one_b_makespan),
        ):
            assert priced(make(p, m), times, transfer).makespan == formula(p, m, **price), (make, p, m)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("share_of_limit", [0, Fraction(1, 10), 1])
def test_interleaved_makespan_formula(times, share_of_limit):
    forward, backward = Fraction(times[0]), Fraction(times[1] + times[2])
    for p, v, groups in product((1, 2, 3, 4, 8), (1, 2, 3), (1, 2, 5)):
        m = p * groups
        c = share_of_limit * min(forward, backward) / v
        formula = interleaved_makespan(p, m, v, forward=forward, backward=backward, transfer=c)
        assert priced(interleaved_1f1b(p, m, v), times, c).makespan == formula, (p, m, v)


def test_interleaved_formula_refuses_what_it_does_not_cover():
    with pytest.raises(ValueError, match=r"transfer=0\.6: the formula holds up to .* = 0\.5"):
        interleaved_makespan(4, 8, 2, transfer=0.6)
    with pytest.raises(ValueError, match="microbatches=6: must be a multiple of stages=4"):
        interleaved_makespan(4, 6, 2)
    beyond = timeline(interleaved_1f1b(4, 16, 2), backward_input=2, backward_weight=0, transfer=1)
    assert beyond.makespan > (16 + 3 / 2) * 3 + 2 * 7 * 1  # what the formula would say


@pytest.mark.parametrize("times", TIMES)
def test_bubble_formulas(times):
    for p, m in GRID:
        schedules = [(1, gpipe(p, m)), (1, one_f_one_b(p, m))]
        schedules += [(v, interleaved_1f1b(p, m, v)) for v in (1, 2, 3) if m % p == 0]
        for v, schedule in schedules:
            t = priced(schedule, times)
            assert float(t.bubble_ratio) == pytest.approx(bubble_ratio(p, m, v), rel=1e-12)
            assert float(t.bubble_share) == pytest.approx(bubble_share(p, m, v), rel=1e-12)
            assert t.bubble_time == Fraction(p - 1, v) * sum(map(Fraction, times))


@pytest.mark.parametrize("times", [*TIMES, (1, 1, 2), (2, 3, 2), (3, 2, 2), (1, 3, 3), (4, 1, 1)])
def test_zero_bubble_formulas(times):
    forward, i, w = map(Fraction, times)
    price = {"forward": forward, "backward_input": i, "backward_weight": w}
    for p, m in GRID:
        if m >= p:
            formula = zb_h1_span_bubble(p, **price)
            assert priced(zb_h1(p, m), times).span_bubble_time == formula
            if w <= forward:  # the paper's own form
                assert formula == (p - 1) * (forward + i - w)
        if m >= 2 * p - 1:
            formula = zb_h2_span_bubble(p, **price)
            assert priced(zb_h2(p, m), times).span_bubble_time == formula
            if w <= forward and forward + i >= 2 * w:
                assert formula == (p - 1) * (forward + i - 2 * w)


def test_peak_activation_formulas():
    for p, m in GRID:
        assert peak_activations(naive(p, m)) == (1,) * p
        assert peak_activations(gpipe(p, m)) == gpipe_peak_activations(p, m)
        assert peak_activations(one_f_one_b(p, m)) == one_f_one_b_peak_activations(p, m)
        assert peak_activations(zb_h1(p, m)) == zb_h1_peak_activations(p, m)
        assert peak_activations(zb_h2(p, m)) == zb_h2_peak_activations(p, m)
        if m >= 2 * p - 1:
            assert peak_activations(zb_v(p, m)) == zb_v_peak_activations(p)
        if m % p == 0:
            for v in (1, 2, 3):
                formula = interleaved_peak_activations(p, m, v)
                assert peak_activations(interleaved_1f1b(p, m, v)) == formula
                if m >= 2 * p:  # as Megatron-LM's papers put it
                    assert formula[0] == pytest.approx(p * (1 + (p - 1) / (p * v)))


def test_the_zero_bubble_table():
    # README of sail-sg/zero-bubble-pipeline-parallelism, for F = I = W: bubble relative to 1F1B's (in the
    # span of a rank) and activation memory relative to 1F1B's.
    p, m = 8, 32
    reference = timeline(one_f_one_b(p, m))
    memory = max(peak_activations(one_f_one_b(p, m)))
    table = {zb_h1: (Fraction(1, 3), 1), zb_h2: (0, Fraction(2 * p - 1, p)), zb_v: (0, 1)}
    for make, (bubble, relative_memory) in table.items():
        t = timeline(make(p, m), forward=2, backward_input=2, backward_weight=2)
        assert t.span_bubble_time == bubble * 2 * reference.span_bubble_time
        assert max(peak_activations(make(p, m))) == relative_memory * memory


def test_dualpipe_v_holds_one_chunk_more_than_the_stages():
    # DualPipe's README: activations PP + 1, where PP counts the chunks along the pipeline: here 2p, each
    # half a stage.
    for p in (1, 2, 4, 8):
        assert max(peak_activations(dualpipe_v(p, 4 * p))) == Fraction(2 * p + 1, 2)


# What must hold for any times ---------------------------------------------------------------------

MAKERS = [naive, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v, dualpipe_v, lambda p, m: interleaved_1f1b(p, m, 2)]
makers = st.sampled_from(MAKERS)
prices = st.fixed_dictionaries(
    {"forward": duration, "backward_input": duration, "backward_weight": duration, "transfer": delay}
)


@given(makers, st.integers(1, 5), st.integers(2, 4), prices)
def test_no_input_is_used_before_it_is_there(inputs_of, make, p, groups, price):
    schedule = make(p, p * groups)
    spans = {span.action: span for span in timeline(schedule, **price).spans}
    for action, inputs in inputs_of(schedule).items():
        for source in inputs:
            lag = price["transfer"] if source.stage != action.stage else 0
            assert spans[action].start >= spans[source].end + lag
    for actions in schedule.actions:
        assert all(spans[after].start >= spans[before].end for before, after in pairwise(actions))


@given(
    makers, st.integers(1, 5), st.integers(2, 4), prices, st.sampled_from(["forward", "transfer"]), duration
)
def test_makespan_grows_with_each_time(make, p, groups, price, name, more):
    schedule = make(p, p * groups)
    slower = price | {name: price[name] + more}
    assert timeline(schedule, **price).makespan <= timeline(schedule, **slower).makespan


@given(makers, st.integers(1, 5), st.integers(2, 4), prices)
def test_makespan_of_a_fixed_order_grows_with_its_microbatches(make, p, groups, price):
    schedule, m = make(p, p * groups), p * groups
    makespans = []
    for kept in range(1, m + 1):
        actions = tuple(tuple(a for a in rank if a.microbatch < kept) for rank in schedule.actions)
        makespans.append(timeline(replace(schedule, microbatches=kept, actions=actions), **price).makespan)
    assert makespans == sorted(makespans)


@given(makers, st.integers(1, 5), st.integers(2, 4), prices)
def test_no_schedule_beats_the_work_or_the_way(make, p, groups, price):
    schedule, m = make(p, p * groups), p * groups
    t = timeline(schedule, **price)
    f, i, w, c = (price[name] for name in ("forward", "backward_input", "backward_weight", "transfer"))
    hops = sum(1 for a, b in pairwise(range(schedule.depth)) if schedule.home(a)[0] != schedule.home(b)[0])
    one_microbatch = p * (f + i) + 2 * hops * c  # its last weight gradients may run beside its way up
    assert t.makespan >= max(m * (f + i + w), one_microbatch)
    assert t.busy == (m * (f + i + w),) * p
    assert t.bubble_time >= t.span_bubble_time >= 0


@given(makers, st.integers(1, 5), st.integers(2, 4), prices)
def test_memory_over_time_peaks_at_peak_activations_and_ends_empty(make, p, groups, price):
    schedule = make(p, p * groups)
    for curve, peak in zip(
        memory_over_time(timeline(schedule, **price)), peak_activations(schedule), strict=True
    ):
        times = [time for time, _ in curve]
        assert times == sorted(set(times))
        assert max(held for _, held in curve) == peak
        assert curve[-1][1] == 0
        assert all(held >= 0 for _, held in curve)


# Units and exactness ------------------------------------------------------------------------------


def test_chunks_divide_the_time_of_a_stage():
    whole = timeline(one_f_one_b(4, 8), forward=6, backward_input=6, backward_weight=6)
    for v in (1, 2, 3):
        t = timeline(interleaved_1f1b(4, 8, v), forward=6, backward_input=6, backward_weight=6)
        assert t.busy == whole.busy
        assert all(isinstance(end, int) for ends in t.ends for end in ends)
    thirds = timeline(interleaved_1f1b(2, 2, 3), forward=Fraction(1), backward_input=Fraction(1))
    assert thirds.ends[0][0] == Fraction(1, 3)
    assert timeline(interleaved_1f1b(2, 2, 2)).ends[0][0] == 0.5


def test_uneven_stages_wait_for_the_slowest():
    even = timeline(one_f_one_b(4, 16), forward=1, backward_input=1, backward_weight=1)
    uneven = timeline(
        one_f_one_b(4, 16), forward=(1, 1, 1, 2), backward_input=(1, 1, 1, 2), backward_weight=(1, 1, 1, 2)
    )
    assert uneven.busy == (48, 48, 48, 96)
    assert uneven.makespan >= 96 > even.makespan == 57
    assert uneven.bubble_time == uneven.makespan - 96


def test_the_turn_of_a_v_costs_no_transfer():
    c = 10
    t = timeline(zb_v(2, 1), forward=2, backward_input=2, backward_weight=2, transfer=c)
    first = {(s.rank, s.action.kind, s.action.chunk): s for s in t.spans}
    assert first[1, FORWARD, 0].start == 1 + c
    assert first[1, FORWARD, 1].start == first[1, FORWARD, 0].end
    assert first[0, FORWARD, 1].start == first[1, FORWARD, 1].end + c
    assert first[0, BACKWARD_INPUT, 1].start == first[0, FORWARD, 1].end


def test_weight_gradients_hold_nobody_up():
    # I of rank 0 waits for I of rank 1 only: a longer W on the last rank leaves rank 0's times alone.
    short = timeline(zb_h1(2, 4), backward_weight=(1, 1))
    long = timeline(zb_h1(2, 4), backward_weight=(1, Fraction(11, 10)))
    assert short.ends[0][:4] == long.ends[0][:4]
    fused = timeline(one_f_one_b(2, 1), backward_weight=(0, 5))
    split = timeline(zb_h1(2, 1), backward_weight=(0, 5))
    assert fused.makespan == 1 + 1 + (1 + 5) + 1
    assert split.makespan == 1 + 1 + max(1 + 5, 1 + 1)  # rank 0's I runs beside rank 1's W


def test_traffic():
    s, b, h = 2048, 1, 12288
    one_activation = s * b * h * 2
    assert boundary_bytes(s, b, h) == 2 * one_activation
    assert boundary_bytes(s, b, h, dtype_bytes=4) == 4 * one_activation
    assert tensor_parallel_bytes(1, 1, s, b, h) == 0
    assert tensor_parallel_bytes(1, 2, s, b, h) == 4 * one_activation
    assert tensor_parallel_bytes(12, 8, s, b, h) == 84 * one_activation


@pytest.mark.parametrize("schedule", [make(4, 8) for make in MAKERS])
def test_sends_counts_the_edges_between_ranks(schedule, inputs_of):
    sent = [0] * schedule.stages
    for action, inputs in inputs_of(schedule).items():
        for source in inputs:
            sent[source.stage] += source.stage != action.stage
    assert sends(schedule) == tuple(sent)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "error", "message"),
    [
        ({"forward": 0}, ValueError, "forward=0: must be above 0"),
        ({"forward": -1}, ValueError, "forward=-1: must be finite and not negative"),
        ({"backward_weight": math.inf}, ValueError, "backward_weight=inf: must be finite"),
        ({"transfer": math.nan}, ValueError, "transfer=nan: must be finite"),
        ({"transfer": "1"}, TypeError, "transfer='1': must be a number"),
        ({"backward_input": "1111"}, TypeError, "backward_input='1111': must be a number"),
        ({"forward": (1, 1)}, ValueError, "forward has 2 times: must be one number or 4, one per rank"),
        ({"forward": (1, 1, 0, 1)}, ValueError, "forward=0: must be above 0"),
        ({"forward": True}, TypeError, "forward=True: must be a number"),
    ],
)
def test_times_are_checked(price, error, message):
    with pytest.raises(error, match=message):
        timeline(one_f_one_b(4, 4), **price)


def test_formulas_check_their_input():
    with pytest.raises(ValueError, match="stages=0: must be at least 1"):
        bubble_ratio(0, 4)
    with pytest.raises(ValueError, match="chunks=0: must be at least 1"):
        bubble_share(2, 4, 0)
    with pytest.raises(TypeError, match=r"microbatches=1\.5: must be an int"):
        gpipe_makespan(2, 1.5)
    with pytest.raises(ValueError, match="backward=-2: must be finite and not negative"):
        one_f_one_b_makespan(2, 4, backward=-2)
    with pytest.raises(ValueError, match="microbatches=0: must be at least 1"):
        zb_h1_peak_activations(2, 0)
    with pytest.raises(ValueError, match="hidden_size=0: must be at least 1"):
        boundary_bytes(1, 1, 0)
    with pytest.raises(ValueError, match="tensor_parallel=0: must be at least 1"):
        tensor_parallel_bytes(1, 0, 1, 1, 1)
