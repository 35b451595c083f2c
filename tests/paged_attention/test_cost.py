"""Prices: each closed form against a count, a simulation, or a published figure."""

import random
import statistics
from fractions import Fraction

import pytest

from gpuedu.paged_attention.cost import (
    SCHEMES,
    MemoryUse,
    average,
    beams_by_prefix,
    decode,
    occupancy,
    parallel_sampling_blocks,
    random_beams,
    reserved_to_the_maximum,
    sharegpt_like,
    table_bytes,
    tail_share,
    tail_slots,
    two_beams_saving,
)
from gpuedu.paged_attention.plan import power_of_two
from gpuedu.serving.workload import AllAtOnce, Poisson, Request, Uniform, make_requests
from gpuedu.transformer import MODELS

# Kwon et al. 2023, Figure 2: OPT-13B on one A100, shares of the KV cache in percent
FIGURE_2 = {
    "max": {"tokens": 20.4, "reserved": 13.3, "internal": 57.3, "external": 8.9},
    "pow2": {"tokens": 26.8, "reserved": 17.9, "internal": 13.6, "external": 41.6},
    "oracle": {"tokens": 38.2, "reserved": 25.2, "internal": 0.0, "external": 36.6},
}
CAPACITY = int(12 * 2**30 / MODELS["opt-13b"].kv_cache_bytes_per_token())


@pytest.fixture(name="figure_2", scope="module")
def figure_2_fixture():
    """Mean shares of each scheme while a request waits, in percent."""
    requests = sharegpt_like(2000)
    shares = {}
    for scheme in SCHEMES:
        result = occupancy(requests, scheme, capacity=CAPACITY)
        shares[scheme] = {part: 100 * share for part, share in average(result.while_full).items()}
    return shares


def test_trap_12_the_papers_gigabytes_are_gibibytes():
    # Its Table 1: 12 "GB" for the KV cache, 15.7 K slots
    assert round(CAPACITY / 1000, 1) == 15.7
    assert round(12e9 / MODELS["opt-13b"].kv_cache_bytes_per_token() / 1000, 1) == 14.6


@pytest.mark.parametrize("scheme", FIGURE_2)
def test_figure_2_in_rough_size(figure_2, scheme):
    for part, published in FIGURE_2[scheme].items():
        assert figure_2[scheme][part] == pytest.approx(published, abs=5.5), part


def test_figure_2_in_order(figure_2):
    useful = [figure_2[scheme]["tokens"] for scheme in SCHEMES]
    assert useful == sorted(useful) and useful[-1] > 95
    for part in FIGURE_2["max"]:
        orders = [sorted(FIGURE_2, key=lambda scheme: bars[scheme][part]) for bars in (FIGURE_2, figure_2)]
        assert orders[0] == orders[1], part


def test_the_closed_form_is_the_simulated_maximum(figure_2):
    lengths = [(r.prompt_tokens, r.output_tokens) for r in sharegpt_like(2000)]
    for part, share in reserved_to_the_maximum(lengths, CAPACITY, 2048).items():
        assert figure_2["max"][part] == pytest.approx(100 * float(share), abs=0.5)


def test_reserved_to_the_maximum_counted_by_hand():
    # One request at a time, prompt 2, output 3, six slots of seven reserved: 3, 4, then 5 tokens held
    shares = reserved_to_the_maximum([(2, 3)], 7, 6)
    assert shares == {
        "tokens": Fraction(4, 7), "reserved": Fraction(1, 7), "internal": Fraction(1, 7),
        "external": Fraction(1, 7),
    }  # fmt: skip


@pytest.mark.parametrize("prompt", [1, 2, 4])
@pytest.mark.parametrize("output", [1, 3, 4])
@pytest.mark.parametrize("capacity", [8, 16, 27])
def test_the_closed_form_is_exact_where_lengths_are_equal(prompt, output, capacity):
    pieces = capacity // 8
    requests = [Request(i, 0.0, prompt, output) for i in range(5 * pieces + 1)]
    uses = occupancy(requests, "max", capacity=capacity, longest=8).while_full
    assert len(uses) == 5 * output
    for part, share in reserved_to_the_maximum([(prompt, output)], capacity, 8).items():
        assert Fraction(sum(getattr(use, part) for use in uses), capacity * len(uses)) == share


def test_what_just_fits_is_served():
    request = Request(0, 0.0, 10, 6)
    assert [use.tokens for use in occupancy([request], "paged", capacity=16).uses] == [*range(11, 17)]
    with pytest.raises(ValueError, match="longer than the cache"):
        occupancy([Request(0, 0.0, 10, 7)], "paged", capacity=16)


# Occupancy


