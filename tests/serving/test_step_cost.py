"""Step costs: rooflines against published figures, straight lines, tables, fits, capacity."""

from dataclasses import replace
from fractions import Fraction
from math import inf
from random import Random

import numpy as np
import pytest

from gpuedu.hardware import GPUS, LINKS
from gpuedu.prefill_decode.cost import (
    MEASURED,
    Efficiency,
    attention_operation,
    forward_operations,
    linear_operations,
)
from gpuedu.serving.step_cost import (
    ConstantStepCost,
    Iteration,
    LinearStepCost,
    RooflineStepCost,
    TableStepCost,
    fit_step_cost,
    kv_cache_blocks,
)
from gpuedu.transformer import MODELS

LLAMA, A100, H100 = MODELS["llama-2-7b"], GPUS["A100-80GB"], GPUS["H100-SXM"]
ROOFLINE = RooflineStepCost(LLAMA, A100)
TABLE = TableStepCost(
    {(n, c): 0.01 + 1e-4 * n + 1e-7 * n * c**1.1 for n in (1, 16, 64) for c in (0, 100, 400)},
    {(n, c): 0.01 + 2e-5 * n + 1e-9 * n * c for n in (1, 64, 512) for c in (0, 1000)},
)


# The roofline


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "qwen2.5-7b", "gpt2"])
@pytest.mark.parametrize(("tokens", "context"), [(1, 0), (1, 2000), (512, 0), (100, 300)])
def test_operations_have_the_flops_of_the_model(name, tokens, context):
    """The sum over operations is what the transformer counts, but for the head of all but one token."""
    model = MODELS[name]
    ours = sum(operation.flops for operation in forward_operations(model, [(tokens, context)]))
    head = 2 * model.vocab_size * model.hidden_size * (tokens - 1)
    assert ours + head == pytest.approx(model.forward_flops(tokens, context))


def test_weights_are_read_once():
    operations = linear_operations(LLAMA, 1, 1)
    vectors = 2 * (2 * LLAMA.layers + 1) * LLAMA.hidden_size  # norms, in bytes
    embedding = 2 * LLAMA.vocab_size * LLAMA.hidden_size
    weights = 2 * LLAMA.parameters() - vectors - embedding
    assert sum(operation.nbytes for operation in operations) == pytest.approx(weights, rel=1e-3)


def test_floors_of_a_7b_model_on_an_a100():
    """Decode 6.61 ms, prefill of 2,048 tokens 88.5 ms; GenZ 0.0.16 has 6.53 and 95.5."""
    assert 1e3 * ROOFLINE.seconds(1, 0) == pytest.approx(6.53, rel=0.02)
    assert 1e3 * ROOFLINE.seconds(0, 0, [(2048, 0)]) == pytest.approx(95.5, rel=0.08)


def test_batch_32_as_aiconfigurator_has_it():
    """Llama-2-7B, batch 32, 1,024 in: its roofline has 16.0 and 9.7 ms a decode step, genz-llm within 7 %."""
    for gpu, milliseconds in ((A100, 16.0), (H100, 9.7)):
        cost = RooflineStepCost(LLAMA, gpu)
        assert 1e3 * cost.seconds(32, 32 * 1024) == pytest.approx(milliseconds, rel=0.10)


def test_measured_efficiency_comes_nearer_to_measured_times():
    """Measured decode 21.5 (A100) and 12.2 ms (H100): the datasheet's roofline is 1.3 times too fast."""
    for gpu, milliseconds in ((A100, 21.5), (H100, 12.2)):
        bare = 1e3 * RooflineStepCost(LLAMA, gpu).seconds(32, 32 * 1024)
        measured = 1e3 * RooflineStepCost(LLAMA, gpu, MEASURED[gpu.name]).seconds(32, 32 * 1024)
        assert abs(measured - milliseconds) < 0.5 * abs(bare - milliseconds)


def test_attention_intensity_is_heads_over_kv_heads():
    for name, ratio in (("llama-2-7b", 1), ("llama-3-8b", 4), ("llama-3-70b", 8)):
        for batch in (1, 64):
            operation = attention_operation(MODELS[name], batch * 10_000, batch * 10_000, batch)
            assert operation.intensity == pytest.approx(ratio, rel=0.01)


def test_tensor_parallelism_divides_weights_and_adds_communication():
    model = MODELS["llama-3-70b"]
    one = RooflineStepCost(model, H100)
    eight = RooflineStepCost(model, H100, tensor_parallel=8, link=LINKS["NVLink4"])
    assert one.seconds(8, 8000) / 8 < eight.seconds(8, 8000) < one.seconds(8, 8000)
    with pytest.raises(ValueError, match="link=None"):
        RooflineStepCost(model, H100, tensor_parallel=2)
    with pytest.raises(ValueError, match="tensor_parallel=3"):
        RooflineStepCost(model, H100, tensor_parallel=3, link=LINKS["NVLink4"])


# Lines


