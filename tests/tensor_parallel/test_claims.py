"""The source's claims on tensor parallelism, each decided by a run."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from gpuedu.all_reduce.plan import Collective
from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.pipeline_parallel.cost import boundary_bytes, tensor_parallel_bytes
from gpuedu.tensor_parallel.cost import model_state_bytes, step_time, training_memory
from gpuedu.tensor_parallel.plan import BACKWARD, FORWARD, padded_vocabulary, shard
from gpuedu.transformer import MODELS

GPU = GPUS["H100-SXM"]  # an "80 GB" card

# C07: a model too big for one GPU's memory has to be cut by model parallelism.

BIG = {
    "13B": MODELS["llama-2-13b"],
    "70B": MODELS["llama-2-70b"],
    "175B": padded_vocabulary(MODELS["gpt3-175b"], 8),
}


@pytest.mark.parametrize("name", BIG)
def test_c07_it_does_not_fit_one_gpu(name):
    for n in (1, 64, 1024):  # plain data parallelism: every GPU holds all, however many there are
        assert not training_memory(BIG[name], data_parallel=n, recompute="full", dropout=False).fits(GPU)


@pytest.mark.parametrize(("name", "gpus"), [("13B", 8), ("70B", 32), ("175B", 64)])
def test_c07_zero_3_fits_it_and_every_gpu_computes_whole_layers(name, gpus):
    model = BIG[name]
    memory = training_memory(model, data_parallel=gpus, zero=3, recompute="full", dropout=False)
    assert memory.fits(GPU)
    assert memory.weights + memory.gradients + memory.optimizer == 16 * model.parameters() / gpus
    assert memory.working >= 4 * model.layer_parameters()  # one whole layer and its gradient at a time
    fewest = next(n for n in range(1, 1000) if sum(model_state_bytes(model.parameters(), n, 3)) < 80e9)
    assert fewest < gpus


def test_c07_the_papers_number():
    assert sum(model_state_bytes(175e9, 64, 3)) == 43.75e9


@pytest.mark.parametrize("name", BIG)
def test_c07_offloading_fits_it_on_a_single_gpu(name):
    model = BIG[name]
    memory = training_memory(model, offload="all", recompute="full", dropout=False)
    assert memory.fits(GPU)
    assert memory.host == 16 * model.parameters()  # what the host's memory or disk must hold


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("13B", {"tensor_parallel": 8}),
        ("70B", {"tensor_parallel": 8, "pipeline_parallel": 4, "microbatches": 32}),
        ("175B", {"tensor_parallel": 8, "pipeline_parallel": 8, "microbatches": 64}),
    ],
)
def test_c07_model_parallelism_fits_it_too(name, how):
    memory = training_memory(BIG[name], sequence_parallel=True, recompute="selective", dropout=False, **how)
    assert memory.fits(GPU)
    assert memory.host == 0


def test_c07_recomputation_alone_does_not():
    """It shrinks activations; what does not fit is the states."""
    for model in BIG.values():
        memory = training_memory(model, recompute="full", dropout=False)
        assert memory.weights + memory.gradients + memory.optimizer > GPU.memory_bytes


def test_c07_models_that_fit_are_cut_as_well():
    """To serve faster: 8 GPUs read an eighth of the weights each for a token."""
    model = MODELS["llama-3-8b"]
    assert 2 * model.parameters() < GPU.memory_bytes / 4
    plan = shard(model, 8, sequence=1, training=False)
    read = sum(w.local_bytes for w in plan.weights)
    assert read < 2 * model.parameters() / 7.9


def test_c07_torch_shards_the_states_and_computes_whole_layers():
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    ranks, width, layers = 8, 64, 3
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
        whole = sum(p.numel() for p in model.parameters())
        seen = []
        for layer in model:
            layer.register_forward_hook(lambda layer, *_: seen.append(tuple(layer.weight.shape)))
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        held = sum(p.to_local().numel() for p in model.parameters())
        model(torch.zeros(4, width))
    finally:
        dist.destroy_process_group()
    weights, _, _ = model_state_bytes(whole, ranks, 3)
    assert 2 * held == weights  # 16-bit in the formula, so two bytes an element
    assert seen == [(width, width)] * layers


def test_c07_a_layer_too_wide_for_a_gpu_has_to_be_cut():
    """What flips the verdict: neither ZeRO-3 nor offloading helps a layer that fits nowhere whole."""

    def gpt(width):
        heads = width // 128
        return replace(
            MODELS["gpt3-175b"], layers=1, hidden_size=width, attention_heads=heads, kv_heads=heads,
            ffn_hidden_size=4 * width, vocab_size=1024, learned_positions=0,
        )  # fmt: skip

    how = {"recompute": "full", "dropout": False, "batch": 1, "sequence": 128}
    for width, fits in ((32 * 1024, True), (48 * 1024, False)):
        model = gpt(width)
        for way in ({"zero": 3, "data_parallel": 4096}, {"offload": "all"}):
            assert training_memory(model, **way, **how).fits(GPU) is fits
    cut = training_memory(model, tensor_parallel=8, sequence_parallel=True, offload="all", **how)
    assert cut.fits(GPU)


# C09: tensor parallelism lets several GPUs compute one layer's big product together.


@pytest.mark.parametrize("t", [2, 4, 8])
def test_c09_the_parts_of_a_product_are_the_product(t):
    """Columns side by side, rows as a sum: forward, and the gradients of input and weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    up = torch.randn(32, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    down = torch.randn(16, 32, dtype=torch.float64, generator=generator, requires_grad=True)
    whole = functional.linear(functional.gelu(functional.linear(x, up)), down)
    expected = torch.autograd.grad(whole.square().sum(), (x, up, down))
    parts = zip(up.chunk(t, 0), down.chunk(t, 1), strict=True)  # each rank's columns and rows
    together = sum(functional.linear(functional.gelu(functional.linear(x, u)), d) for u, d in parts)
    found = torch.autograd.grad(together.square().sum(), (x, up, down))
    for ours, theirs in zip((together, *found), (whole, *expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_c09_the_price_is_four_all_reduces_a_layer_and_two_in_inference():
    for name in ("gpt2", "llama-3-8b", "llama-3-70b"):
        model = padded_vocabulary(MODELS[name], 4)
        training, inference = (shard(model, 4, training=training) for training in (True, False))
        assert [c.phase for c in training.layer] == [FORWARD, FORWARD, BACKWARD, BACKWARD]
        assert [c.phase for c in inference.layer] == [FORWARD, FORWARD]
        assert {c.collective for c in (*training.layer, *inference.layer)} == {Collective.ALL_REDUCE}


def test_c09_more_ranks_send_no_less_each():
    """The product shrinks by t, the traffic grows to twice an activation: the end of its usefulness."""
    sent = [sum(c.bytes_sent for c in shard(MODELS["llama-3-70b"], t).layer) for t in (2, 4, 8, 16, 32, 64)]
    assert sent == sorted(sent)
    assert sent[-1] / sent[0] == pytest.approx(2 * 63 / 64)


def test_c09_the_link_decides_whether_it_pays():
    plan = shard(MODELS["llama-3-70b"], 8)
    node, network = (
        step_time(plan, Cluster(GPU, per_node, 8 // per_node, LINKS["NVLink4"], LINKS["InfiniBand-NDR"]))
        for per_node in (8, 1)
    )
    assert node.compute_s == network.compute_s
    assert node.useful_share > 0.85 and network.useful_share < 0.4
    # By hand: two all-reduces forward are waited for whole, of a ring's 14/8 of 34 MB each
    forward = 2 * 80 * (14 / 8 * 2048 * 8192 * 2 / 50e9 + 14 * 4e-6)
    assert network.communication_s > forward


# C10 (decided with pipeline parallelism): the counted traffic is that of the formula there.


def test_c10_the_plan_sends_42_times_a_pipeline_boundary():
    model, t, stages = padded_vocabulary(MODELS["gpt3-175b"], 8), 8, 8
    plan = shard(model, t)
    layers = model.layers // stages
    sent = sum(layers * c.bytes_sent for c in plan.layer)
    boundary = boundary_bytes(2048, 1, model.hidden_size)
    assert sent == tensor_parallel_bytes(layers, t, 2048, 1, model.hidden_size) == 42 * boundary
    megatron = sum(layers * c.bytes_sent for c in shard(model, t, sequence_parallel=True).layer)
    assert megatron == 52.5 * boundary  # inputs gathered again: a quarter more
