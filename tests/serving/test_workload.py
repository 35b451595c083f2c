"""Workloads: distributions have the moments they say, readers read, malformed rows are named."""

import json
from bisect import bisect_left, bisect_right
from itertools import pairwise
from random import Random
from statistics import fmean, pstdev

import pytest

from gpuedu.serving.workload import (
    TRAFFIC,
    AllAtOnce,
    ClosedLoop,
    Deterministic,
    Exponential,
    Fixed,
    Gamma,
    LogNormal,
    Poisson,
    Quantiles,
    Request,
    Uniform,
    draw,
    make_requests,
    mean,
    offered_load,
    read_azure,
    read_burstgpt,
    read_mooncake,
)


@pytest.mark.parametrize(
    ("arrivals", "cv"), [(Poisson(4.0), 1), (Gamma(4.0, 3.0), 3), (Deterministic(4.0), 0)]
)
def test_times_between_arrivals(arrivals, cv):
    requests = make_requests(40_000, arrivals, Fixed(1), Fixed(1), seed=3)
    times = [request.arrival_s for request in requests]
    gaps = [b - a for a, b in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (Fixed(7), 7),
        (Uniform(3, 9), 6),
        (Exponential(50), 50),
        (Exponential(1), 1),
        (LogNormal(100, 0.5), 100 * 2.718281828 ** (0.5**2 / 2) + 0.5),  # rounded up
    ],
)
def test_mean_lengths(lengths, expected):
    random = Random(0)
    assert fmean(draw(lengths, random) for _ in range(40_000)) == pytest.approx(expected, rel=0.02)
    assert mean(lengths) == pytest.approx(expected, rel=0.02)


def test_exponential_has_no_memory():
    """Every token is the last with the same probability."""
    random = Random(1)
    lengths = [draw(Exponential(20), random) for _ in range(200_000)]
    for tokens in (1, 5, 30):
        alive = sum(length >= tokens for length in lengths)
        assert sum(length == tokens for length in lengths) / alive == pytest.approx(1 / 20, rel=0.1)


@pytest.mark.parametrize("lengths", [Uniform(2, 50), Exponential(64, 8, 256), LogNormal(80, 1.0, 1000)])
def test_quantiles_increase_within_the_limits(lengths):
    values = [lengths.quantile(i / 1000) for i in range(1000)]
    assert values == sorted(values) and values[0] >= 1
    assert values[-1] <= {Uniform: 50, Exponential: 256, LogNormal: 1000}[type(lengths)]


@pytest.mark.parametrize("name", TRAFFIC)
def test_published_quantiles_come_back(name):
    """Drawn lengths have the quantiles that were published."""
    random = Random(2)
    for lengths in (TRAFFIC[name].prompt, TRAFFIC[name].output):
        drawn = sorted(draw(lengths, random) for _ in range(20_000))
        for probability, tokens in lengths.points[3:8]:
            assert bisect_left(drawn, tokens) / 20_000 < probability + 0.012
            assert bisect_right(drawn, tokens) / 20_000 > probability - 0.012
            assert lengths.quantile(probability) == tokens


def test_azure_conversation_is_as_described():
    """5.53 requests a second for 58 minutes are 19,366 within half a percent."""
    traffic = TRAFFIC["azure_conversation"]
    assert traffic.rate * 58 * 60 == pytest.approx(19_366, rel=0.01)
    requests = make_requests(5000, Gamma(traffic.rate, traffic.cv), traffic.prompt, traffic.output)
    assert offered_load(requests)[0] == pytest.approx(5.53, rel=0.05)


def test_another_rate_meets_the_same_lengths():
    slow, fast = (make_requests(50, Poisson(rate), Uniform(1, 99), Uniform(1, 99)) for rate in (1.0, 9.0))
    assert [(r.prompt_tokens, r.output_tokens) for r in slow] == [
        (r.prompt_tokens, r.output_tokens) for r in fast
    ]
    assert slow[-1].arrival_s == pytest.approx(9 * fast[-1].arrival_s)


# Traces

AZURE = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
]
BURSTGPT = [
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "5,ChatGPT,472,18,490,Conversation log",
    "45,GPT-4,1087,230,1317,API log",
]
MOONCAKE = [
    json.dumps({"timestamp": 3000, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}),
    json.dumps({"timestamp": 6000, "input_length": 1024, "output_length": 490, "hash_ids": [0, 14]}),
]


