"""Tensor parallelism on real tensors: traffic, checkpoints, random state, the traps, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
import tensor_jobs as jobs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from gpuedu.all_reduce.plan import Collective
from gpuedu.distributed import RankFailed, launch
from gpuedu.tensor_parallel import plan, run
from gpuedu.tensor_parallel.plan import Phase
from gpuedu.tensor_parallel.run import (
    ColumnParallelLinear,
    Cut,
    Decoder,
    Dropout,
    Part,
    RandomState,
    RowParallelLinear,
    VocabParallelEmbedding,
    alone,
    layout,
    measure,
    planned_traffic,
    reshard,
    shard,
    simulate,
    sum_gradients,
    tally,
    unshard,
    vocab_parallel_cross_entropy,
    world,
)
from gpuedu.tensor_parallel.run import __main__ as command
from gpuedu.tensor_parallel.run.measure import check_plan
from gpuedu.transformer import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT, WRONG = 1e-12, 1e-6
AR, AG, RS = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER


def errors_of(ranks, shape, **options):
    """The largest error on any rank, by name."""
    found = simulate(ranks, lambda group: jobs.decoder_errors(group, shape, **options))
    return {name: max(each[name] for each in found) for name in found[0]}


def wrong(errors):
    """What is not just inexact."""
    assert all(error < EXACT or error > WRONG for error in errors.values()), errors
    return {name for name, error in errors.items() if error > WRONG}


# --- traffic -------------------------------------------------------------------------------------------


def calls_of(sharding):
    """As a group counts them."""
    found = Counter()
    for c in sharding.communications:
        found[c.phase, c.collective, c.nbytes, c.ranks] += c.count
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", jobs.SHAPES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_collectives_bytes_and_weights_are_those_of_the_plan(ranks, name, training):
    shape = jobs.SHAPES[name]
    for sp, regather in ((False, True), (True, True), (True, False)):
        how = {"sequence_parallel": sp, "regather": regather}
        found = simulate(ranks, lambda group: jobs.planned(group, shape, training, **how))  # noqa: B023
        sharding = plan.shard(
            shape, ranks, batch=jobs.BATCH, sequence=jobs.TOKENS, training=training, itemsize=4, **how
        )
        weights = sum(weight.count * weight.local_elements for weight in sharding.weights)
        assert found == [(calls_of(sharding), weights)] * ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_trap_10_four_all_reduces_a_layer_in_training_and_two_in_inference(ranks):
    def count(layers, training):
        shape = replace(jobs.GPT, layers=layers)
        calls, _ = simulate(ranks, lambda group: jobs.planned(group, shape, training))[0]
        found = Counter()
        for (phase, collective, *_), n in calls.items():
            found[phase, collective] += n
        return found

    assert count(5, True) - count(4, True) == {(Phase.FORWARD, AR): 2, (Phase.BACKWARD, AR): 2}
    assert count(5, False) - count(4, False) == {(Phase.FORWARD, AR): 2}


def test_the_loss_exchanges_three_numbers_a_token():
    def loss(group):
        logits = torch.zeros(2, 8, 5, requires_grad=True)
        vocab_parallel_cross_entropy(logits, torch.zeros(2, 8, dtype=torch.int64), group).backward()
        return tally(group.calls)

    assert simulate(4, loss) == [{(Phase.FORWARD, AR): (3, 3 * 2 * 8 * 4)}] * 4


def test_one_rank_sends_nothing():
    group = alone()
    model = Decoder(jobs.LLAMA, group, sequence_parallel=True)
    model(*jobs.batch(jobs.LLAMA)).backward()
    model.sum_gradients()
    assert group.calls == []


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_conjugate_is_the_transpose(ranks, axis):
    """<A x, y> = <x, A' y>, both summed over all ranks, as far as ranks hold different values."""
    pairs = {
        # function: does each rank hold its own input, its own output
        -1: {run.copy_to: (False, True), run.reduce_from: (True, False),
             run.scatter_to: (False, True), run.gather_from: (True, False)},
        -2: {run.gather_tokens: (True, True), run.reduce_scatter_tokens: (True, True),
             run.scatter_tokens: (False, True)},
    }[axis]  # fmt: skip

    def products(group, function, own_in, own_out):
        random = [torch.Generator().manual_seed(seed) for seed in (0, 1 + group.rank)]
        x = torch.randn(6, 6, 6, generator=random[own_in], dtype=torch.float64, requires_grad=True)
        y = function(x, group)
        weight = torch.randn(y.shape, generator=random[own_out], dtype=torch.float64)
        y.backward(weight)
        return (y * weight).sum().item(), (x * x.grad).sum().item()

    for function, (own_in, own_out) in pairs.items():
        found = simulate(ranks, products, function, own_in, own_out)
        forward = sum(f for f, _ in found) / (1 if own_out else ranks)
        backward = sum(b for _, b in found) / (1 if own_in else ranks)
        assert forward == pytest.approx(backward, rel=1e-12), function.__name__


