"""Mistakes that others have made on tensor parallelism, each guarded by a test."""

import pytest

from gpuedu.all_reduce.cost import bus_bandwidth
from gpuedu.all_reduce.plan import Collective
from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.pipeline_parallel.cost import tensor_parallel_bytes
from gpuedu.tensor_parallel.cost import communication_seconds, model_state_bytes
from gpuedu.tensor_parallel.plan import BACKWARD, FORWARD, RECOMPUTE, shard
from gpuedu.transformer import MODELS


@pytest.mark.parametrize("sold, gpu, link", [(600e9, "A100-80GB", "NVLink3"), (900e9, "H100-SXM", "NVLink4")])
def test_trap_07_a_collective_sees_half_of_what_nvlink_is_sold_as(sold, gpu, link):
    node = Cluster(GPUS[gpu], 8, 1, LINKS[link], LINKS["InfiniBand-NDR"])
    call = shard(MODELS["llama-3-70b"], 8, batch=64).layer[0]
    seconds = communication_seconds(call, node)
    reached = bus_bandwidth(Collective.ALL_REDUCE, 8, call.nbytes, seconds)
    assert 0.98 * sold / 2 < reached < sold / 2
    assert seconds > 2 * 7 / 8 * call.nbytes / (sold / 2)


def test_trap_09_zero_3_cuts_the_weights_too():
    weights, gradients, optimizer = model_state_bytes(175e9, 64, 3)
    assert weights == gradients == 2 * 175e9 / 64
    assert (weights + gradients + optimizer) / 1e9 == 43.75


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3-405b"])
def test_trap_10_a_training_step_has_four_all_reduces_a_layer(name):
    model = MODELS[name]
    plan = shard(model, 8)
    layer = [(c.phase, c.collective, c.count) for c in plan.layer]
    assert (
        layer
        == [(FORWARD, Collective.ALL_REDUCE, model.layers)] * 2
        + [(BACKWARD, Collective.ALL_REDUCE, model.layers)] * 2
    )
    inference = shard(model, 8, training=False)
    assert [(c.phase, c.collective) for c in inference.layer] == [(FORWARD, Collective.ALL_REDUCE)] * 2
    sent = sum(c.count * c.bytes_sent for c in plan.layer)
    assert sent == tensor_parallel_bytes(model.layers, 8, 2048, 1, model.hidden_size)


def test_trap_10_full_recomputation_makes_it_six():
    plan = shard(MODELS["llama-3-8b"], 8, recompute="full")
    assert [c.phase for c in plan.layer] == [FORWARD] * 2 + [RECOMPUTE] * 2 + [BACKWARD] * 2


def test_trap_11_kv_heads_are_cut_as_such():
    """A rank's share of keys is one of 8 KV heads, not of 64 query heads; past 8 ranks it stays one."""
    for t, held in ((1, 8), (2, 4), (8, 1), (16, 1), (64, 1)):
        (keys,) = (w for w in shard(MODELS["llama-3-70b"], t).weights if w.name == "k")
        assert keys.local_shape == (held * 128, 8192)
        assert keys.copies == max(1, t // 8)
