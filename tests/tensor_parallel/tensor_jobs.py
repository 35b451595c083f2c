"""The whole model written plainly, and what ranks do beside it; here, for new processes to import."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from gpuedu.tensor_parallel.run import (
    ColumnParallelLinear,
    Decoder,
    Dropout,
    Group,
    RowParallelLinear,
    VocabParallelEmbedding,
    alone,
    layout,
    shard,
    vocab_parallel_cross_entropy,
    world,
)
from gpuedu.transformer import Transformer

State = Mapping[str, torch.Tensor]
BATCH, TOKENS = 2, 8

LLAMA = Transformer(
    layers=2, hidden_size=12, attention_heads=4, kv_heads=2, head_dim=6, ffn_hidden_size=20, gated_ffn=True,
    vocab_size=24, tied_embeddings=False, biases="none", norm="rmsnorm",
)  # fmt: skip
GPT = Transformer(
    layers=2, hidden_size=16, attention_heads=4, kv_heads=4, head_dim=4, ffn_hidden_size=32, gated_ffn=False,
    vocab_size=24, tied_embeddings=True, biases="all", norm="layernorm", learned_positions=11,
)  # fmt: skip
SHAPES = {
    "llama": LLAMA,
    "gpt": GPT,
    "one KV head": replace(LLAMA, kv_heads=1, layers=1),
    "KV bias, one KV head": replace(LLAMA, kv_heads=1, biases="qkv", tied_embeddings=True),
    "as many KV heads": replace(LLAMA, kv_heads=4, layers=1, biases="all"),
    "eight heads, two KV": replace(LLAMA, attention_heads=8, head_dim=4, biases="qkv", norm="layernorm"),
    "two KV, learned": replace(GPT, kv_heads=2, gated_ffn=True, tied_embeddings=False),
}


# --- the whole model ---------------------------------------------------------------------------------


def plain_norm(x, state, name):
    weight = state[f"{name}.weight"]
    if f"{name}.bias" in state:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weight + state[f"{name}.bias"]
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def plain_linear(x, state, name):
    y = torch.einsum("bti,oi->bto", x, state[f"{name}.weight"])
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def plain_rotation(x):
    """Each pair (i, i + d/2) of a head as one complex number, turned by position / 10000^(2i/d)."""
    tokens, width = x.shape[1], x.shape[-1]
    rates = 10_000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    turn = torch.polar(torch.ones(tokens, width // 2).double(), torch.outer(torch.arange(tokens), rates))
    if x.dtype == torch.float32:
        turn = turn.to(torch.complex64)
    pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * turn[:, None]
    return torch.cat((pairs.real, pairs.imag), -1)


def plain_attention(x, state, name, shape, keep=None):
    """Head by head; ``keep`` is the mask of the dropout of the probabilities, already scaled."""
    d, a, kv = shape.head_dim, shape.attention_heads, shape.kv_heads
    q, k, v = plain_linear(x, state, f"{name}.qkv").split([a * d, kv * d, kv * d], -1)
    q, k, v = (y.unflatten(-1, (-1, d)) for y in (q, k, v))
    if not shape.learned_positions:
        q, k = plain_rotation(q), plain_rotation(k)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    outputs = []
    for head in range(a):
        own = head // (a // kv)
        scores = q[:, :, head] @ k[:, :, own].transpose(1, 2) / d**0.5
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        outputs.append((weights if keep is None else weights * keep[:, head]) @ v[:, :, own])
    return plain_linear(torch.cat(outputs, -1), state, f"{name}.out")


def plain_ffn(x, state, name, shape):
    if shape.gated_ffn:
        gate, up = plain_linear(x, state, f"{name}.gate_up").split(shape.ffn_hidden_size, -1)
        return plain_linear(gate * torch.sigmoid(gate) * up, state, f"{name}.down")
    return plain_linear(functional.gelu(plain_linear(x, state, f"{name}.fc1")), state, f"{name}.fc2")


def plain_logits(state: State, shape: Transformer, ids: torch.Tensor, masks=None) -> torch.Tensor:
    """Logits of all tokens; ``masks`` are those of the dropouts in the order in which they come."""
    masks = iter(masks or ())

    def drop(x):
        return x * next(masks, 1.0)

    x = state["embedding.weight"][ids]
    if shape.learned_positions:
        x = x + state["positions"][: ids.shape[1]]
    x = drop(x)
    for layer in range(shape.layers):
        block = f"blocks.{layer}"
        normed = plain_norm(x, state, f"{block}.attention_norm")
        x = x + drop(plain_attention(normed, state, f"{block}.attention", shape, next(masks, None)))
        x = x + drop(plain_ffn(plain_norm(x, state, f"{block}.ffn_norm"), state, f"{block}.ffn", shape))
    head = state["embedding.weight" if shape.tied_embeddings else "head.weight"]
    return (plain_norm(x, state, "norm") @ head.T)[..., : shape.vocab_size]


def plain_loss(state, shape, ids, targets, masks=None) -> torch.Tensor:
    return functional.cross_entropy(plain_logits(state, shape, ids, masks).flatten(0, 1), targets.flatten())


# --- what both are given ------------------------------------------------------------------------------


def random_state(module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict:
    """Values for every parameter of a whole module, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(p.shape, generator=generator, dtype=torch.float64) / max(1, p.shape[-1]) ** 0.5
               + ("norm" in name and name.endswith("weight"))).to(dtype)
        for name, p in module.state_dict().items()
    }  # fmt: skip


