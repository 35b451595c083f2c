"""The same model cut by torch itself: DTensor, with CommDebugMode counting."""

from __future__ import annotations

from collections import Counter

import tensor_jobs
import torch
from tensor_jobs import LLAMA, batch, error, gradients, random_state
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gpuedu.tensor_parallel.run import Decoder, alone, layout, shard, tally, world

SHAPE = LLAMA


class TorchAttention(nn.Module):
    """As torchtitan's: separate products, which DTensor cuts; heads counted from the width at hand."""

    def __init__(self):
        super().__init__()
        h, d = SHAPE.hidden_size, SHAPE.head_dim
        self.wq = nn.Linear(h, SHAPE.attention_heads * d, bias=False)
        self.wk, self.wv = (nn.Linear(h, SHAPE.kv_heads * d, bias=False) for _ in range(2))
        self.wo = nn.Linear(SHAPE.attention_heads * d, h, bias=False)

    def forward(self, x):
        q, k, v = (
            w(x).unflatten(-1, (-1, SHAPE.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        q, k = torch_rotation(q), torch_rotation(k)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).flatten(-2))


def torch_rotation(x):
    tokens, width = x.shape[-2:]
    rates = 10_000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(tokens), rates).repeat(1, 2)
    turned = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), -1)
    return x * angles.cos() + turned * angles.sin()


class TorchFFN(nn.Module):
    def __init__(self):
        super().__init__()
        h, inner = SHAPE.hidden_size, SHAPE.ffn_hidden_size
        self.w1, self.w3 = (nn.Linear(h, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, h, bias=False)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(SHAPE.hidden_size, eps=1e-5) for _ in range(2))
        self.attention, self.ffn = TorchAttention(), TorchFFN()

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class TorchDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SHAPE.vocab_size, SHAPE.hidden_size)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(SHAPE.layers))
        self.norm = nn.RMSNorm(SHAPE.hidden_size, eps=1e-5)
        self.head = nn.Linear(SHAPE.hidden_size, SHAPE.vocab_size, bias=False)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def apart(state):
    """Our names and fused matrices as torchtitan's."""
    d, a, kv = SHAPE.head_dim, SHAPE.attention_heads, SHAPE.kv_heads
    result = {}
    for name, tensor in state.items():
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        new, lengths = {
            "qkv": (["wq", "wk", "wv"], [a * d, kv * d, kv * d]),
            "gate_up": (["w1", "w3"], [SHAPE.ffn_hidden_size] * 2),
            "out": (["wo"], None), "down": (["w2"], None),
        }.get(leaf, ([leaf], None))  # fmt: skip
        parts = tensor.split(lengths) if lengths else [tensor]
        for each, part in zip(new, parts, strict=True):
            result[f"{path}.{each}.weight".lstrip(".")] = part
    return result


def cut_by_torch(model: nn.Module, mesh, sp: bool) -> None:
    """torchtitan's plan for Llama, with sequence parallelism or without."""
    stream = Shard(1) if sp else Replicate()
    ends = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=stream),
        "head": ColwiseParallel(input_layouts=stream, output_layouts=Shard(-1), use_local_output=False),
    } | ({"norm": SequenceParallel()} if sp else {})
    parallelize_module(model, mesh, ends)
    enter = PrepareModuleInput(input_layouts=(stream,), desired_input_layouts=(Replicate(),))
    leave = RowwiseParallel(output_layouts=stream)
    inside = {
        "attention": enter, "attention.wq": ColwiseParallel(), "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(), "attention.wo": leave,
        "ffn": enter, "ffn.w1": ColwiseParallel(), "ffn.w3": ColwiseParallel(), "ffn.w2": leave,
    } | ({"attention_norm": SequenceParallel(), "ffn_norm": SequenceParallel()} if sp else {})  # fmt: skip
    for block in model.blocks:
        parallelize_module(block, mesh, inside)


class Bytes(TorchDispatchMode):
    """Bytes of whole arrays that collectives carry, DTensor's or ours, by our names."""

    def __init__(self):
        super().__init__()
        self.nbytes = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor will come back with its local tensors
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name
        if name == "_c10d_functional::all_gather_into_tensor":
            self.nbytes["all_gather"] += result.nbytes
        elif name in ("_c10d_functional::all_reduce", "_c10d_functional::reduce_scatter_tensor"):
            self.nbytes[name.partition("::")[2].removesuffix("_tensor")] += args[0].nbytes
        return result


