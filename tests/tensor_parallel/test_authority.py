"""Layers and models on t ranks against the whole model written plainly, and against DTensor."""

from __future__ import annotations

import dtensor_jobs
import pytest
import tensor_jobs as jobs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuedu.distributed import launch
from gpuedu.tensor_parallel.run import simulate
from gpuedu.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = 1e-12  # in float64, relative to the largest value
FORWARD_32, BACKWARD_32 = (
    1e-6,
    5e-6,
)  # in float32; the gradients of the whole model itself are off by half that
WAYS = {
    "TP": {},
    "SP": {"sequence_parallel": True},
    "SP, kept": {"sequence_parallel": True, "regather": False},
}


def worst(errors: list[dict[str, float]]) -> dict[str, float]:
    """The largest error on any rank, by name."""
    return {name: max(each.get(name, 0.0) for each in errors) for name in errors[0]}


def above(errors: dict[str, float], bound: float) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= bound}


# --- simulated ranks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layer_on_simulated_ranks(ranks):
    errors = worst(simulate(ranks, jobs.layers))
    assert len(errors) >= 80 and not above(errors, EXACT)
    errors = worst(simulate(ranks, jobs.layers, torch.float32))
    outputs = {name: error for name, error in errors.items() if name.endswith("output")}
    assert len(outputs) == 31 and not above(outputs, FORWARD_32) and not above(errors, BACKWARD_32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", jobs.SHAPES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_model_on_simulated_ranks(ranks, name, way):
    shape = jobs.SHAPES[name]
    errors = worst(simulate(ranks, lambda group: jobs.decoder_errors(group, shape, **WAYS[way])))
    assert len(errors) > 10 and not above(errors, EXACT)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_model_in_single_precision(ranks, way):
    for shape in jobs.SHAPES.values():
        how = {"dtype": torch.float32} | WAYS[way]
        errors = worst(simulate(ranks, lambda group: jobs.decoder_errors(group, shape, **how)))  # noqa: B023
        forward = {name: errors.pop(name) for name in ("loss", "last logits")}
        assert not above(forward, FORWARD_32) and not above(errors, BACKWARD_32)


@settings(max_examples=15)
@given(data=st.data(), ranks=st.integers(1, 6))
def test_any_shape_on_any_number_of_simulated_ranks(data, ranks):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    kv_heads = pick(*(n for n in range(1, 2 * ranks + 1) if n % ranks == 0 or ranks % n == 0))
    per_rank = pick(*(n for n in range(1, 7) if ranks * n % kv_heads == 0))
    shape = Transformer(
        layers=pick(1, 2), hidden_size=pick(6, 8), attention_heads=ranks * per_rank, kv_heads=kv_heads,
        head_dim=pick(2, 4), ffn_hidden_size=ranks * pick(1, 3), gated_ffn=pick(True, False),
        vocab_size=pick(7, 12, 60), tied_embeddings=pick(True, False), biases=pick("none", "qkv", "all"),
        norm=pick("layernorm", "rmsnorm"), learned_positions=pick(0, jobs.TOKENS),
    )  # fmt: skip
    padded = -(-shape.vocab_size // ranks) * ranks + pick(0, ranks, 5 * ranks)
    sp = jobs.TOKENS % ranks == 0 and pick(True, False)
    how = {"padded_vocab_size": padded, "sequence_parallel": sp, "regather": pick(True, False)}
    errors = worst(simulate(ranks, lambda group: jobs.decoder_errors(group, shape, **how)))
    assert not above(errors, EXACT)


# --- processes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two_processes():
    """Per rank: errors in float64 and float32, what it found beside DTensor, and what torch saw."""
    return launch(2, dtensor_jobs.on_processes, timeout_s=200)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layer_and_model_on_processes(ranks, request):
    if ranks == 2:
        results = request.getfixturevalue("on_two_processes")
    else:
        results = launch(ranks, jobs.on_processes, timeout_s=200)
    errors, single = (worst([of_rank[i] for of_rank in results]) for i in (0, 1))
    assert len(errors) >= 80 + len(WAYS) * len(jobs.LAUNCHED) and not above(errors, EXACT)
    assert len(single) == len(WAYS) and not above(single, BACKWARD_32)


@pytest.fixture(scope="module")
def dtensor(on_two_processes):
    """Per rank and kind of parallelism, what it found beside DTensor."""
    return [of_rank[2] for of_rank in on_two_processes]


@pytest.mark.parametrize("sp", [False, True])
def test_loss_and_gradients_are_those_of_dtensor(dtensor, sp):
    for of_rank in dtensor:
        found = of_rank[sp]
        assert found["same names"] and found["loss"] <= EXACT and found["gradients"] <= EXACT


@pytest.mark.parametrize("sp", [False, True])
def test_collectives_and_bytes_are_those_of_dtensor(dtensor, sp):
    for of_rank in dtensor:
        found = of_rank[sp]
        assert found["ours"] == found["theirs"]
        assert found["our bytes"] == found["their bytes"]
    layers, loss = jobs.LLAMA.layers, 3
    if sp:
        both_ways = {"all_gather": 2 * layers + 1, "reduce_scatter": 2 * layers + 1}
        expected = {"forward": both_ways | {"all_reduce": loss}, "backward": both_ways, "step": {}}
    else:
        ends = {"forward": 1 + loss, "backward": 1}  # embedding and loss, head
        expected = {phase: {"all_reduce": 2 * layers + n} for phase, n in ends.items()} | {"step": {}}
    assert found["theirs"] == expected


def test_the_counter_counts_what_torch_sees_of_our_own_collectives(on_two_processes):
    for *_, (counted, seen) in on_two_processes:
        assert counted == seen and len(seen) == 3