def test_traces_are_read(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(AZURE) + "\n")
    assert read_azure(path) == read_azure(AZURE)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_azure(path)] == [
        (0.0, 374, 44),
        (4.314579, 396, 109),
    ]
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_burstgpt(BURSTGPT)] == [
        (0.0, 472, 18),
        (40.0, 1087, 230),
    ]
    assert [(r.arrival_s, r.hash_ids) for r in read_mooncake(MOONCAKE)] == [(0.0, (0, 1, 2)), (3.0, (0, 14))]


def test_rows_out_of_order_are_sorted():
    assert [r.prompt_tokens for r in read_azure([AZURE[0], AZURE[2], AZURE[1]])] == [374, 396]


@pytest.mark.parametrize(
    ("reader", "lines", "message"),
    [
        (read_azure, [*AZURE, "2023-11-16 18:15:51,abc,5"], r"line 4: .*'abc'"),
        (read_azure, [*AZURE, "yesterday,10,5"], r"line 4: .*yesterday"),
        (read_azure, [*AZURE, "2023-11-16 18:15:51,10"], r"line 4"),
        (read_azure, [*AZURE, "2023-11-16 18:15:51,-3,5"], r"line 4: .*prompt_tokens=-3"),
        (read_azure, [*AZURE, "2023-11-16 18:15:51,3,0"], r"line 4: .*output_tokens=0"),
        (
            read_azure,
            ["TIMESTAMP,Context,Generated", *AZURE[1:]],
            "line 1: .*ContextTokens, Generated",
        ),
        (read_azure, AZURE[:1], "has no requests"),
        (read_burstgpt, [*BURSTGPT, "46,GPT-4,10,0,10,API log"], r"line 4: .*output_tokens=0"),
        (read_burstgpt, [*BURSTGPT, "nan,GPT-4,10,1,11,API log"], r"line 4: timestamp"),
        (read_mooncake, [MOONCAKE[0].replace("1100", "9000")], r"line 1: .*3 hash_ids, must be one for"),
        (read_mooncake, [*MOONCAKE, "{"], "line 3"),
        (read_mooncake, [*MOONCAKE, '{"timestamp": 1}'], r"line 3: .*is missing"),
        (
            read_mooncake,
            [*MOONCAKE, '{"timestamp": 1, "input_length": 1.5, "output_length": 1, "hash_ids": []}'],
            r"line 3: .*must be ints",
        ),
        (
            read_mooncake,
            ['{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["x"]}'],
            r"line 1: .*hash_ids must be ints",
        ),
    ],
)
def test_a_malformed_row_is_an_error_with_its_line(reader, lines, message):
    with pytest.raises(ValueError, match=message):
        reader(lines)


def test_failed_requests_can_be_left_out():
    assert len(read_burstgpt([*BURSTGPT, "46,GPT-4,10,0,10,API log"], skip_failed=True)) == 2


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(0, 0.0, 0, 1), "prompt_tokens=0"),
        (lambda: Request(0, 0.0, 1, -4), "output_tokens=-4"),
        (lambda: Request(0, -1.0, 1, 1), "arrival_s"),
        (lambda: Request(0, float("nan"), 1, 1), "arrival_s"),
        (lambda: Poisson(0.0), "rate"),
        (lambda: Gamma(1.0, -1.0), "cv"),
        (lambda: Deterministic(float("inf")), "rate"),
        (lambda: ClosedLoop(0), "users"),
        (lambda: Uniform(5, 4), "high"),
        (lambda: Exponential(0.5), "mean"),
        (lambda: LogNormal(10, 0.0), "sigma"),
        (lambda: Quantiles(((0, 1),)), "points"),
        (lambda: Quantiles(((0, 5), (1, 4))), "must increase"),
        (lambda: Quantiles(((0, 0), (1, 4))), "at least 1"),
        (lambda: make_requests(0, AllAtOnce(), Fixed(1), Fixed(1)), "count"),
        (lambda: offered_load(make_requests(5, AllAtOnce(), Fixed(1), Fixed(1))), "two times"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lengths_are_whole_numbers():
    with pytest.raises(TypeError, match="must be ints"):
        Request(0, 0.0, 1.5, 1)