def batch(shape: Transformer, tokens: int = TOKENS, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets, some of which do not count."""
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(shape.vocab_size, (2, BATCH, tokens), generator=generator)
    return ids, targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.2, -100)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters()}


# --- the decoder --------------------------------------------------------------------------------------


def whole_step(shape: Transformer, dtype=torch.float64, padded: int | None = None, masks=None):
    """State, loss, logits of the last tokens and gradients of the plain model."""
    state = random_state(Decoder(shape, alone(), padded_vocab_size=padded), dtype)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    ids, targets = batch(shape)
    loss = plain_loss(leaves, shape, ids, targets, masks)
    loss.backward()
    with torch.no_grad():
        last = plain_logits(state, shape, ids)[:, -1]
    zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    return state, loss.detach(), last, {n: zeros[n] if v.grad is None else v.grad for n, v in leaves.items()}


def decoder_errors(group: Group, shape: Transformer, *, dtype=torch.float64, finish=True, **options) -> dict:
    """Errors of the loss, of the last logits and of every gradient, against the plain model on this rank."""
    state, loss, last, expected = whole_step(shape, dtype, options.get("padded_vocab_size"))
    model = Decoder(shape, group, **options).to(dtype)
    cuts = layout(model)
    model.load_state_dict(shard(state, cuts, group.size)[group.rank])
    ids, targets = batch(shape)
    ours = model(ids, targets)
    ours.backward()
    if finish:
        model.sum_gradients()
    errors = {"loss": error(ours.detach(), loss)}
    with torch.no_grad():
        errors["last logits"] = error(model(ids), last)
    wanted = shard(expected, cuts, group.size)[group.rank]
    return errors | {name: error(grad, wanted[name]) for name, grad in gradients(model).items()}


# --- one layer at a time ------------------------------------------------------------------------------


def layers(group: Group, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """Errors of the single layers in all their forms: output, gradient of the input, of every parameter."""
    errors = {}
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 8, 12, generator=generator, dtype=torch.float64).to(dtype)
    for bias in (True, False):
        for gather in (True, False):
            for sp, again in ((False, True), (True, True), (True, False)):
                layer = ColumnParallelLinear(
                    12, 16, group, bias=bias, gather_output=gather, sequence_parallel=sp, regather=again
                ).to(dtype)
                name = f"column {bias=} {gather=} {sp=} {again=}"
                errors |= linear_errors(group, layer, x, (16, 12), name, -2 if sp else None,
                                        None if gather else -1)  # fmt: skip
        for parallel in (True, False):
            for sp in (False, True):
                layer = RowParallelLinear(
                    12, 16, group, bias=bias, input_is_parallel=parallel, sequence_parallel=sp
                ).to(dtype)
                name = f"row {bias=} {parallel=} {sp=}"
                errors |= linear_errors(group, layer, x, (16, 12), name, -1 if parallel else None,
                                        -2 if sp else None)  # fmt: skip
    for sp in (False, True):
        errors |= embedding_errors(group, dtype, sp)
    for reduction in ("mean", "sum", "none"):
        errors |= cross_entropy_errors(group, dtype, reduction)
    return errors


def piece(x: torch.Tensor, axis: int | None, group: Group) -> torch.Tensor:
    return x if axis is None else x.chunk(group.size, axis)[group.rank]


def linear_errors(group, layer, x, shape, name, axis_in, axis_out) -> dict[str, float]:
    """Errors of a cut product whose input and output are cut along these axes."""
    generator = torch.Generator().manual_seed(4)
    whole = nn.Linear(shape[1], shape[0], bias=layer.bias is not None, dtype=x.dtype)
    for parameter in whole.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    weight = torch.randn(*x.shape[:-1], shape[0], generator=generator, dtype=torch.float64).to(x.dtype)
    x = x.clone().requires_grad_()
    expected = whole(x)
    expected.backward(weight)

    layer.load_state_dict(shard(whole.state_dict(), layout(layer), group.size)[group.rank])
    own_x = piece(x.detach(), axis_in, group).clone().requires_grad_()
    y = layer(own_x)
    y.backward(piece(weight, axis_out, group))
    wanted = shard({n: p.grad for n, p in whole.named_parameters()}, layout(layer), group.size)[group.rank]
    found = gradients(layer)
    if isinstance(layer, RowParallelLinear) and layer.sequence_parallel and layer.bias is not None:
        wanted["bias"] = piece(weight, -2, group).sum((0, 1))  # its own tokens' part of the sum
    return {
        f"{name}: output": error(y.detach(), piece(expected.detach(), axis_out, group)),
        f"{name}: input": error(own_x.grad, piece(x.grad, axis_in, group)),
    } | {f"{name}: {n}": error(found[n], wanted[n]) for n in wanted}


def embedding_errors(group, dtype, sp) -> dict[str, float]:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(24, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(24, (2, 8), generator=generator)
    weight = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64).to(dtype)
    expected = table[ids]
    expected.backward(weight)
    layer = VocabParallelEmbedding(24, 6, group, sequence_parallel=sp).to(dtype)
    layer.weight.data = piece(table.detach(), 0, group).clone()
    axis = -2 if sp else None
    y = layer(ids)
    y.backward(piece(weight, axis, group))
    return {
        f"embedding {sp=}: output": error(y.detach(), piece(expected.detach(), axis, group)),
        f"embedding {sp=}: weight": error(layer.weight.grad, piece(table.grad, 0, group)),
    }


def cross_entropy_errors(group, dtype, reduction) -> dict[str, float]:
    """With logits large enough to overflow without the maximum, padding, and targets that do not count."""
    errors = {}
    generator = torch.Generator().manual_seed(6)
    logits = 300 * torch.randn(3, 5, 24, generator=generator, dtype=torch.float64).to(dtype)
    for classes, ignored in ((24, -100), (24, 7), (17, -100)):
        targets = torch.randint(classes, (3, 5), generator=generator)
        targets[0, :2] = ignored
        whole = logits.clone().requires_grad_()
        expected = functional.cross_entropy(
            whole[..., :classes].flatten(0, 1), targets.flatten(), ignore_index=ignored, reduction=reduction
        )
        expected = expected.view(3, 5) if reduction == "none" else expected
        weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
        expected.backward(weight)
        own = piece(logits, -1, group).clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(
            own, targets, group, vocab_size=classes, ignore_index=ignored, reduction=reduction
        )
        loss.backward(weight)
        name = f"cross entropy {reduction} {classes=} {ignored=}"
        errors[f"{name}: output"] = error(loss.detach(), expected.detach())
        wanted = piece(whole.grad, -1, group)
        if wanted.any():
            errors[f"{name}: logits"] = error(own.grad, wanted)
        else:
            assert not own.grad.any()
    return errors


# --- what the processes do ----------------------------------------------------------------------------


def all_decoders(group: Group, names=tuple(SHAPES), dtype=torch.float64) -> dict[str, float]:
    """The worst error of each shape with each kind of parallelism."""
    ways = {"TP": {}, "SP": {"sequence_parallel": True},
            "SP, kept": {"sequence_parallel": True, "regather": False}}  # fmt: skip
    return {
        f"{name}, {way}": max(decoder_errors(group, SHAPES[name], dtype=dtype, **options).values())
        for name in names
        for way, options in ways.items()
    }


LAUNCHED = ("llama", "gpt", "KV bias, one KV head")  # on processes; all on simulated ranks


def on_processes() -> tuple[dict[str, float], dict[str, float]]:
    """Errors of layers and models over torch.distributed; of models in float32."""
    group = world()
    return layers(group) | all_decoders(group, LAUNCHED), all_decoders(group, LAUNCHED[:1], torch.float32)


def planned(group: Group, shape: Transformer, training: bool, **options) -> tuple:
    """What one step of a model with these weights counts, and on this rank the number of parameters."""
    model = Decoder(shape, group, **options)
    ids, targets = batch(shape)
    if training:
        model(ids, targets).backward()
        model.sum_gradients()
    else:
        with torch.no_grad():
            model(ids)
    calls = Counter((call.phase, call.collective, call.nbytes, call.ranks) for call in group.calls)
    return calls, sum(p.numel() for p in model.parameters())


def with_dropout(group: Group, shape: Transformer, p: float, sp: bool) -> tuple[list, torch.Tensor, dict]:
    """The mask of every dropout in order, with whether each rank has its own; loss, gradients."""
    masks = []

    def remember(module, inputs, output):
        masks.append((module.sharded, (output != 0).double() / (1 - p)))

    model = Decoder(shape, group, sequence_parallel=sp, dropout=p, seed=3).double()
    state = random_state(Decoder(shape, alone()))
    model.load_state_dict(shard(state, layout(model), group.size)[group.rank])
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(remember)
    ids, targets = batch(shape)
    loss = model(ids, targets)
    loss.backward()
    model.sum_gradients()
    return masks, loss.detach(), gradients(model)


def train(group: Group, shape: Transformer, state: State, steps: range, sp: bool) -> tuple[list, dict]:
    """Losses of some steps of gradient descent, and what this rank then holds."""
    model = Decoder(shape, group, sequence_parallel=sp).double()
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(*batch(shape, seed=step))
        loss.backward()
        model.sum_gradients()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def killed_in_training() -> None:
    """Rank 1 dies in its second step."""
    group = world()
    model = Decoder(GPT, group)
    for step in range(100):
        if (step, group.rank) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        model(*batch(GPT)).backward()


def one_token_more(group: Group | None = None) -> None:
    """Rank 1 has a longer batch than the others."""
    group = group or world()
    layer = ColumnParallelLinear(4, 4, group)
    layer(torch.ones(1, 5 + (group.rank == 1), 4)).sum().backward()