@pytest.mark.parametrize("cost", [ROOFLINE, TABLE, LinearStepCost(0.01, 1e-5, 1e-4, 1e-7, 1e-9)])
def test_a_line_is_the_time_up_to_its_end(cost):
    random = Random(4)
    for _ in range(300):
        decodes = random.randint(1, 80)
        context = decodes * random.randint(0, 500)
        line = cost.line(decodes, context)
        for at in (context, min(context + decodes, line.last_context), min(line.last_context, 10**6)):
            if at >= context:
                expected = cost.seconds(decodes, at)
                assert line.intercept_s + line.slope_s * at == pytest.approx(expected, rel=1e-9)


def test_a_table_has_its_knots():
    for (sequences, context), seconds in TABLE.decode.items():
        assert TABLE.seconds(sequences, sequences * context) == pytest.approx(seconds)
    for (tokens, context), seconds in TABLE.prefill.items():
        assert TABLE.seconds(0, 0, [(tokens, context)]) == pytest.approx(seconds)
    mixed = TABLE.seconds(16, 1600, [(512, 0)])
    assert mixed > max(TABLE.seconds(16, 1600), TABLE.seconds(0, 0, [(512, 0)]))
    assert mixed < TABLE.seconds(16, 1600) + TABLE.seconds(0, 0, [(512, 0)])


@pytest.mark.parametrize("bad", [{}, {(1, 0): 0.1, (2, 5): 0.2}, {(1, 0): -0.1}, {(1, 0): float("nan")}])
def test_a_table_that_cannot_be(bad):
    with pytest.raises(ValueError, match="decode"):
        TableStepCost(bad, {(1, 0): 0.1})


# Fits


def measure(truth, noise, seed=0):
    random = Random(seed)
    rows = []
    for _ in range(200):
        decodes = random.randint(0, 32)
        context = decodes * random.randint(10, 800)
        chunks = [(random.randint(1, 512), random.choice([0, 512]))] if random.random() < 0.4 else []
        if decodes or chunks:
            seconds = truth.seconds(decodes, context, chunks) * (1 + random.uniform(-noise, noise))
            rows.append(Iteration(seconds, decodes, context, tuple(chunks)))
    return rows


def test_a_fit_finds_the_truth():
    truth = LinearStepCost(0.012, 3e-4, 2e-3, 2e-6, 4e-8)
    exact = fit_step_cost(measure(truth, 0.0))
    for name in ("iteration_s", "token_s", "decode_s", "context_s", "pair_s"):
        assert getattr(exact, name) == pytest.approx(getattr(truth, name), rel=1e-3), name
    noisy = fit_step_cost(measure(truth, 0.1))
    errors = [abs(noisy.seconds(*row[1:]) / row[0] - 1) for row in measure(truth, 0.0, seed=9)]
    assert sorted(errors)[len(errors) // 2] < 0.03


def test_slow_outliers_do_not_make_a_fit_too_fast(monkeypatch):
    """Noise of 30 % with mean 1: errors relative to what was measured are least for a fit 15 % too fast."""
    truth, random = LinearStepCost(0.03, 1.5e-3, 5e-3, 1.3e-5), Random(0)
    rows = [
        Iteration(row.seconds * random.lognormvariate(-0.045, 0.3), *row[1:])
        for seed in range(8)
        for row in measure(truth, 0.0, seed)
    ]
    batches = [(1, 200, ()), (8, 2000, ()), (0, 0, ((200, 0),)), (6, 900, ((150, 0),))]
    fitted = fit_step_cost(rows)
    for batch in batches:
        assert fitted.seconds(*batch) == pytest.approx(truth.seconds(*batch), rel=0.03)
    monkeypatch.setattr("gpuedu.serving.step_cost.least_squares.SETTLED", 1e-9)
    for batch in batches:
        assert fit_step_cost(rows).seconds(*batch) == pytest.approx(fitted.seconds(*batch), rel=1e-3)
    monkeypatch.setattr("gpuedu.serving.step_cost.least_squares.SETTLED", inf)
    for batch in batches:
        assert fit_step_cost(rows).seconds(*batch) < 0.9 * truth.seconds(*batch)


@pytest.mark.parametrize("spread", [0.03, 0.01, 0.001])
def test_what_is_nearly_the_same_is_told_apart(spread):
    """Contexts in proportion to the sequences, or nearly: without noise the truth is found all the same."""
    truth, dice = LinearStepCost(0.01, 2e-5, 1e-4, 1e-7), Random(3)
    rows = []
    for _ in range(60):
        decodes = dice.randint(1, 32)
        context = round(1000 * decodes * dice.uniform(1 - spread, 1 + spread))
        chunks = ((dice.randint(1, 400), 0),) if dice.random() < 0.4 else ()
        rows.append(Iteration(truth.seconds(decodes, context, chunks), decodes, context, chunks))
    fitted = fit_step_cost(rows)
    assert fitted.context_s == pytest.approx(truth.context_s, rel=1e-3)
    assert fitted.seconds(8, 64_000) == pytest.approx(truth.seconds(8, 64_000), rel=1e-3)


def test_seconds_may_be_any_number():
    truth = LinearStepCost(0.5, 0.25, 0.125)
    rows = [
        Iteration(kind(truth.seconds(n, 0, ((n * n, 0),))), n, 0, ((n * n, 0),))
        for n in range(1, 8)
        for kind in (Fraction, np.float64)
    ]
    assert fit_step_cost(rows).seconds(2, 0) == pytest.approx(0.75)


def test_a_fit_has_no_negative_coefficient():
    rows = [Iteration(0.01 / n, n, n * 100) for n in range(1, 9)]  # faster with more: nonsense
    fitted = fit_step_cost(rows)
    assert min(fitted.decode_s, fitted.context_s, fitted.iteration_s) >= 0
    with pytest.raises(ValueError, match="at least 5"):
        fit_step_cost(rows[:4])


# Capacity


def test_capacity_as_vllm_publishes_it():
    """Kwon et al., table 1: OPT-13B on an A100 of 40 GB has 15.7 thousand slots."""
    assert kv_cache_blocks(MODELS["opt-13b"], GPUS["A100-40GB"]) * 16 == pytest.approx(15_700, rel=0.05)


def test_capacity_is_memory_minus_weights_minus_activations():
    small = kv_cache_blocks(LLAMA, A100, max_num_batched_tokens=512)
    large = kv_cache_blocks(LLAMA, A100, max_num_batched_tokens=16_384)
    assert large < small
    per_block = 16 * LLAMA.kv_cache_bytes_per_token()
    room = A100.memory_bytes * 0.9 - 2 * LLAMA.parameters()
    assert 0.95 * room < small * per_block < room
    split = kv_cache_blocks(LLAMA, A100, tensor_parallel=2)
    assert split > 2 * kv_cache_blocks(LLAMA, A100)  # the weights are there once, not twice


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8, 16, 32])
def test_swapping_moves_what_a_gpu_holds(tensor_parallel):
    """A block is as large for the host link as in memory; 8 KV heads are split 8 times at most.

    Llama-3-8B's block of 16 tokens: 16 * 2 * 32 layers * 8 KV heads * 128 * 2 bytes = 2 MiB.
    """
    model, link = MODELS["llama-3-8b"], LINKS["NVLink4"]
    step_cost = RooflineStepCost(
        model, H100, tensor_parallel=tensor_parallel, link=link, host_bandwidth=2.0**30
    )
    held = 2 * 2**20 / min(tensor_parallel, 8)
    assert step_cost.swap_seconds(3) == pytest.approx(3 * held / 2**30)
    small, large = (
        kv_cache_blocks(model, replace(H100, memory_bytes=memory), tensor_parallel=tensor_parallel)
        for memory in (40 * 10**9, 80 * 10**9)
    )
    assert (large - small) * held == pytest.approx(0.9 * 40e9, rel=1e-3)


