"""The explorer of useful work against t: its controls, its presets, and what it shows for them."""

from __future__ import annotations

from functools import lru_cache

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Switch, Table
from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.tensor_parallel.cost import StepTime, step_time
from gpuedu.tensor_parallel.plan import Sharding, padded_vocabulary, shard, usable
from gpuedu.tensor_parallel.plot.speed import Fabric, speed
from gpuedu.transformer import MODELS

SIZES = (1, 2, 4, 8, 16, 32)
GENERATIONS = {  # GPU, link inside a node, link to other nodes
    "a100": ("A100-80GB", "NVLink3", "InfiniBand-HDR"),
    "h100": ("H100-SXM", "NVLink4", "InfiniBand-NDR"),
    "b200": ("B200", "NVLink5", "InfiniBand-NDR"),
}
GENERATION_NAMES = {
    key: f"{gpu.partition('-')[0]}, {inside}, {across.replace('-', ' ')}"
    for key, (gpu, inside, across) in GENERATIONS.items()
}
FABRICS = {  # label, GPUs in a node, dash, marker
    "node": ("NVLink in nodes of 8", 8, "solid", "circle"),
    "network": ("InfiniBand alone", 1, "dash", "square"),
    "nvlink": ("NVLink between all", 32, "dot", "diamond"),
}
MODEL_NAMES = {
    "llama-3-70b": "Llama 3 70B",
    "llama-3-8b": "Llama 3 8B",
    "llama-3-405b": "Llama 3 405B",
    "gpt3-175b": "GPT-3 175B",
}
SEQUENCES = {str(2**k): f"{2**k:,}" for k in range(7, 18)}


@lru_cache(maxsize=128)
def _plans(model: str, batch: int, sequence: int, sp: bool) -> tuple[Sharding, ...]:
    shape = padded_vocabulary(MODELS[model], max(SIZES), multiple=1)
    sizes = [t for t in SIZES if t in usable(shape)]
    return tuple(shard(shape, t, batch=batch, sequence=sequence, sequence_parallel=sp) for t in sizes)


@lru_cache(maxsize=128)
def _steps(fabric, model, generation, batch, sequence, efficiency, sp, overlap) -> dict[int, StepTime]:
    gpu, inside, across = GENERATIONS[generation]
    per_node = FABRICS[fabric][1]
    cluster = Cluster(GPUS[gpu], per_node, max(SIZES) // per_node, LINKS[inside], LINKS[across])
    return {
        plan.tensor_parallel: step_time(plan, cluster, efficiency=efficiency / 100, overlap=overlap)
        for plan in _plans(model, batch, int(sequence), sp)
    }


def explorer_figure(*, link: str, **values) -> dict:
    """Useful work on each fabric, and the steps of the chosen one."""
    fabrics = tuple(
        Fabric(label, _steps(name, **values), dash, symbol)
        for name, (label, _, dash, symbol) in FABRICS.items()
    )
    return speed(fabrics, list(FABRICS).index(link))


def explorer_takeaway(*, link: str, **values) -> str:
    """One sentence: what eight GPUs are worth, and sixteen, on the chosen fabric and on another."""
    other = "node" if link == "network" else "network"
    steps, against = _steps(link, **values), _steps(other, **values)
    eight, sixteen, rest = (100 * step.useful_share for step in (steps[8], steps[16], against[8]))
    return (
        f"{MODEL_NAMES[values['model']]}, {FABRICS[link][0]}: **{eight:.0f} %** of what 8 GPUs do is useful "
        f"work, **{sixteen:.0f} %** of what 16 do; with {FABRICS[other][0]}, {rest:.0f} % of what 8 do."
    )


def explorer_table(*, link: str, **values) -> Table:
    """Every point of every curve."""
    rows = (
        (
            label,
            t,
            1e3 * step.compute_s,
            1e3 * step.communication_s,
            1e3 * step.hidden_s,
            100 * step.useful_share,
        )
        for name, (label, *_) in FABRICS.items()
        for t, step in _steps(name, **values).items()
    )
    columns = ("links", "t", "computing (ms)", "waiting (ms)", "hidden communication (ms)", "useful (%)")
    return Table(columns, tuple(rows))


explorer = Explorer(
    id="tensor-speed",
    title="What is left of t GPUs",
    controls=(
        Choice("link", "Links", {key: label for key, (label, *_) in FABRICS.items()}, "node",
               help="InfiniBand between the nodes"),
        Choice("model", "Model", MODEL_NAMES, "llama-3-70b"),
        Choice("generation", "Hardware", GENERATION_NAMES, "h100"),
        Integer("batch", "Sequences b", 1, 32, 1, help="of one microbatch"),
        Choice("sequence", "Tokens of each s", SEQUENCES, "2048"),
        Real("efficiency", "Products reach", 20, 90, 50, 5, unit="% of peak",
             help="share of the dense 16-bit peak"),
        Switch("sp", "Sequence parallelism"),
        Switch("overlap", "Overlap", True,
               help="run collectives beside products where the backward allows it"),
    ),
    presets=(
        Preset("node", "A node and more"),
        Preset("network", "InfiniBand alone", {"link": "network"}),
        Preset("wide", "A wider node", {"link": "nvlink"}),
        Preset("small", "Small model", {"model": "llama-3-8b"}),
        Preset("tokens", "More tokens", {"batch": 16}),
        Preset("faster", "Faster GPU", {"generation": "b200"}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
)  # fmt: skip
