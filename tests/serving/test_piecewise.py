"""A step cost with knots, and the fits: by hand, at an optimum, through the simulator."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig
from gpuedu.hardware import GPUS
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.simulator import Replica, simulate
from gpuedu.serving.step_cost import (
    Iteration,
    PiecewiseStepCost,
    RooflineStepCost,
    fit_piecewise_step_cost,
    fit_step_cost,
)
from gpuedu.serving.step_cost.piecewise import SPACING, spaced
from gpuedu.serving.workload import Exponential, Poisson, Uniform, make_requests
from gpuedu.transformer import MODELS

COST = PiecewiseStepCost((2, 10, 110), (0.010, 0.018, 0.118), 0.001, 2e-5, 1e-7)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((1, 0, ()), 0.010 + 0.001),
        ((2, 0, ()), 0.010 + 0.002),
        ((6, 100, ()), 0.014 + 0.006 + 0.002),
        ((10, 0, ()), 0.018 + 0.010),
        ((0, 0, ((60, 0),)), 0.068 + 1e-7 * 1830),
        ((4, 50, ((30, 100), (26, 0))), 0.068 + 0.004 + 0.001 + 1e-7 * (3000 + 465 + 351)),
        ((0, 0, ((210, 0),)), 0.218 + 1e-7 * 22155),
    ],
)
def test_seconds_by_hand(batch, expected):
    assert COST.seconds(*batch) == pytest.approx(expected, rel=1e-12)


def test_beyond_the_last_knot_it_never_falls():
    falling = PiecewiseStepCost((1, 8, 64), (0.01, 0.05, 0.04))
    assert falling.seconds(0, 0, [(1000, 0)]) == 0.04
    assert PiecewiseStepCost((8,), (0.01,)).seconds(64, 0) == 0.01


@given(st.integers(1, 300), st.integers(0, 10**5))
def test_its_line_is_its_seconds(decodes, context):
    line = COST.line(decodes, context)
    assert line.intercept_s + line.slope_s * context == pytest.approx(COST.seconds(decodes, context))


def test_the_log_is_the_same_with_leaps():
    requests = make_requests(150, Poisson(3.0), Uniform(1, 300), Exponential(60))
    logs = [
        simulate(
            requests,
            [Replica(LeapingVLLMScheduler(SchedulerConfig(max_num_seqs=24), BlockCounter(60)), COST)],
            leap=leap,
        )
        for leap in (True, False)
    ]
    assert logs[0].requests == logs[1].requests and sum(logs[0].requests.preemptions) > 0


# Fits


def measured(truth, count=300, noise=0.0, seed=0):
    """Prompts, decoding, and both."""
    dice = Random(seed)
    rows = []
    for _ in range(count):
        decodes = dice.choice([0, 0, 1, 2, 3, 5, 8, 13, 24, 40])
        context = decodes * dice.randint(10, 800)
        chunks = ()
        if not decodes or dice.random() < 0.3:
            chunks = tuple((dice.randint(1, 400), dice.choice([0, 512])) for _ in range(dice.randint(1, 3)))
        seconds = truth.seconds(decodes, context, chunks) * dice.lognormvariate(-(noise**2) / 2, noise)
        rows.append(Iteration(seconds, decodes, context, chunks))
    return rows


def test_a_fit_finds_the_truth():
    truth = PiecewiseStepCost((1, 4, 16, 64, 1241), (0.02, 0.03, 0.035, 0.08, 1.4), 0.001, 2e-6, 4e-8)
    rows = measured(truth)
    most = max(row.decodes + row.new_tokens for row in rows)
    knots = (1, 4, 16, 64, most)
    fitted = fit_piecewise_step_cost(rows, knots)
    at_most = 0.08 + (most - 64) / (1241 - 64) * (1.4 - 0.08)
    assert fitted.knots_s == pytest.approx((0.02, 0.03, 0.035, 0.08, at_most), rel=1e-3)
    assert fitted.decode_s == pytest.approx(0.001, rel=0.01)
    assert fitted.context_s == pytest.approx(2e-6, rel=1e-3)
    assert fitted.pair_s == pytest.approx(4e-8, rel=0.01)


def test_a_machine_with_a_knee_is_told_better_than_by_a_line():
    """A roofline: level while weights are read, then rising; with 10 % of noise on every iteration."""
    roofline = RooflineStepCost(MODELS["llama-3-8b"], GPUS["A100-80GB"], overhead_s=0.002)
    rows = measured(roofline, noise=0.1)
    unseen = measured(roofline, seed=7)

    def median_error(cost):
        errors = sorted(abs(cost.seconds(*row[1:]) / row.seconds - 1) for row in unseen)
        return errors[len(errors) // 2]

    bent, straight = median_error(fit_piecewise_step_cost(rows)), median_error(fit_step_cost(rows))
    assert bent < 0.03
    assert straight > 3 * bent


def test_knots_that_the_rows_leave_open_stay_between_their_neighbors():
    """Three numbers of tokens, four knots: any time between is as good, and no other."""
    rows = [Iteration(seconds, tokens, 0) for tokens, seconds in ((1, 0.01), (10, 0.02), (64, 0.05))] * 3
    fitted = fit_piecewise_step_cost(rows, (1, 8, 20, 64))
    assert list(fitted.knots_s) == sorted(fitted.knots_s) and fitted.knots_s[0] > 0.005
    assert fitted.seconds(1, 0) == pytest.approx(0.01, rel=0.01)
    assert fitted.seconds(10, 0) == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_noise_makes_no_time_fall(seed):
    """Few iterations, much noise: no knot is fitted to a stray one alone."""
    rows = measured(PiecewiseStepCost((1, 64), (0.02, 0.05)), 40, noise=0.4, seed=seed)
    fitted = fit_piecewise_step_cost(rows)
    assert list(fitted.knots_s) == sorted(fitted.knots_s)
    assert fitted.seconds(1, 0) > 0.004


def test_a_wild_scatter_settles_or_is_said(monkeypatch):
    """Times that vary by as much as they are long: these rows swing for ever without inertia."""
    truth = PiecewiseStepCost((1, 64, 1200), (0.02, 0.05, 1.4), 0.001, 2e-6, 4e-8)
    rows = measured(truth, 300, noise=1.0, seed=14)
    fitted = fit_piecewise_step_cost(rows)
    assert fitted.seconds(8, 2000) == pytest.approx(truth.seconds(8, 2000), rel=0.5)
    monkeypatch.setattr("gpuedu.serving.step_cost.least_squares.INERTIA", 0.0)
    with pytest.raises(ValueError, match="weights do not settle"):
        fit_piecewise_step_cost(rows)


@given(st.lists(st.integers(1, 64), min_size=5, max_size=12))
def test_any_five_iterations_can_be_fitted(tokens):
    rows = [Iteration(0.01 * (n + 1), n, 10 * n) for n in tokens]
    assert len(fit_piecewise_step_cost(rows).knots) <= len(rows) - 3


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_knots_are_numbers_that_were_measured(tokens):
    knots = spaced(tokens)
    assert set(knots) <= set(tokens)
    assert (knots[0], knots[-1]) == (min(tokens), max(tokens))
    assert all(later > before for before, later in pairwise(knots))
    assert all(later >= SPACING * before for before, later in pairwise(knots[:-1]))
    for most in range(2, 6):
        fewer = spaced(tokens, most)
        assert len(fewer) <= most and set(fewer) <= set(tokens)
        assert (fewer[0], fewer[-1]) == (min(tokens), max(tokens))


ROWS = [Iteration(0.01 * n, n, 10 * n) for n in (1, 2, 4, 8)] + [Iteration(0.1, 0, 0, ((64, 0),))] * 4


@pytest.mark.parametrize(
    ("rows", "knots", "match"),
    [
        (ROWS[:4], None, "4 iterations, must be at least 5"),
        (ROWS[:7], (1, 2, 4, 8, 64), "7 iterations, must be at least 8"),
        (ROWS, (1, 8, 8, 64), "must rise"),
        (ROWS, (2, 8, 64), "must reach from 1 to 64"),
        (ROWS, (1, 8, 32), "must reach from 1 to 64"),
        (ROWS, (1, 8, 20, 30, 64), "nothing was measured beside 20 tokens"),
        (ROWS, (), "knots: must be at least one"),
        ([*ROWS, Iteration(0.0, 1, 10)], None, "seconds=0.0"),
        ([*ROWS, Iteration(0.1, 0, 0)], None, "must hold a token"),
        ([*ROWS, Iteration(0.1, -1, 0, ((5, 0),))], None, "decodes=-1"),
        ([*ROWS, Iteration(0.1, 1, -9)], None, "context_tokens=-9"),
        ([*ROWS, Iteration(0.1, 1, 9, ((-1, 0),))], None, "new tokens=-1"),
    ],
)
def test_a_fit_that_cannot_be(rows, knots, match):
    with pytest.raises(ValueError, match=match):
        fit_piecewise_step_cost(rows, knots)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (((1, 8), (0.1,)), "1 times, must be one for each of 2"),
        (((8, 1), (0.1, 0.1)), "must rise"),
        (((0, 1), (0.1, 0.1)), "knots=0"),
        (((1, 8), (0.1, -0.1)), "knots_s=-0.1"),
        (((1, 8), (0.1, 0.1), -1.0), "decode_s=-1.0"),
    ],
)
def test_a_cost_that_cannot_be(fields, match):
    with pytest.raises(ValueError, match=match):
        PiecewiseStepCost(*fields)
