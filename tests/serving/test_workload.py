"""Workloads: distributions have the moments they say, readers read, malformed rows are named."""

import json
from bisect import bisect_left, bisect_right
from itertools import pairwise
from math import erfc, exp, fsum, log, sqrt
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


def longer_than(lengths, tokens):
    """Share of a distribution that is longer, from its definition."""
    match lengths:
        case Exponential():
            share = (1 - 1 / lengths.mean) ** tokens if tokens >= lengths.minimum else 1.0
        case LogNormal():
            share = erfc(log(tokens / lengths.median) / lengths.sigma / sqrt(2)) / 2 if tokens else 1.0
    return share if lengths.maximum is None or tokens < lengths.maximum else 0.0


@pytest.mark.parametrize(
    "lengths",
    [
        Exponential(1),
        Exponential(1.3),
        Exponential(500),
        Exponential(500, 100, 800),
        LogNormal(100, 0.01),
        LogNormal(0.3, 1.0),
        LogNormal(1000, 1.0, 1500),
        LogNormal(100, 3.0, 20_000),
        LogNormal(100, 9.0, 20_000),
    ],
)
def test_the_mean_is_the_sum_over_the_lengths_of_the_share_that_is_longer(lengths):
    assert mean(lengths) == pytest.approx(fsum(longer_than(lengths, n) for n in range(20_000)), rel=1e-3)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 4.0])
def test_the_mean_has_the_tail_in_it(sigma):
    """A log-normal's mean is the median times exp(sigma^2 / 2), and half a token for rounding up."""
    assert mean(LogNormal(100, sigma)) == pytest.approx(100 * exp(sigma**2 / 2) + 0.5, rel=1e-3)


@pytest.mark.parametrize("lengths", [Uniform(1, 2), Uniform(1, 1000), Uniform(5, 10**9)])
def test_the_mean_of_a_uniform_length_is_in_the_middle(lengths):
    assert mean(lengths) == pytest.approx((lengths.low + lengths.high) / 2, rel=1e-3)
    assert mean(Fixed(lengths.high)) == lengths.high


@pytest.mark.parametrize(
    "lengths",
    [
        *(lengths for traffic in TRAFFIC.values() for lengths in (traffic.prompt, traffic.output)),
        Quantiles(((0, 1000), (0.999999, 20_000), (1, 10**9))),
    ],
)
def test_the_mean_of_quantiles_by_pieces(lengths):
    """Between two quantiles the length is low * ratio^t, whose mean is low * (ratio - 1) / log(ratio)."""
    total = 0.0
    for (p, low), (q, high) in pairwise(lengths.points):
        total += (q - p) * (low if low == high else (high - low) / log(high / low))
    assert mean(lengths) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("points", [1, 10, 200_000])
def test_the_mean_asks_for_quantiles_below_1(points):
    asked = []

    class Constant:
        def quantile(self, probability):
            asked.append(probability)
            return 3

    assert mean(Constant(), points) == 3
    assert len(asked) == points and all(0 <= probability < 1 for probability in asked)


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
        (read_burstgpt, [*BURSTGPT, "nan,GPT-4,10,1,11,API log"], r"line 4: .*Timestamp=nan"),
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
            r"line 1: .*hash_ids=\['x'\]: must be a list of ints",
        ),
    ],
)
def test_a_malformed_row_is_an_error_with_its_line(reader, lines, message):
    with pytest.raises(ValueError, match=message):
        reader(lines)


def test_failed_requests_can_be_left_out():
    first_and_last = ["1,GPT-4,10,0,10,API log", "46,GPT-4,10,0,10,API log"]
    assert read_burstgpt([*BURSTGPT, *first_and_last], skip_failed=True) == read_burstgpt(BURSTGPT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,ChatGPT,3,0,3,API log", "line 4: .*'x'"),
        ("inf,ChatGPT,3,0,3,API log", "line 4: .*Timestamp=inf"),
        ("46,ChatGPT,-3,0,-3,API log", "line 4: .*Request tokens=-3"),
        ("46,ChatGPT,,0,0,API log", "line 4: .*Request tokens=''"),
        ("46,ChatGPT,1,374,0,374,API log", "line 4: .*as many fields"),
    ],
)
def test_a_failed_request_is_checked_before_it_is_left_out(row, message):
    with pytest.raises(ValueError, match=message):
        read_burstgpt([*BURSTGPT, row], skip_failed=True)


