"""Metrics by hand, intervals that cover, objectives."""

from math import pi, sqrt, tan
from random import Random
from statistics import quantiles

import pytest

from gpuedu.serving.metrics import (
    SLO,
    RequestLog,
    RequestRecord,
    batch_interval,
    goodput_per_gpu,
    percentile,
    slo_attainment,
    student_t,
    summarize,
)

NAN = float("nan")
SERIES = [float(n % 7) for n in range(700)]


def record(number, arrival, start, first, finish, output, gap=0.0):
    return RequestRecord(number, arrival, start, first, finish, 10, output, gap)


LOG = RequestLog(
    [
        record("a", 0.0, 0.5, 1.0, 3.0, 5, gap=0.8),
        record("b", 1.0, 1.0, 1.2, 1.2, 1),
        record("c", 2.0, 2.0, 2.5, 6.5, 9, gap=2.0),
    ]
)


def test_latencies_by_hand():
    assert list(LOG.ttft_s()) == pytest.approx([1.0, 0.2, 0.5])
    assert list(LOG.tpot_s()) == pytest.approx([0.5, 0.5])  # b has a single token
    assert list(LOG.latency_s()) == pytest.approx([3.0, 0.2, 4.5])
    summary = summarize(LOG)
    assert summary.duration_s == 6.5 and summary.requests_per_s == pytest.approx(3 / 6.5)
    assert summary.output_tokens_per_s == pytest.approx(15 / 6.5)
    assert summary.worst_gap.worst == 2.0 and summary.worst_gap.mean == pytest.approx(1.4)


def test_an_average_hides_a_stall():
    """Trap: two requests of one TPOT, of which one stood still for 2 s."""
    assert LOG[0].tpot_s == LOG[2].tpot_s and LOG[2].worst_gap_s > 2 * LOG[0].worst_gap_s


def test_objectives_by_hand():
    assert slo_attainment(LOG, SLO(ttft_s=0.6, tpot_s=1.0)) == pytest.approx(2 / 3)
    assert slo_attainment(LOG, SLO(ttft_s=0.6, tpot_s=0.4)) == pytest.approx(1 / 3)  # b keeps any TPOT
    assert goodput_per_gpu(LOG, SLO(0.6, 1.0), gpus=4) == pytest.approx(2 / 6.5 / 4)


def test_a_log_is_its_records():
    assert RequestLog(iter(LOG)) == LOG and len(LOG) == 3 and LOG[1].request_id == "b"
    assert RequestLog(list(LOG)[:2]) != LOG


def test_percentiles_agree_with_the_standard_library():
    random = Random(0)
    values = [random.expovariate(1) for _ in range(501)]
    theirs = quantiles(values, n=100, method="inclusive")
    assert [percentile(values, k / 100) for k in range(1, 100)] == pytest.approx(theirs)


def test_percentiles_of_values_without_end():
    inf = float("inf")
    assert [percentile([inf, 1.0, inf, 3.0], share) for share in (0, 1 / 3, 0.5, 1)] == [1.0, 3.0, inf, inf]


@pytest.mark.parametrize(("freedom", "error"), [(1, 0.12), (2, 0.008)])
def test_student_t_says_how_wrong_it_is_at_the_start(freedom, error):
    """Exact: at one degree of freedom the Cauchy distribution, at two z sqrt(2 / (1 - z^2)) of the share."""
    exact = {1: tan(pi * 0.95 / 2), 2: 0.95 * sqrt(2 / (1 - 0.95**2))}[freedom]
    assert (1 - error) * exact < student_t(0.95, freedom) < exact


@pytest.mark.parametrize(("freedom", "value"), [(9, 2.2622), (19, 2.0930), (29, 2.0452), (99, 1.9842)])
def test_student_t_as_tabulated(freedom, value):
    assert student_t(0.95, freedom) == pytest.approx(value, abs=2e-4)


def test_intervals_cover_as_often_as_they_say():
    """An autoregressive series of mean 0: 95 % intervals of batch means cover it about 95 times in 100."""
    covered = naive = 0
    for seed in range(200):
        random, value, series = Random(seed), 0.0, []
        for _ in range(2000):
            value = 0.9 * value + random.gauss(0, 1)
            series.append(value)
        interval = batch_interval(series)
        covered += interval.low <= 0 <= interval.high
        spread = 1.96 * (sum(x * x for x in series) / 2000 / 2000) ** 0.5
        naive += abs(interval.estimate) <= spread
    assert 175 <= covered <= 198
    assert naive < 130  # taking neighbors for independent is wrong


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: percentile([], 0.5), "values"),
        (lambda: percentile([1.0], 1.5), "share"),
        (lambda: percentile([1.0], NAN), "share=nan"),
        (lambda: percentile([1.0, NAN, 0.0], 0.5), "values: .*NaN"),
        (lambda: student_t(0.95, 0), "freedom=0"),
        (lambda: student_t(1.0, 9), "confidence=1.0"),
        (lambda: student_t(0.0, 9), "confidence=0.0"),
        (lambda: student_t(NAN, 9), "confidence=nan"),
        (lambda: batch_interval(SERIES, confidence=95), "confidence=95: must be below 1"),
        (lambda: batch_interval([*SERIES, NAN]), "values: must be finite, nan"),
        (lambda: batch_interval([*SERIES, float("-inf")]), "values: must be finite, -inf"),
        (lambda: summarize(RequestLog()), "at least one"),
        (lambda: slo_attainment(RequestLog(), SLO(1, 1)), "at least one"),
        (lambda: SLO(0.0, 1.0), "ttft_s"),
        (lambda: batch_interval([1.0] * 10), "at least 40"),
        (lambda: goodput_per_gpu(LOG, SLO(1, 1), 0), "gpus"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