def test_what_is_held_step_by_step():
    requests = [Request(0, 0.0, 3, 2), Request(1, 0.0, 5, 4)]
    result = occupancy(requests, "paged", capacity=16, block_size=4, watermark=0)
    assert [(u.tokens, u.internal, u.external) for u in result.uses] == [
        (10, 2, 4),  # 4 and 6 tokens in one and two blocks
        (12, 4, 0),
        (8, 0, 8),
        (9, 3, 4),
    ]
    result = occupancy(requests, "pow2", capacity=32, longest=16)
    # 3 + 2 and 5 + 4 slots wanted, 8 and 16 given
    assert [(u.tokens, u.reserved, u.internal, u.external) for u in result.uses] == [
        (10, 4, 0, 18),
        (12, 2, 0, 18),
        (8, 1, 0, 23),
        (9, 0, 0, 23),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_every_slot_is_counted_once_and_every_token_is_made(scheme, seed):
    requests = make_requests(60, Poisson(2.0), Uniform(1, 90), Uniform(1, 60), seed=seed)
    result = occupancy(requests, scheme, capacity=700, longest=150, steps_per_s=40)
    for use in result.uses:
        assert min(use.tokens, use.reserved, use.internal, use.external) >= 0
        assert sum(use.shares.values()) == pytest.approx(1)
    made = sum(use.requests for use in result.uses)
    if scheme == "paged":  # those preempted make their prompt again, not their output
        assert made == sum(r.output_tokens for r in requests)
    else:
        assert made == sum(r.output_tokens for r in requests) and result.preemptions == 0


def test_paging_wastes_less_than_a_block_a_request():
    requests = make_requests(80, AllAtOnce(), Uniform(1, 90), Uniform(1, 60), seed=1)
    for block in (1, 4, 16, 64):
        result = occupancy(requests, "paged", capacity=2048, block_size=block)
        assert all(use.internal <= (block - 1) * use.requests and use.reserved == 0 for use in result.uses)


def test_preemption_starts_the_last_over():
    # Both fit at first, and outgrow the memory together: the second one waits for the first
    result = occupancy([Request(0, 0.0, 4, 8), Request(1, 0.0, 4, 8)], "paged", capacity=16, block_size=4)
    assert result.preemptions == 1 and any(result.full)
    assert sum(use.requests for use in result.uses) == 16


def test_who_gave_way_is_the_next_to_come_back():
    # The third needs three blocks and waits from the start; so does the second when the first has left
    requests = [Request(0, 0.0, 4, 8), Request(1, 0.0, 4, 8), Request(2, 0.0, 11, 1)]
    result = occupancy(requests, "paged", capacity=16, block_size=4, watermark=0)
    assert result.preemptions == 1
    made = [use.tokens for use in result.uses]
    assert made == [10, 12, 14, 16, 9, 10, 11, 12, 9, 10, 11, 12, 12]


def test_an_arrival_is_waited_for():
    result = occupancy([Request(0, 2.0, 4, 2)], "paged", capacity=16, block_size=4, steps_per_s=10)
    assert len(result.uses) == 2


def test_what_never_fits_is_said():
    too_long = [Request(7, 0.0, 100, 100)]
    with pytest.raises(ValueError, match="longer than the cache"):
        occupancy(too_long, "paged", capacity=128)
    with pytest.raises(ValueError, match="never fits"):
        occupancy(too_long, "oracle", capacity=128)
    with pytest.raises(ValueError, match="scheme='slab'"):
        occupancy(too_long, "slab", capacity=1024)
    with pytest.raises(ValueError, match="capacity=0"):
        occupancy(too_long, "paged", capacity=0)
    with pytest.raises(ValueError, match="uses"):
        average([])


# Block size


def test_tail_share_is_the_mean_over_lengths():
    for block in (1, 8, 16, 256):
        lengths = range(10_000, 10_000 + block)
        empty = statistics.mean(tail_slots(n, block) for n in lengths)
        assert empty == (block - 1) / 2
        tokens = statistics.mean(lengths)
        assert tail_share(tokens, block) == pytest.approx(empty / (tokens + empty))


def test_tables_cost_an_entry_a_block():
    for tokens in (1, 15, 16, 17, 1000):
        blocks = (tokens + tail_slots(tokens, 16)) // 16
        assert table_bytes(tokens, 16) == 4 * blocks
        assert table_bytes(tokens, 16, entry_bytes=8) == 8 * blocks


def test_bad_input():
    with pytest.raises(ValueError, match="tokens=0"):
        tail_slots(0, 16)
    with pytest.raises(ValueError, match="block_size=0"):
        table_bytes(5, 0)
    with pytest.raises(ValueError, match="tokens=-1"):
        tail_share(-1, 16)
    with pytest.raises(ValueError, match="capacity=100"):
        reserved_to_the_maximum([(1, 1)], 100, 2048)
    for lengths, words in (
        ([], "lengths"),
        ([(3000, 10)], r"prompt \+ output = 3010"),
        ([(1, 1), (0, 5)], "prompt=0"),
        ([(5, 0)], "output=0"),
    ):
        with pytest.raises(ValueError, match=words):
            reserved_to_the_maximum(lengths, 16_384, 2048)
    for steps, words in (
        ([], "parents"),
        ([(0, 1), (0, 2)], r"parents\[1\]"),
        ([(-1, 0)], r"parents\[0\]"),
        ([(0, 1, 0)], r"parents\[0\]"),
        ([(0.5, 1)], r"parents\[0\]"),
    ):
        for search in (decode, beams_by_prefix):
            with pytest.raises(ValueError, match=words):
                search(5, steps, width=2)
    with pytest.raises(ValueError, match="block_size=0"):
        beams_by_prefix(9, [(0, 1)], width=2, block_size=0)
    with pytest.raises(ValueError, match=r"replaced=1\.5"):
        two_beams_saving(10, 60, 1.5)
    with pytest.raises(ValueError, match=r"replaced=-0\.1"):
        two_beams_saving(10, 60, -0.1)
    with pytest.raises(ValueError, match="replaced=2"):
        random_beams(2, 3, 2)
    with pytest.raises(ValueError, match="samples=0"):
        parallel_sampling_blocks(5, 5, 0, 16)


# Sharing


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("prompt", [1, 16, 19, 40])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_parallel_samples_hold_what_the_closed_form_says(block, prompt, samples):
    steps = 37
    result = decode(prompt, [range(samples)] * steps, width=samples, block_size=block)
    assert list(result.shared) == [
        parallel_sampling_blocks(prompt, t, samples, block) for t in range(1, steps + 1)
    ]
    assert list(result.unshared) == [samples * -(-(prompt + t) // block) for t in range(1, steps + 1)]
    assert result.copies == (samples - 1 if prompt % block else 0)


@pytest.mark.parametrize(
    ("width", "replaced", "block"), [(2, 0.3, 1), (4, 0.2, 4), (6, 1.0, 16), (3, 0.0, 4)]
)
def test_beams_hold_one_block_for_each_distinct_history(width, replaced, block):
    # Counted from the genealogy alone: a block is what one step's beam wrote, or a copy of what it found
    prompt, parents = 21, random_beams(width, 50, replaced, seed=5)
    result = decode(prompt, parents, width=width, block_size=block)
    lines = [((),) * width]
    history = [()] * width
    for t, step in enumerate(parents, start=1):
        history = [(*history[parent], (t, beam)) for beam, parent in enumerate(step)]
        lines.append(tuple(history))
        length = prompt + t
        distinct = set()
        for line in history:
            for i in range(-(-length // block)):
                end = min((i + 1) * block, length)
                distinct.add((i, line[: max(0, end - prompt)]))
        assert result.shared[t - 1] == len(distinct)


@pytest.mark.parametrize("replaced", [0.05, 0.3])
def test_two_beams_save_what_coalescence_says(replaced):
    savings = [
        decode(10, random_beams(2, 60, replaced, seed=seed), width=2, block_size=1).saving
        for seed in range(300)
    ]
    error = statistics.stdev(savings) / len(savings) ** 0.5
    assert statistics.mean(savings) == pytest.approx(float(two_beams_saving(10, 60, replaced)), abs=4 * error)


def test_savings_are_of_the_published_size():
    # Kwon et al. 2023, section 6.3: 16.2-30.5 % for 2 to 6 samples on ShareGPT, beams 44.3-66.3 %
    requests = sharegpt_like(40, seed=2)

    def saving(width, replaced):
        results = [
            decode(r.prompt_tokens, random_beams(width, r.output_tokens, replaced), width=width)
            for r in requests
        ]
        return 1 - sum(sum(r.shared) for r in results) / sum(sum(r.unshared) for r in results)

    assert 0.10 < saving(2, 0) < 0.25 and 0.20 < saving(6, 0) < 0.42
    assert 0.40 < saving(2, 0.2) < 0.5 and 0.6 < saving(6, 0.2) < 0.84


def test_sharegpt_like_lengths_are_what_figure_2_says():
    requests = sharegpt_like(4000)
    outputs = [r.output_tokens for r in requests]
    weighted = sum(o * o for o in outputs) / sum(outputs)
    prompt = sum(r.output_tokens * r.prompt_tokens for r in requests) / sum(outputs)
    filled = 1 - 0.089
    assert weighted / 2 == pytest.approx(0.133 / filled * 2048, rel=0.04)
    assert prompt == pytest.approx((0.204 - 0.133) / filled * 2048, rel=0.06)
    assert max(r.prompt_tokens + r.output_tokens for r in requests) <= 2048


def test_power_of_two():
    dice = random.Random(0)
    for _ in range(100):
        n = dice.randint(1, 10**6)
        assert power_of_two(n) >= n > power_of_two(n) / 2


def test_memory_use_adds_up():
    use = MemoryUse(100, 20, 30, 10, 2)
    assert use.external == 40 and use.shares["tokens"] == 0.2
