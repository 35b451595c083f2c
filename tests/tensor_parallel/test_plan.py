"""The cuts against the model, against torch and against DTensor; and what makes a sharding valid."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gpuedu.all_reduce.plan import Collective, all_gather, reduce_scatter, ring
from gpuedu.tensor_parallel.plan import (
    BACKWARD,
    FORWARD,
    LAYER_SITES,
    RECOMPUTE,
    SITES,
    STEP,
    Tensor,
    padded_vocabulary,
    shard,
    usable,
    validate,
)
from gpuedu.transformer import MODELS, Transformer

ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER = (
    Collective.ALL_REDUCE,
    Collective.REDUCE_SCATTER,
    Collective.ALL_GATHER,
)
DENSE = {name: model for name, model in MODELS.items() if model.mla is None}
SWITCHES = list(product((False, True), (False, True), (False, True), ("none", "selective", "full")))


def transformer(kv_heads=4, group=2, head_dim=8, ffn=64, vocab=96, gated=True, biases="none", **more):
    heads = kv_heads * group
    fields = {
        "layers": 3,
        "hidden_size": heads * head_dim,
        "attention_heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn_hidden_size": ffn,
        "gated_ffn": gated,
        "vocab_size": vocab,
        "tied_embeddings": False,
        "biases": biases,
        "norm": "rmsnorm",
    }
    return Transformer(**fields | more)


@st.composite
def sharded(draw, **fixed):
    """Any small model on any number of ranks that can cut it."""
    model = transformer(
        kv_heads=draw(st.sampled_from((1, 2, 3, 4, 8))),
        group=draw(st.sampled_from((1, 2, 4))),
        ffn=48 * draw(st.integers(1, 3)),
        vocab=96,
        gated=draw(st.booleans()),
        biases=draw(st.sampled_from(("none", "qkv", "all"))),
        norm=draw(st.sampled_from(("layernorm", "rmsnorm"))),
        tied_embeddings=draw(st.booleans()),
        learned_positions=draw(st.sampled_from((0, 40))),
    )
    how = {
        "sequence_parallel": draw(st.booleans()),
        "training": draw(st.booleans()),
        "regather": draw(st.booleans()),
        "recompute": draw(st.sampled_from(("none", "selective", "full"))),
        "batch": draw(st.integers(1, 3)),
    }
    t = draw(st.sampled_from(usable(model)))
    return shard(model, t, sequence=t * draw(st.integers(1, 3)), **how | fixed)


# Who holds what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
def test_weights_are_all_of_the_model(name):
    for t in usable(padded_vocabulary(DENSE[name], 64)):
        model = padded_vocabulary(DENSE[name], t)
        plan = shard(model, t, sequence=2 * t)
        assert sum(w.count * w.elements for w in plan.weights) == model.parameters()
        layer = sum(w.elements for w in plan.weights if w.site in LAYER_SITES)
        assert layer == model.layer_parameters()


@given(sharded())
def test_pieces_tile_every_tensor(plan):
    for tensor in (*plan.weights, *plan.activations):
        assert tensor.site in SITES and tensor.ranks == plan.tensor_parallel
        if tensor.axis is None:
            assert tensor.local_shape == tensor.shape and tensor.copies == tensor.ranks
            continue
        held = [range(*tensor.bounds(rank)) for rank in range(tensor.ranks)]
        indices = sorted(index for part in held for index in part)
        assert indices == sorted(list(range(tensor.shape[tensor.axis])) * tensor.copies)
        assert {len(part) for part in held} == {tensor.local_shape[tensor.axis]}
        assert tensor.local_elements * tensor.pieces == tensor.elements


@given(sharded())
def test_a_rank_holds_the_kv_heads_that_its_queries_attend_to(plan):
    model, named = plan.model, {w.name: w for w in plan.weights}
    for rank in range(plan.tensor_parallel):
        queries, keys = (
            [index // model.head_dim for index in range(*named[name].bounds(rank))[:: model.head_dim]]
            for name in ("q", "k")
        )
        group = model.attention_heads // model.kv_heads
        assert {head // group for head in queries} == set(keys)
        assert named["v"].bounds(rank) == named["k"].bounds(rank)
        assert named["o"].bounds(rank) == named["q"].bounds(rank)


def test_known_shapes():
    named = {w.name: w.local_shape for w in shard(MODELS["llama-3-70b"], 16).weights}
    assert named["q"] == (512, 8192) and named["o"] == (8192, 512)
    assert named["k"] == named["v"] == (128, 8192)  # one of 8 heads, on two ranks each
    assert named["gate"] == named["up"] == (1792, 8192) and named["down"] == (8192, 1792)
    assert named["embedding"] == named["head"] == (8016, 8192)
    assert named["attention norm"] == named["ffn norm"] == named["last norm"] == (8192,)
    gpt = {w.name: w.local_shape for w in shard(padded_vocabulary(MODELS["gpt2"], 4), 4).weights}
    assert gpt["q bias"] == (192,) and gpt["fc1 bias"] == (768,)
    assert gpt["o bias"] == gpt["fc2 bias"] == (768,)  # whole: added once, after the sum
    assert gpt["positions"] == (1024, 768) and "head" not in gpt


def weights_of(model):
    """A layer's weights in float64, by the plan's names."""
    generator = torch.Generator().manual_seed(0)
    return {
        w.name: torch.randn(w.shape, generator=generator, dtype=torch.float64) / w.shape[-1] ** 0.5
        for w in shard(model, 1).weights
        if w.site in LAYER_SITES and len(w.shape) == 2
    }


def attention(x, weights, head_dim):
    q, k, v = (functional.linear(x, weights[n]).unflatten(-1, (-1, head_dim)).transpose(1, 2) for n in "qkv")
    heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return functional.linear(heads.transpose(1, 2).flatten(2), weights["o"])


def ffn(x, weights):
    if "gate" in weights:
        inner = functional.silu(functional.linear(x, weights["gate"])) * functional.linear(x, weights["up"])
        return functional.linear(inner, weights["down"])
    return functional.linear(functional.gelu(functional.linear(x, weights["fc1"])), weights["fc2"])


@pytest.mark.parametrize("t", [1, 2, 4, 8])
@pytest.mark.parametrize("gated", [True, False])
def test_ranks_cut_as_planned_add_up_to_the_whole_layer(t, gated):
    model = transformer(kv_heads=2, group=4, gated=gated)  # with t = 4, 8 KV heads are copied
    whole = weights_of(model)
    cuts = {w.name: w for w in shard(model, t, sequence=8).weights}
    x = torch.randn(2, 5, model.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    attended = mapped = 0
    for rank in range(t):
        own = {
            n: w.narrow(cuts[n].axis, cuts[n].bounds(rank)[0], cuts[n].local_shape[cuts[n].axis])
            for n, w in whole.items()
        }
        attended += attention(x, own, model.head_dim)
        mapped += ffn(x, own)
    torch.testing.assert_close(attended, attention(x, whole, model.head_dim), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mapped, ffn(x, whole), rtol=1e-12, atol=1e-12)


# Who says what when -------------------------------------------------------------------------------


def counts(plan, phase):
    return {kind: n for (when, kind), n in plan.counts().items() if when is phase}


def test_sequence_parallelism_moves_as_much_unless_inputs_are_gathered_again():
    """A layer and t = 8: four all-reduces are 4 * 2 * 7/8 of an activation."""
    layers, activation = 80, 2048 * 8192 * 2
    totals = {}
    for name, how in {
        "plain": {},
        "kept": {"sequence_parallel": True, "regather": False},
        "megatron": {"sequence_parallel": True},
    }.items():
        plan = shard(MODELS["llama-3-70b"], 8, **how)
        totals[name] = sum(c.bytes_sent for c in plan.layer) / activation
        assert all(c.count == layers for c in plan.layer)
    assert totals == {"plain": 7, "kept": 7, "megatron": 7 + 2 * 7 / 8}


def test_sequence_parallel_counts():
    model = MODELS["llama-3-8b"]
    kept = shard(model, 4, sequence_parallel=True, regather=False)
    assert [(c.site, c.collective) for c in kept.layer if c.phase is FORWARD] == [
        ("attention_in", ALL_GATHER),
        ("attention_out", REDUCE_SCATTER),
        ("ffn_in", ALL_GATHER),
        ("ffn_out", REDUCE_SCATTER),
    ]
    assert [(c.site, c.collective) for c in kept.layer if c.phase is BACKWARD] == [
        ("ffn_out", ALL_GATHER),
        ("ffn_in", REDUCE_SCATTER),
        ("attention_out", ALL_GATHER),
        ("attention_in", REDUCE_SCATTER),
    ]
    again = shard(model, 4, sequence_parallel=True)
    more = counts(again, BACKWARD)[ALL_GATHER] - counts(kept, BACKWARD)[ALL_GATHER]
    assert more == 2 * model.layers + 1  # both inputs of each layer, and the head's
    assert sum(c.count for c in again.communications if c.again) == more


def test_the_loss_sends_three_scalars_a_token():
    model = MODELS["llama-3-8b"]
    loss = shard(model, 8, batch=3).at("loss", FORWARD)
    assert [(c.collective, c.shape) for c in loss] == [(ALL_REDUCE, (3, 2048))] * 3
    gathered = 3 * 2048 * model.vocab_size * 4 * 7 / 8  # what an all-gather of the logits would send
    assert gathered / sum(c.bytes_sent for c in loss) == model.vocab_size / 6


def test_only_copies_that_see_different_parts_are_summed():
    model = transformer(kv_heads=2, group=4, biases="all", norm="layernorm", learned_positions=40)
    h, layers, d = model.hidden_size, model.layers, model.head_dim
    assert shard(model, 2, sequence=8).at("gradients", STEP) == ()
    (copies,) = shard(model, 8, sequence=8).at("gradients", STEP)
    assert copies.ranks == 4 and copies.shape == (layers * 2 * d * (h + 1),)  # one head of k and v, with bias
    whole, _ = shard(model, 8, sequence=8, sequence_parallel=True).at("gradients", STEP)
    norms = (2 * layers + 1) * 2 * h
    assert whole.ranks == 8 and whole.shape == (norms + layers * 2 * h + 40 * h,)


def test_recomputation_repeats_the_forward():
    for sp in (False, True):
        plan = shard(MODELS["llama-3-8b"], 8, sequence_parallel=sp, recompute="full")
        forward = [(c.site, c.collective, c.count) for c in plan.layer if c.phase is FORWARD]
        assert [(c.site, c.collective, c.count) for c in plan.layer if c.phase is RECOMPUTE] == forward
        assert not shard(
            MODELS["llama-3-8b"], 8, sequence_parallel=sp, recompute="selective"
        ).counts().keys() & {(RECOMPUTE, kind) for kind in Collective}


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_bytes_sent_are_those_of_the_explicit_plans(ranks):
    model = transformer(kv_heads=1, group=24, vocab=96, ffn=48)
    for sp in (False, True):
        plan = shard(model, ranks, sequence=24, sequence_parallel=sp)
        explicit = {ALL_REDUCE: ring, REDUCE_SCATTER: reduce_scatter, ALL_GATHER: all_gather}
        for c in plan.communications:
            sends = explicit[c.collective](c.ranks)
            sent = [sends.bytes_sent(r, int(c.nbytes), int(c.itemsize)) for r in range(c.ranks)]
            assert sum(sent) / c.ranks == pytest.approx(c.bytes_sent)


@pytest.fixture
def fake_ranks():
    """Eight ranks of which only the first is there; collectives are counted, and carry nothing."""
    from torch import distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield 8
    dist.destroy_process_group()


def short(communications):
    return {str(kind).rpartition(".")[2]: n for kind, n in communications.get_comm_counts().items()}


class Attention(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.attention = Attention(width)
        up, down = (
            torch.nn.Linear(width, 4 * width, bias=False),
            torch.nn.Linear(4 * width, width, bias=False),
        )
        self.mlp = torch.nn.Sequential(up, torch.nn.GELU(), down)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("sp", [False, True])
def test_dtensor_runs_the_same_collectives(fake_ranks, sp):
    """DTensor keeps what it has gathered, and gathers nothing again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    width, layers = 64, 3
    mesh = init_device_mesh("cpu", (fake_ranks,))
    column, row = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1) if sp else Replicate())
    styles = {f"attention.{n}": column for n in "qkv"} | {"attention.o": row, "mlp.0": column, "mlp.2": row}
    # One input for q, k and v together: with one each, the backward would sum three gradients
    shared = PrepareModuleInput(
        input_layouts=Shard(1) if sp else Replicate(), desired_input_layouts=Replicate()
    )
    styles |= {"attention": shared, "mlp": shared}
    if sp:
        styles |= {"norm1": SequenceParallel(), "norm2": SequenceParallel()}
    model = torch.nn.Sequential(*(Block(width) for _ in range(layers)))
    for block in model:
        parallelize_module(block, mesh, styles)
    x = torch.zeros(1, 16 // fake_ranks if sp else 16, width, requires_grad=True)
    with CommDebugMode() as forward:
        y = model(x)
    with CommDebugMode() as backward:
        (y.to_local() if isinstance(y, DTensor) else y).sum().backward()

    shape = transformer(kv_heads=8, group=1, ffn=4 * width, gated=False)
    plan = shard(shape, fake_ranks, sequence=16, sequence_parallel=sp, regather=False)
    torch_names = {
        ALL_REDUCE: "all_reduce",
        REDUCE_SCATTER: "reduce_scatter_tensor",
        ALL_GATHER: "all_gather_into_tensor",
    }
    for phase, counted in ((FORWARD, forward), (BACKWARD, backward)):
        expected = {}
        for c in plan.layer:
            if c.phase is phase:
                name = torch_names[c.collective]
                expected[name] = expected.get(name, 0) + c.count
        found = short(counted)
        assert found == expected, phase


def test_torch_takes_three_all_reduces_for_the_loss(fake_ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = init_device_mesh("cpu", (fake_ranks,))
    logits = DTensor.from_local(torch.zeros(6, 2, requires_grad=True), mesh, [Shard(1)])
    with loss_parallel(), CommDebugMode() as counter:
        functional.cross_entropy(logits, torch.arange(6)).backward()
    assert short(counter) == {"all_reduce": len(shard(MODELS["llama-3-8b"], 8).at("loss", FORWARD))}


# Validity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
def test_every_sharding_is_valid(name):
    for t in usable(padded_vocabulary(DENSE[name], 64)):
        model = padded_vocabulary(DENSE[name], t)
        for sp, training, regather, recompute in SWITCHES:
            how = {"sequence_parallel": sp, "training": training, "regather": regather}
            validate(shard(model, t, sequence=4 * t, recompute=recompute, **how))


@given(sharded(), st.data())
def test_no_collective_can_be_left_out_doubled_or_exchanged(plan, data):
    validate(plan)
    if plan.communications:
        i = data.draw(st.integers(0, len(plan.communications) - 1))
        before, call, after = plan.communications[:i], plan.communications[i], plan.communications[i + 1 :]
        others = sorted(set(Collective) - {call.collective}, key=str)
        broken = [before + after, (*before, call, call, *after)]
        broken += [(*before, replace(call, collective=other), *after) for other in others]
        broken.append((*before, replace(call, count=call.count + 1), *after))
        broken.append((*before, replace(call, ranks=call.ranks + 1), *after))
        for communications in broken:
            with pytest.raises(ValueError):
                validate(replace(plan, communications=communications))


def test_what_is_invalid_is_said_where():
    plan = shard(MODELS["llama-3-8b"], 8)

    def without(site, phase):
        kept = tuple(c for c in plan.communications if (c.site, c.phase) != (site, phase))
        return replace(plan, communications=kept)

    for site, phase, message in (
        ("ffn_out", FORWARD, "ffn_out, forward: the output is a part of a sum on each rank"),
        ("attention_in", BACKWARD, "attention_in, backward: the gradient of the input is a part of a sum"),
        ("loss", FORWARD, "loss, forward: 0 collectives: must be 3 all_reduces"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(without(site, phase))
    plan = shard(MODELS["llama-3-8b"], 16, sequence_parallel=True)
    for what in ("gradients of whole parameters", "gradients of copied KV heads"):
        kept = tuple(c for c in plan.communications if c.what != what)
        with pytest.raises(ValueError, match=f"gradients, step: {what}: must be summed once"):
            validate(replace(plan, communications=kept))
    # Without sequence parallelism the gradients of whole parameters are equal; summed, they are t times
    summed = plan.at("gradients", STEP)[0]
    plan = shard(MODELS["llama-3-8b"], 16)
    with pytest.raises(ValueError, match="gradients of whole parameters: must not be summed so"):
        validate(replace(plan, communications=(*plan.communications, summed)))


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "t", "how", "error", "message"),
    [
        ("llama-3-8b", 0, {}, ValueError, "tensor_parallel=0: must be at least 1"),
        ("llama-3-8b", 2.0, {}, TypeError, r"tensor_parallel=2\.0: must be an int"),
        ("llama-3-8b", True, {}, TypeError, "tensor_parallel=True: must be an int"),
        ("llama-3-8b", 3, {}, ValueError, "tensor_parallel=3: must divide attention_heads=32 without rest"),
        ("llama-3-8b", 64, {}, ValueError, "tensor_parallel=64: must divide attention_heads=32"),
        ("gpt3-175b", 8, {}, ValueError, "must divide vocab_size=50257 without rest; see padded_vocabulary"),
        ("qwen2.5-7b", 7, {}, ValueError, "tensor_parallel=7: must divide ffn_hidden_size=18944"),
        ("deepseek-v3", 8, {}, ValueError, "model: must be one without mla and moe"),
        ("llama-3-8b", 8, {"batch": 0}, ValueError, "batch=0: must be at least 1"),
        ("llama-3-8b", 8, {"sequence": 1.5}, TypeError, r"sequence=1\.5: must be an int"),
        (
            "llama-3-8b",
            8,
            {"sequence": 100, "sequence_parallel": True},
            ValueError,
            "sequence=100: must be a multiple of tensor_parallel=8 with sequence_parallel",
        ),
        ("llama-3-8b", 8, {"sequence_parallel": 1}, TypeError, "sequence_parallel=1: must be True or False"),
        ("llama-3-8b", 8, {"recompute": "some"}, ValueError, "recompute='some': must be one of none, "),
        ("llama-3-8b", 8, {"itemsize": 0}, ValueError, "itemsize=0: must be > 0 and finite"),
        ("llama-3-8b", 8, {"itemsize": "2"}, TypeError, "itemsize='2': must be a number"),
    ],
)
def test_what_cannot_be_cut_is_refused(model, t, how, error, message):
    with pytest.raises(error, match=message):
        shard(MODELS[model], t, **how)


def test_kv_heads_must_divide_or_be_divided():
    model = transformer(kv_heads=4, group=3, ffn=48)  # 12 query heads
    with pytest.raises(ValueError, match="tensor_parallel=6: must divide kv_heads=4 or be a multiple of it"):
        shard(model, 6)
    assert usable(model) == (1, 2, 4, 12)


def test_a_model_is_asked_for():
    with pytest.raises(TypeError, match="model='llama-3-8b': must be a Transformer"):
        shard("llama-3-8b", 8)
    with pytest.raises(ValueError, match="multiple=0: must be at least 1"):
        padded_vocabulary(MODELS["gpt2"], 2, multiple=0)


def test_a_tensor_is_cut_evenly_or_not_at_all():
    with pytest.raises(ValueError, match="q: pieces=3: must divide its 8 without rest"):
        Tensor("q", "attention_in", (8, 8), 0, 3, 3, 1, 2)
    with pytest.raises(ValueError, match="k: pieces=2: must divide ranks=3"):
        Tensor("k", "attention_in", (8, 8), 0, 2, 3, 1, 2)
    with pytest.raises(ValueError, match="norm: pieces=2: must be 1 where no axis is cut"):
        Tensor("norm", "attention_in", (8,), None, 2, 2, 1, 2)
    whole = Tensor("norm", "attention_in", (8,), None, 1, 2, 1, 2)
    with pytest.raises(ValueError, match="norm: not cut, so it has no bounds"):
        whole.bounds(0)
    with pytest.raises(ValueError, match="rank=2: must be from 0 to 1"):
        Tensor("q", "attention_in", (8, 8), 0, 2, 2, 1, 2).bounds(2)