@pytest.mark.parametrize("ranks", [2, 4])
def test_regathering_keeps_only_own_tokens(ranks):
    def kept(group, regather):
        sizes = []
        layer = ColumnParallelLinear(12, 8, group, sequence_parallel=True, regather=regather)
        x = torch.randn(2, 8 // group.size, 12, requires_grad=True)
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(x)
        return sum(sizes) - layer.weight.numel()

    whole = 2 * 8 * 12
    assert simulate(ranks, kept, True) == [whole // ranks] * ranks
    assert simulate(ranks, kept, False) == [whole] * ranks


# --- the traps -----------------------------------------------------------------------------------------


def test_trap_a_bias_added_by_every_rank(monkeypatch):
    def before_the_sum(self, x):
        return run.reduce_from(functional.linear(x, self.weight, self.bias), self.group)

    monkeypatch.setattr(RowParallelLinear, "forward", before_the_sum)
    assert not wrong(errors_of(1, jobs.GPT))
    assert "loss" in wrong(errors_of(2, jobs.GPT))


def test_trap_a_row_parallel_input_that_was_not_scattered():
    def whole_input(group):
        RowParallelLinear(8, 4, group)(torch.ones(1, 3, 8))

    message = r"x of shape \(1, 3, 8\): must be \(..., tokens, 4\)"
    with pytest.raises(ValueError, match=message):
        simulate(2, whole_input)


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_trap_gradients_of_norms_not_summed_and_the_forward_does_not_tell(name):
    shape = jobs.SHAPES[name]
    missing = wrong(errors_of(2, shape, sequence_parallel=True, finish=False))
    cut = layout(Decoder(shape, alone()))
    whole = {n for n, _ in Decoder(shape, alone()).named_parameters()} - cut.keys()
    assert missing == whole and {"norm.weight", "blocks.0.ffn_norm.weight"} <= whole
    assert not wrong(errors_of(2, shape, sequence_parallel=True))


def test_trap_gradients_of_copied_kv_heads_not_summed():
    shape = jobs.SHAPES["KV bias, one KV head"]
    qkv = {f"blocks.{layer}.attention.qkv.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
    assert wrong(errors_of(4, shape, finish=False)) == qkv
    assert not wrong(errors_of(4, shape))


@pytest.mark.parametrize("fused", ["qkv", "gate_up"])
def test_trap_fused_matrices_cut_as_if_they_were_one(monkeypatch, fused):
    take = Cut.take

    def naive(self, whole, rank, ranks):
        names = {part.name for part in self.parts}
        hit = {"qkv": "kv_heads", "gate_up": "ffn_hidden_size"}[fused] in names and len(self.parts) > 1
        return whole.chunk(ranks, self.axis)[rank].clone() if hit else take(self, whole, rank, ranks)

    monkeypatch.setattr(Cut, "take", naive)
    assert not wrong(errors_of(1, jobs.LLAMA))
    assert {"loss", "last logits"} <= wrong(errors_of(2, jobs.LLAMA))


def test_trap_comparing_only_the_forward_misses_a_forgotten_f(monkeypatch):
    monkeypatch.setattr(run.linear, "copy_to", lambda x, group: x)
    errors = errors_of(2, jobs.LLAMA)
    assert errors["loss"] < EXACT and errors["last logits"] < EXACT
    assert {"embedding.weight", "blocks.0.attention.qkv.weight", "norm.weight"} <= wrong(errors)


def test_trap_repeat_for_repeat_interleave(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda x, n, axis: x.repeat(1, n, 1, 1))
    shape = jobs.SHAPES["eight heads, two KV"]
    assert "loss" in wrong(errors_of(1, shape))
    # With one KV head a rank there is nothing to mix up: a test on such ranks alone would not see it
    assert not wrong(errors_of(2, shape))


# --- random state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_dropout_is_the_same_where_ranks_hold_the_same_and_different_elsewhere(ranks, sp):
    shape = jobs.LLAMA
    results = simulate(ranks, jobs.with_dropout, shape, 0.3, sp)
    masks = []
    for of_ranks in zip(*(masks for masks, _, _ in results), strict=True):
        sharded, pieces = of_ranks[0][0], [mask for _, mask in of_ranks]
        if not sharded:
            assert all(torch.equal(piece, pieces[0]) for piece in pieces)
            masks.append(pieces[0])
            continue
        assert ranks == 1 or not any(torch.equal(piece, pieces[0]) for piece in pieces[1:])
        masks.append(torch.cat(pieces, 1))  # heads of (batch, heads, ...), tokens of (batch, tokens, ...)
    assert len(masks) == 1 + 3 * shape.layers

    _, loss, _, expected = jobs.whole_step(shape, masks=masks)
    cuts = layout(Decoder(shape, alone()))
    for rank, (_, own_loss, gradients) in enumerate(results):
        assert jobs.error(own_loss, loss) < EXACT
        wanted = shard(expected, cuts, ranks)[rank]
        assert all(jobs.error(gradients[name], wanted[name]) < EXACT for name in wanted)


def test_dropout_goes_on_from_step_to_step_and_stops_in_evaluation():
    dropout = Dropout(0.5, RandomState(0, 0), sharded=True)
    x = torch.ones(100)
    assert not torch.equal(dropout(x), dropout(x))
    assert torch.equal(dropout.eval()(x), x)


# --- checkpoints ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(jobs.SHAPES)), padded=st.booleans())
def test_resharding_is_exact(data, name, padded):
    shape = jobs.SHAPES[name]
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    model = Decoder(shape, alone(), padded_vocab_size=28 if padded else None)
    cuts, state = layout(model), jobs.random_state(model)
    shards = shard(state, cuts, before)
    again = reshard(shards, cuts, after)
    for found, wanted in ((unshard(shards, cuts), state), (unshard(again, cuts), state)):
        assert list(found) == list(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)
    for ours, direct in zip(again, shard(state, cuts, after), strict=True):
        assert all(torch.equal(ours[n], direct[n]) for n in state)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_shard_is_what_a_rank_of_the_same_seed_makes(ranks):
    for shape in jobs.SHAPES.values():
        whole = Decoder(shape, alone(), padded_vocab_size=32)
        shards = shard(whole.state_dict(), layout(whole), ranks)
        own = simulate(ranks, lambda group: Decoder(shape, group, padded_vocab_size=32).state_dict())  # noqa: B023
        for ours, wanted in zip(own, shards, strict=True):
            assert ours.keys() == wanted.keys() and all(torch.equal(ours[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("name", ["gpt", "KV bias, one KV head"])
def test_training_goes_on_after_a_change_of_ranks(name):
    shape = jobs.SHAPES[name]
    whole = Decoder(shape, alone())
    cuts, state = layout(whole), jobs.random_state(whole)
    expected, trained = jobs.train(alone(), shape, state, range(6), False)
    losses, shards = [], [state]
    for ranks, sp in ((2, True), (4, False), (1, False)):
        own = reshard(shards, cuts, ranks)
        steps = range(len(losses), len(losses) + 2)
        results = simulate(ranks, lambda group: jobs.train(group, shape, own[group.rank], steps, sp))  # noqa: B023
        shards = [state for _, state in results]
        losses += results[0][0]
    assert losses == pytest.approx(expected, rel=1e-10)
    found = unshard(shards, cuts)
    assert all(jobs.error(found[name], trained[name]) < 1e-10 for name in trained)


def test_copies_that_have_drifted_apart_are_noticed():
    shape = jobs.SHAPES["one KV head"]
    whole = Decoder(shape, alone())
    cuts = layout(whole)
    for name, message in (
        ("blocks.0.attention.qkv.weight", "qkv.weight: kv_heads: the copies on ranks 0 and 3 differ"),
        ("norm.weight", "norm.weight: ranks 0 and 3 differ"),
    ):
        shards = shard(whole.state_dict(), cuts, 4)
        shards[3][name][-1] += 1
        with pytest.raises(ValueError, match=message):
            unshard(shards, cuts)


# --- bad input -----------------------------------------------------------------------------------------

IDS = torch.zeros(2, 8, dtype=torch.int64)
LOGITS = torch.zeros(2, 8, 3)


@pytest.mark.parametrize(
    ("ranks", "changed", "message"),
    [
        (4, {"attention_heads": 6, "kv_heads": 2}, "attention_heads=6: must be a multiple of the 4 ranks"),
        (4, {"attention_heads": 12, "kv_heads": 3}, "kv_heads=3: must be a multiple or a divisor of the 4"),
        (4, {"ffn_hidden_size": 21}, "ffn_hidden_size=21: must be a multiple of the 4 ranks"),
        (4, {"vocab_size": 22}, "vocab_size=22: must be a multiple of the 4 ranks; padded_vocab_size=24"),
        (1, {"head_dim": 3}, "head_dim=3: must be even"),
    ],
)
def test_axes_that_do_not_divide_are_refused(ranks, changed, message):
    with pytest.raises(ValueError, match=message):
        simulate(ranks, lambda group: Decoder(replace(jobs.LLAMA, **changed), group))


def test_models_of_another_kind_are_refused():
    for name in ("deepseek-v3",):
        with pytest.raises(ValueError, match="must be one without mla and moe"):
            Decoder(MODELS[name], alone())
    with pytest.raises(TypeError, match="shape='gpt2': must be a Transformer"):
        Decoder("gpt2", alone())


def column(group, x, **options):
    return ColumnParallelLinear(4, 8, group, **options)(x)


def loss_of(group, logits=None, targets=IDS, **options):
    return vocab_parallel_cross_entropy(
        torch.zeros(2, 8, 3) if logits is None else logits, targets, group, **options
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: ColumnParallelLinear(4, 7, g), ValueError, "out_features=7: must be a multiple of the 2"),
        (lambda g: RowParallelLinear(7, 4, g), ValueError, "in_features=7: must be a multiple of the 2"),
        (lambda g: ColumnParallelLinear(0, 8, g), ValueError, "in_features=0: must be at least 1"),
        (lambda g: ColumnParallelLinear(4, 8.0, g), TypeError, "out_features=8.0: must be an int"),
        (
            lambda g: ColumnParallelLinear(4, [Part("a", 4, 4)] * 2, g, gather_output=True),
            ValueError,
            "gather_output=True with 2 parts: must be False",
        ),
        (lambda g: column(g, torch.ones(1, 3, 5)), ValueError, r"x of shape \(1, 3, 5\): must be"),
        (lambda g: column(g, torch.ones(4)), ValueError, r"x of shape \(4,\): must be \(..., tokens, 4\)"),
        (lambda g: column(g, torch.ones(1, 3, 4).double()), TypeError, "x of torch.float64: must be"),
        (
            lambda g: RowParallelLinear(8, 4, g, sequence_parallel=True)(torch.ones(1, 3, 4)),
            ValueError,
            r"axis -2 of shape \(1, 3, 4\): must be a multiple of the 2 ranks",
        ),
        (
            lambda g: RowParallelLinear(8, 4, g, input_is_parallel=False)(torch.ones(1, 3, 7)),
            ValueError,
            r"axis -1 of shape \(1, 3, 7\): must be a multiple",
        ),
        (lambda g: VocabParallelEmbedding(9, 4, g), ValueError, "vocab_size=9: .* padded_vocab_size=10"),
        (
            lambda g: VocabParallelEmbedding(9, 4, g, padded_vocab_size=11),
            ValueError,
            "padded_vocab_size=11: .* padded_vocab_size=12 would be",
        ),
        (
            lambda g: VocabParallelEmbedding(9, 4, g, padded_vocab_size=8),
            ValueError,
            "padded_vocab_size=8: must be at least vocab_size=9",
        ),
        (
            lambda g: VocabParallelEmbedding(9, 4, g, padded_vocab_size=10)(IDS + 9),
            ValueError,
            "ids: 9: must be from 0 to 8",
        ),
        (lambda g: VocabParallelEmbedding(8, 4, g)(IDS - 1), ValueError, "ids: -1: must be from 0 to 7"),
        (lambda g: VocabParallelEmbedding(8, 4, g)(IDS.float()), TypeError, "ids of torch.float32: must be"),
        (lambda g: loss_of(g, targets=IDS + 6), ValueError, "targets: 6: must be from 0 to 5"),
        (lambda g: loss_of(g, targets=IDS.int()), TypeError, "targets of torch.int32"),
        (lambda g: loss_of(g, targets=IDS[:1]), ValueError, r"targets of shape \(1, 8\): must be \(2, 8\)"),
        (lambda g: loss_of(g, LOGITS.int()), TypeError, "logits of torch.int32"),
        (lambda g: loss_of(g, vocab_size=7), ValueError, "vocab_size=7: must be at most the 6 columns"),
        (
            lambda g: loss_of(g, reduction="max"),
            ValueError,
            "reduction='max': must be one of mean, sum",
        ),
        (lambda g: Decoder(jobs.LLAMA, g, dropout=1.0), ValueError, "dropout=1.0: must be at least 0"),
        (lambda g: Decoder(jobs.LLAMA, g, seed=-1), ValueError, "seed=-1: must be at least 0"),
        (lambda g: Decoder(jobs.LLAMA, g)(IDS[0]), ValueError, r"ids of shape \(8,\): must be \(batch, tok"),
        (
            lambda g: Decoder(jobs.LLAMA, g, sequence_parallel=True)(IDS[:, :7]),
            ValueError,
            "7 tokens: must be a multiple of the 2 ranks",
        ),
        (
            lambda g: Decoder(jobs.GPT, g)(torch.zeros(1, 12, dtype=torch.int64)),
            ValueError,
            "12 tokens: must be at most learned_positions=11",
        ),
        (
            lambda g: sum_gradients(Decoder(jobs.LLAMA, g), g, sequence_parallel=True),
            ValueError,
            "blocks.0.attention_norm.weight: has no gradient: call backward first",
        ),
        (lambda g: shard({}, {}, 0), ValueError, "ranks=0: must be at least 1"),
        (lambda g: shard({}, layout(column_layer(g)), 2), ValueError, "state: lacks bias, weight"),
        (lambda g: unshard([], {}), ValueError, "must be at least 1"),
        (lambda g: unshard([{"a": IDS}, {}], {}), ValueError, r"rank 1 holds \[\]: must be \['a'\]"),
        (
            lambda g: unshard([column_layer(g).state_dict()] * 3, layout(column_layer(g))),
            ValueError,
            "weight: out_features=8: must be a multiple of the 3 ranks",
        ),
        (
            lambda g: unshard([column_layer(g).state_dict()] * 4, layout(column_layer(g))),
            ValueError,
            r"weight: shape \(4, 4\) on rank 0: must have 2 along axis 0 on 4 ranks",
        ),
        (
            lambda g: shard(column_layer(g).state_dict(), layout(column_layer(g)), 2),
            ValueError,
            r"weight: shape \(4, 4\): must have 8 along axis 0, whole",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        simulate(2, call)


def column_layer(group):
    return ColumnParallelLinear(4, 8, group)


@pytest.mark.parametrize(("ranks", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_a_number_of_ranks_that_cannot_be_is_refused(ranks, error):
    with pytest.raises(error, match=f"ranks={ranks}: must be"):
        simulate(ranks, lambda group: None)


def test_the_world_without_processes_is_refused():
    with pytest.raises(RuntimeError, match="no process group: call this under"):
        world()


# --- ranks that do not do the same ---------------------------------------------------------------------


def other_shape(group):
    column(group, torch.ones(1, 3 + (group.rank == 1), 4))


def other_dtype(group):
    layer = column_layer(group).double() if group.rank == 1 else column_layer(group)
    layer(torch.ones(1, 3, 4, dtype=layer.weight.dtype))


def other_layer(group):
    x = torch.ones(1, 3, 4)
    column(group, x) if group.rank == 0 else RowParallelLinear(8, 4, group)(x)


def one_layer_less(group):
    for _ in range(2 - group.rank):
        column(group, torch.ones(1, 3, 4))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            other_shape,
            r"rank 0: copy .* of shape \(1, 3, 4\), float32; rank 1: .* \(1, 4, 4\), float32",
        ),
        (other_dtype, "rank 0: .* float32; rank 1: .* float64"),
        (other_layer, r"rank 0: copy \(backward: all_reduce\) .*; rank 1: all_reduce \(backward: copy\)"),
        (one_layer_less, "rank 0: copy .*; rank 1: the end"),
    ],
)
def test_simulated_ranks_that_do_not_agree_end_with_an_error(fn, message):
    with pytest.raises(ValueError, match=f"the ranks do not agree: {message}"):
        simulate(2, fn)


def test_the_failure_of_one_simulated_rank_ends_all():
    def fail(group):
        if group.rank == 2:
            raise ArithmeticError("out of luck")
        group.all_reduce(torch.ones(1), Phase.FORWARD)

    with pytest.raises(ArithmeticError, match="out of luck") as failure:
        simulate(4, fail)
    assert failure.value.__notes__ == ["on simulated rank 2"]


def test_processes_with_unequal_shapes_end_with_an_error():
    with pytest.raises(
        RankFailed, match=r"the ranks do not agree: rank 0: .*\(1, 5, 4\).*; rank 1: .*\(1, 6, 4\)"
    ):
        launch(2, jobs.one_token_more, timeout_s=60)


def test_a_killed_rank_ends_all():
    before = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
        launch(2, jobs.killed_in_training, timeout_s=60)
    assert time.monotonic() - before < 20  # to start, to train and to notice


# --- the command ---------------------------------------------------------------------------------------

COMMAND = ["-m", "gpuedu.tensor_parallel.run"]


def test_the_command_under_torchrun_prints_counted_and_planned():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--sequence-parallel", "--kv-heads", "1", "--dtype", "bfloat16", "--steps", "2"]
    done = subprocess.run([*torchrun, *COMMAND, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "_" in line.split()[1]]
    assert [(phase, collective, runs) for phase, collective, runs, *_ in rows] == [
        ("forward", "reduce_scatter", "5"),
        ("forward", "all_gather", "5"),
        ("forward", "all_reduce", "3"),
        ("backward", "all_gather", "10"),
        ("backward", "reduce_scatter", "5"),
        ("step", "all_reduce", "2"),
    ]
    assert all(runs == planned and mb == planned_mb for _, _, runs, planned, mb, planned_mb in rows)
    first, last = (float(word) for word in done.stdout.split("loss ")[1].split(" -> "))
    assert last < first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "3"], "tensor_parallel=3: must divide attention_heads=8"),
        (["--sequence-parallel", "--sequence-length", "65"], "sequence=65: must be a multiple"),
        (["--dtype", "int64"], "dtype='int64': must be"),
        (["--ranks", "0"], "argument --ranks: 0: must be at least 1"),
        (["--steps", "0"], "argument --steps: 0: must be at least 1"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments_of_the_command_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tensor_parallel": 4}, "tensor_parallel=4: must be the 2 processes"),
        ({"training": False}, "training=False: must be True"),
        ({"recompute": "full"}, "recompute='full', dropout=False: must be"),
        ({"dropout": True}, "recompute='none', dropout=True: must be"),
        ({"itemsize": 2}, "itemsize=2: must be 4, that of a torch.float32"),
    ],
)
def test_plans_that_are_not_carried_out_are_refused(changed, message):
    how = {"tensor_parallel": 2, "sequence": 8, "dropout": False, "itemsize": 4} | changed
    with pytest.raises(ValueError, match=message):
        check_plan(plan.shard(jobs.LLAMA, **how), 2, torch.float32)


def test_measuring_counts_what_is_planned_however_ranks_wait_for_each_other():
    cut = plan.shard(jobs.LLAMA, 2, sequence=8, sequence_parallel=True, dropout=False, itemsize=4)
    ways = [{}, {"check": False}, {"check": False, "meet": True}]
    checked, plain, met = launch(2, lambda: [measure(cut, 2, **way) for way in ways])[0]
    for each in (checked, plain, met):
        assert each.losses == checked.losses and len(each.losses) == 3
        assert each.traffic == planned_traffic(cut)
        assert 0 < each.communication_s < each.communication_s + each.waiting_s < each.step_s
    assert met.waiting_s > 10 * plain.waiting_s  # a barrier each, against nothing


def test_waiting_is_told_from_what_a_collective_takes():
    def come_late():
        groups = [world(meet=meet) for meet in (True, False)]
        for group in groups:
            group.all_reduce(torch.ones(1), Phase.FORWARD)  # the first of a kind is slow
            time.sleep(0.3 * group.rank)
            group.all_reduce(torch.ones(1), Phase.FORWARD)
        return [group.calls[1] for group in groups]

    (met, unmet), (late, _) = launch(2, come_late)
    assert met.waited_s > 0.2 > met.seconds and late.waited_s < 0.2
    assert unmet.waited_s < 0.2 < unmet.seconds


def test_the_package_itself_does_not_import_torch():
    code = "import sys, gpuedu.tensor_parallel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