def test_a_thousands_comma_is_no_field():
    """A prompt of 1,374 tokens without quotes would be one of 1 token, with an answer of 374."""
    with pytest.raises(ValueError, match="line 4: '2023-11-16 18:15:51,1,374,44': must have as many fields"):
        read_azure([*AZURE, "2023-11-16 18:15:51,1,374,44"])
    with pytest.raises(ValueError, match=r"line 3: .*as many fields"):
        read_burstgpt([*BURSTGPT[:2], "45,GPT-4,1,087,230,1317,API log"])


@pytest.mark.parametrize(
    ("reader", "lines", "column"),
    [
        (read_azure, [AZURE[0] + ",ContextTokens", *(row + ",1" for row in AZURE[1:])], "ContextTokens"),
        (read_burstgpt, [BURSTGPT[0] + ",Model", *(row + ",GPT-4" for row in BURSTGPT[1:])], "Model"),
    ],
)
def test_a_column_is_there_once(reader, lines, column):
    with pytest.raises(ValueError, match=f"line 1: .*a column twice: {column}"):
        reader(lines)


def test_an_open_quote_swallows_no_rows():
    with pytest.raises(ValueError, match="line 3: unexpected end of data"):
        read_burstgpt([BURSTGPT[0], BURSTGPT[1].replace("Conv", '"Conv'), BURSTGPT[2]])


def azure(*rows):
    return [(r.arrival_s, r.prompt_tokens) for r in read_azure([AZURE[0], *rows])]


def test_offsets_from_utc_are_reckoned_with():
    """19:15:51 in Paris is a second after 18:15:50 in Greenwich."""
    rows = "2023-11-16 19:15:51+01:00,2,1", "2023-11-16T18:15:50Z,1,1", "2023-11-16 13:15:52-05:00,3,1"
    assert azure(*rows) == [(0.0, 1), (1.0, 2), (2.0, 3)]


@pytest.mark.parametrize("offsets", [("", "+00:00"), ("Z", "")])
def test_a_mix_of_times_with_and_without_offset_has_no_order(offsets):
    with pytest.raises(ValueError, match=r"line 3: .*UTC offset in every row or in none"):
        azure(*(f"2023-11-16 18:15:5{n}{offset},1,1" for n, offset in enumerate(offsets)))


@pytest.mark.parametrize("day", ["2023-11-16", " 2023-11-16", "20231116", "2023-W46-4"])
def test_a_date_is_no_time(day):
    with pytest.raises(ValueError, match=f"line 4: .*TIMESTAMP='{day}': must have a time"):
        read_azure([*AZURE, f"{day},10,5"])
    assert azure("2023-11-16 00:00:00,1,1", "2023-11-16 00:00:01,1,1")[1] == (1.0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": "3000"}, "timestamp='3000': must be a number"),
        ({"timestamp": [1]}, r"timestamp=\[1\]: must be a number"),
        ({"timestamp": True}, "timestamp=True: must be a number"),
        ({"timestamp": None}, "timestamp=None: must be a number"),
        ({"timestamp": float("inf")}, "timestamp=inf: must be finite"),
        ({"timestamp": 10**400}, "must be finite"),
        ({"hash_ids": [True]}, r"hash_ids=\[True\]: must be a list of ints"),
        ({"hash_ids": {}}, "hash_ids={}: must be a list of ints"),
        ({"hash_ids": ""}, "hash_ids='': must be a list of ints"),
        ({"input_length": True}, "prompt_tokens=True"),
        ({"output_length": "5"}, "output_tokens='5'"),
    ],
)
def test_a_field_of_another_type_is_an_error_with_its_line(change, message):
    row = {"timestamp": 1, "input_length": 10, "output_length": 5, "hash_ids": [0]} | change
    with pytest.raises(ValueError, match=f"line 3: .*{message}"):
        read_mooncake([*MOONCAKE, json.dumps(row)])


@pytest.mark.parametrize("row", ["[1, 2]", "3", "null"])
def test_a_line_that_is_no_object(row):
    with pytest.raises(ValueError, match=r"line 3: .*must be a JSON object"):
        read_mooncake([*MOONCAKE, row])


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
        (lambda: mean(Fixed(1), 0), "points=0"),
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
