"""The explorer of a block's cuts: its controls, its presets, and what it shows for them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Switch, Table
from gpuedu.tensor_parallel.cost import layer_activation_bytes
from gpuedu.tensor_parallel.plan import LAYER_SITES, Sharding, padded_vocabulary, shard, validate
from gpuedu.tensor_parallel.plot.block import NAMES, block, held_text, sent_text, shape_text
from gpuedu.transformer import MODELS

MODEL_NAMES = {
    "llama-3-70b": "Llama 3 70B (64 heads, 8 KV)",
    "llama-3-8b": "Llama 3 8B (32, 8)",
    "llama-3-405b": "Llama 3 405B (128, 8)",
    "llama-2-7b": "Llama 2 7B (32, 32)",
    "gpt3-175b": "GPT-3 175B (96, 96)",
    "gpt2": "GPT-2 124M (12, 12)",
}
SEQUENCES = {str(n): f"{n:,}" for n in (512, 1024, 2048, 4096, 8192, 16384, 32768)}


@lru_cache(maxsize=64)
def _plan(model, kv_heads, t, sp, use, batch, sequence) -> Sharding:
    shape = padded_vocabulary(MODELS[model], t, multiple=1)
    if kv_heads != "own":
        shape = replace(shape, kv_heads=int(kv_heads))
    plan = shard(
        shape,
        t,
        batch=batch,
        sequence=int(sequence),
        sequence_parallel=sp,
        training=use == "training",
        recompute="selective",
        dropout=False,
    )
    validate(plan)
    return plan


def explorer_figure(**values) -> dict:
    """The block for the explorer's values."""
    return block(_plan(**values))


def explorer_unused(*, t: int, use: str, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    if t > 1:
        return ()
    return ("sp",) if use == "training" else ("sp", "batch", "sequence")


def explorer_takeaway(**values) -> str:
    """One sentence or two: what a GPU sends, and what it holds."""
    plan = _plan(**values)
    weights = sum(w.local_elements * w.itemsize for w in plan.weights if w.site in LAYER_SITES)
    holds = f"**{sent_text(weights)}** of a layer's weights"
    if plan.training:
        kept = layer_activation_bytes(plan)
        alike = sum(
            a.local_elements * a.itemsize for a in plan.activations if a.site in LAYER_SITES and a.copies > 1
        )
        holds += f" and **{sent_text(kept)}** of its activations"
        holds += f", {sent_text(alike)} of which other GPUs hold too" if alike else ""
    if plan.tensor_parallel == 1:
        return f"One GPU holds {holds}, and sends nothing."
    shared = max(w.copies for w in plan.weights if w.name == "k")
    note = f" **{shared}** GPUs hold the same KV head." if shared > 1 else ""
    sent = sent_text(sum(c.bytes_sent for c in plan.layer))
    return f"For {_counted(plan)} a layer each GPU sends **{sent}**. It holds {holds}.{note}"


def _counted(plan: Sharding) -> str:
    """The collectives of a layer by kind."""
    kinds = [c.collective.value for c in plan.layer]
    counts = [f"**{kinds.count(kind)}** {name}s" for kind, name in NAMES.items() if kind in kinds]
    return " and ".join(counts)


def explorer_table(**values) -> Table:
    """Every tensor of a layer and every collective of a step."""
    plan = _plan(**values)
    rows = [
        ("weight", w.name, shape_text(w.shape), held_text(w), w.local_elements * w.itemsize)
        for w in plan.weights
    ]
    rows += [
        ("activation", a.name, shape_text(a.shape), held_text(a), a.local_elements * a.itemsize)
        for a in plan.activations
    ]
    rows += [
        (
            f"{NAMES[c.collective.value]}, {c.phase.value}",
            f"{c.site}: {c.what}",
            shape_text(c.shape),
            f"{c.count} times on {c.ranks} GPUs",
            c.bytes_sent,
        )
        for c in plan.communications
    ]
    columns = ("kind", "name", "whole shape", "cut", "bytes a GPU holds, or sends each time")
    return Table(columns, tuple(rows))


explorer = Explorer(
    id="tensor-cut",
    title="A transformer block, cut",
    controls=(
        Integer("t", "Tensor-parallel GPUs t", 1, 8, 2, help="must divide heads and inner width"),
        Switch("sp", "Sequence parallelism", help="between the products each GPU has its own tokens only"),
        Choice("use", "For", {"training": "Training", "inference": "Inference"}, "training"),
        Choice("model", "Model", MODEL_NAMES, "llama-3-70b"),
        Choice("kv_heads", "KV heads", {"own": "the model's", "4": "4", "2": "2", "1": "1 (multi-query)"},
               "own", help="fewer than GPUs: several hold the same head"),
        Integer("batch", "Sequences b", 1, 16, 1, help="of one microbatch"),
        Choice("sequence", "Tokens of each s", SEQUENCES, "2048"),
    ),
    presets=(
        Preset("one", "One GPU", {"t": 1}),
        Preset("two", "Two", {"t": 2}),
        Preset("eight", "Eight", {"t": 8}),
        Preset("sequence", "Sequence parallel", {"t": 8, "sp": True}),
        Preset("inference", "Inference", {"t": 8, "use": "inference"}),
        Preset("few_kv", "Two KV heads", {"t": 8, "kv_heads": "2"}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    unused=explorer_unused,
)  # fmt: skip