def test_weights_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match=r"A100-40GB: 0\.9 of its memory leaves -"):
        kv_cache_blocks(MODELS["llama-3-70b"], GPUS["A100-40GB"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Efficiency(1.2, 0.5), "compute"),
        (lambda: Efficiency(0.5, 0.0), "bandwidth"),
        (lambda: ConstantStepCost(0.0), "iteration_s"),
        (lambda: LinearStepCost(-1.0), "iteration_s"),
        (lambda: RooflineStepCost(MODELS["deepseek-v3"], H100), "without mla"),
        (lambda: linear_operations(LLAMA, 0, 1), "tokens"),
        (lambda: forward_operations(LLAMA, []), "batch"),
        (lambda: forward_operations(LLAMA, [(5, -1000)]), r"batch\[0\]\[1\], tokens in the cache=-1000"),
        (lambda: forward_operations(LLAMA, [(5, 0), (-3, 0)]), r"batch\[1\]\[0\], new tokens=-3"),
        (lambda: forward_operations(LLAMA, [(5, 0), (0, 9)]), r"batch\[1\]\[0\], new tokens=0"),
        (lambda: attention_operation(LLAMA, -1, 1, 1), "pairs=-1"),
        (lambda: attention_operation(LLAMA, 1, float("nan"), 1), "cached_tokens=nan"),
        (lambda: attention_operation(LLAMA, 1, 1, -1), "new_tokens=-1"),
        (lambda: linear_operations(LLAMA, 1, 1, dtype="zz"), "dtype='zz': must be one of fp64, .*bf16"),
        (lambda: attention_operation(LLAMA, 1, 1, 1, kv_dtype=None), "kv_dtype=None: must be one of"),
        (lambda: RooflineStepCost(LLAMA, A100, dtype="x"), "dtype='x': must be one of"),
        (lambda: RooflineStepCost(LLAMA, A100, kv_dtype="x"), "kv_dtype='x': must be one of"),
        (lambda: kv_cache_blocks(LLAMA, A100, memory_utilization=1.5), "memory_utilization"),
        (lambda: kv_cache_blocks(LLAMA, A100, dtype="bf17"), "dtype='bf17': must be one of fp64, .*bf16"),
        (lambda: kv_cache_blocks(LLAMA, A100, kv_dtype="int9"), "kv_dtype='int9': must be one of"),
        (lambda: kv_cache_blocks(LLAMA, A100, tensor_parallel=3), "tensor_parallel=3: must divide 32 heads"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
