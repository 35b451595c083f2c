"""The source's claims on pipeline parallelism, each decided by a run."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from gpuedu.pipeline_parallel.cost import (
    boundary_bytes,
    bubble_share,
    gpipe_makespan,
    interleaved_makespan,
    one_f_one_b_makespan,
    peak_activations,
    sends,
    tensor_parallel_bytes,
    timeline,
)
from gpuedu.pipeline_parallel.plan import (
    dualpipe_v,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    zb_v,
)
from gpuedu.transformer import MODELS

# C08: splitting a model means tensor or pipeline parallelism, the latter in consecutive runs of layers.


def parts_of_rank(schedule, rank):
    return sorted(schedule.part(rank, chunk) for chunk in range(schedule.chunks))


def test_c08_a_rank_may_hold_layers_that_are_not_consecutive():
    assert parts_of_rank(one_f_one_b(4, 8), 0) == [0]  # here they are
    assert parts_of_rank(interleaved_1f1b(4, 8, 2), 0) == [0, 4]
    assert parts_of_rank(zb_v(4, 8), 0) == [0, 7]  # the first layers and the last
    assert parts_of_rank(dualpipe_v(4, 8), 1) == [1, 6]


def test_c08_equal_layer_counts_are_not_equal_time():
    model = MODELS["llama-3-8b"]
    stages, microbatches, tokens = 8, 32, 2048
    head = 2 * tokens * model.hidden_size * model.vocab_size
    layer = Fraction(model.forward_flops(tokens) - head, model.layers)
    assert 2 < head / layer < 3  # the output head costs as much as two to three layers

    def step(layers):
        pass_time = [layer * n for n in layers]
        pass_time[-1] += head
        return timeline(
            one_f_one_b(stages, microbatches),
            forward=pass_time,
            backward_input=pass_time,
            backward_weight=pass_time,
        )

    equal = step([4] * 8)
    fewer_last = step([4, 4, 4, 4, 4, 5, 5, 2])
    assert equal.busy[-1] > 1.5 * equal.busy[0]
    assert fewer_last.makespan < 0.85 * equal.makespan


# C10: tensor and pipeline parallelism alike lean extremely hard on a fast, low-latency network.


def test_c10_traffic_differs_by_more_than_an_order_of_magnitude():
    model = MODELS["gpt3-175b"]
    stages, tensor_parallel = 8, 8
    shape = (2048, 1, model.hidden_size)
    per_gpu = tensor_parallel_bytes(model.layers // stages, tensor_parallel, *shape)
    activation = Fraction(boundary_bytes(*shape), 2)
    assert per_gpu / activation == 84
    inner_rank = sends(one_f_one_b(stages, 32))[1]
    assert inner_rank / 32 == 2  # messages of one activation, per microbatch
    assert per_gpu / boundary_bytes(*shape) == 42


class Layer(nn.Module):
    """A transformer layer with fused QKV, on one of eight ranks of a tensor-parallel group."""

    def __init__(self, width, heads):
        super().__init__()
        self.local_heads = heads // 8
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).view(batch, length, self.local_heads, -1).transpose(1, 2).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def test_c10_torch_counts_four_all_reduces_a_layer():
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.testing._internal.distributed.fake_pg import FakeStore

    layers = 3
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        mesh = init_device_mesh("cpu", (8,))
        model = nn.Sequential(*(Layer(64, 8) for _ in range(layers)))
        for layer in model:
            column, row = ColwiseParallel(), RowwiseParallel()
            parallelize_module(layer, mesh, {"qkv": column, "out": row, "up": column, "down": row})
        x = torch.zeros(1, 16, 64, requires_grad=True)
        with CommDebugMode() as counter:
            model(x).sum().backward()
        counts = {str(operation): n for operation, n in counter.get_comm_counts().items()}
    finally:
        dist.destroy_process_group()
    assert counts == {"c10d_functional.all_reduce": 4 * layers}
    one_activation = Fraction(boundary_bytes(16, 1, 64, dtype_bytes=4), 2)
    expected = counts["c10d_functional.all_reduce"] * Fraction(2 * 7, 8) * one_activation
    assert tensor_parallel_bytes(layers, 8, 16, 1, 64, dtype_bytes=4) == expected


def test_c10_a_slow_link_hurts_tensor_parallelism_far_more():
    model = MODELS["gpt3-175b"]
    stages, tensor_parallel, microbatches, tokens = 8, 8, 32, 2048
    flop_per_second = 0.5 * 312e12  # half of an A100's dense 16-bit peak
    shape = (tokens, 1, model.hidden_size)
    layers = model.layers // stages
    compute = model.forward_flops(tokens) / stages / tensor_parallel / flop_per_second

    def step(tensor_link, pipeline_link):
        exposed = float(tensor_parallel_bytes(layers, tensor_parallel, *shape)) / 2 / tensor_link
        hop = boundary_bytes(*shape) / 2 / pipeline_link
        stage = compute + exposed  # as much forward as in the input gradient
        price = dict(forward=stage, backward_input=stage, backward_weight=compute, transfer=hop)
        return timeline(one_f_one_b(stages, microbatches), **price).makespan

    fast, slow = 450e9, 5e9  # bytes/s a direction: NVLink 4 inside a node, 40 Gbit/s between nodes
    all_fast = step(fast, fast)
    assert step(fast, slow) < 1.15 * all_fast
    assert step(slow, fast) > 4 * all_fast


# C11: pipeline bubbles are stalls caused by network delay, any delay stopping the whole chain.

C11 = {"forward": 1, "backward_input": 1, "backward_weight": 1}


def test_c11_the_bubble_is_there_without_any_delay():
    for schedule in (gpipe(8, 32), one_f_one_b(8, 32), interleaved_1f1b(8, 32, 1)):
        t = timeline(schedule, **C11)
        assert t.makespan == 117
        assert t.bubble_share == bubble_share(8, 32) == 7 / 39 == pytest.approx(0.179, abs=5e-4)


@pytest.mark.parametrize("c", [Fraction(k, 10) for k in range(6)])
def test_c11_what_delay_adds_depends_on_slack(c):
    p, m = 8, 32
    # GPipe: once down and once up. Plain 1F1B: rank 0 has p microbatches in flight, so each round of p
    # costs a whole round trip more; over 32 microbatches 68 hops. Doubled warm-up: as GPipe.
    assert (
        timeline(gpipe(p, m), **C11, transfer=c).makespan == gpipe_makespan(p, m, transfer=c) == 117 + 14 * c
    )
    plain = timeline(one_f_one_b(p, m), **C11, transfer=c).makespan
    assert plain == one_f_one_b_makespan(p, m, transfer=c) == 117 + 68 * c
    doubled = timeline(interleaved_1f1b(p, m, 1), **C11, transfer=c).makespan
    assert doubled == interleaved_makespan(p, m, 1, transfer=c) == 117 + 14 * c


def test_c11_slack_is_paid_in_activations():
    assert max(peak_activations(one_f_one_b(8, 32))) == 8
    assert max(peak_activations(interleaved_1f1b(8, 32, 1))) == 15
    assert max(peak_activations(gpipe(8, 32))) == 32


def test_c11_a_delay_does_not_stop_the_whole_chain():
    # Half a forward late on every hop, and still each rank of GPipe pauses only once.
    t = timeline(gpipe(8, 32), **C11, transfer=Fraction(1, 2))
    gaps = [
        sum(b - a > 0 for a, b in zip(ends, starts[1:], strict=False))
        for ends, starts in zip(t.ends, t.starts, strict=True)
    ]
    assert gaps[:-1] == [1] * 7 and gaps[-1] == 0  # between its forwards and its backwards