def counts(mode: CommDebugMode) -> dict[str, int]:
    """Collective -> how often, by our names."""
    names = {"all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather",
             "reduce_scatter_tensor": "reduce_scatter"}  # fmt: skip
    return {names[str(op).rpartition(".")[2]]: n for op, n in mode.get_comm_counts().items() if n}


def our_counts(group) -> dict[str, dict[str, int]]:
    found = {"forward": {}, "backward": {}, "step": {}}
    for (phase, collective), traffic in tally(group.calls).items():
        found[phase.value][collective.value] = traffic.count
    return found


def against_dtensor(sp: bool) -> dict:
    """Loss and gradients of both, and what both counted."""
    group = world()
    mesh = init_device_mesh("cpu", (group.size,))
    state = random_state(Decoder(SHAPE, alone()))
    ids, targets = batch(SHAPE)

    theirs = TorchDecoder().double()
    theirs.load_state_dict(apart(state))
    cut_by_torch(theirs, mesh, sp)
    forward, backward = CommDebugMode(), CommDebugMode()
    nbytes = Bytes()
    with loss_parallel(), nbytes:
        with forward:
            logits = theirs(ids)
            their_loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        with backward:
            their_loss.backward()

    ours = Decoder(SHAPE, group, sequence_parallel=sp, regather=False).double()
    ours.load_state_dict(shard(state, layout(ours), group.size)[group.rank])
    loss = ours(ids, targets)
    loss.backward()
    in_step, our_bytes = our_counts(group), Counter()
    for call in group.calls:
        our_bytes[call.collective.value] += call.nbytes
    ours.sum_gradients()

    whole = {n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
             for n, p in theirs.named_parameters()}  # fmt: skip
    wanted = own_pieces(whole, layout(ours), group)
    found = apart_locally(gradients(ours), group)
    their_value = their_loss.full_tensor() if isinstance(their_loss, DTensor) else their_loss
    return {
        "loss": error(loss.detach(), their_value.detach()),
        "gradients": max(error(found[name], wanted[name]) for name in wanted),
        "same names": sorted(wanted) == sorted(found),
        "ours": in_step,
        "theirs": {"forward": counts(forward), "backward": counts(backward), "step": {}},
        "our bytes": our_bytes,
        "their bytes": dict(nbytes.nbytes),
    }


def own_pieces(whole, cuts, group):
    """This rank's piece of each of torchtitan's matrices."""
    rows = ("wq", "wk", "wv", "w1", "w3", "embedding", "head")
    result = {}
    for name, tensor in whole.items():
        leaf = name.split(".")[-2]
        axis = 0 if leaf in rows else 1 if leaf in ("wo", "w2") else None
        result[name] = tensor if axis is None else tensor.chunk(group.size, axis)[group.rank]
    return result


def apart_locally(grads, group):
    """As ``apart``, for one rank's pieces."""
    d, a, kv, t = SHAPE.head_dim, SHAPE.attention_heads, SHAPE.kv_heads, group.size
    result = {}
    for name, tensor in grads.items():
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf == "qkv":
            new = zip(("wq", "wk", "wv"), tensor.split([a * d // t, kv * d // t, kv * d // t]), strict=True)
        elif leaf == "gate_up":
            new = zip(("w1", "w3"), tensor.chunk(2), strict=True)
        else:
            new = [({"out": "wo", "down": "w2"}.get(leaf, leaf), tensor)]
        result |= {f"{path}.{each}.weight".lstrip("."): part for each, part in new}
    return result


def seen_by_torch() -> tuple[dict, dict]:
    """What our counter and what torch count in a step of ours."""
    group = world(check=False)  # whose messages would be seen too
    model = Decoder(SHAPE, group, sequence_parallel=True)
    with CommDebugMode() as mode:
        model(*batch(SHAPE)).backward()
        model.sum_gradients()
    names = {"allreduce_": "all_reduce", "_allgather_base_": "all_gather",
             "_reduce_scatter_base_": "reduce_scatter"}  # fmt: skip
    seen = {names[str(op).rpartition(".")[2]]: n for op, n in mode.get_comm_counts().items() if n}
    return dict(Counter(call.collective.value for call in group.calls)), seen


def on_processes() -> tuple:
    """What rank does of our own, and per kind of parallelism what it finds beside DTensor."""
    both = {sp: against_dtensor(sp) for sp in (False, True)}
    return *tensor_jobs.on_processes(), both, seen_by_torch()
