"""Numbers in the verdicts on pipeline parallelism."""

from __future__ import annotations

from itertools import pairwise

from gpuedu.pipeline_parallel.cost import boundary_bytes, peak_activations, tensor_parallel_bytes, timeline
from gpuedu.pipeline_parallel.plan import SCHEDULES, Schedule, gpipe, interleaved_1f1b, one_f_one_b, zb_v
from gpuedu.transformer import MODELS

STAGES, MICROBATCHES = 8, 32
DELAY = 0.1  # of a forward pass, per hop


def parts(schedule: Schedule, rank: int) -> list[int]:
    """Parts of the model that ``rank`` holds, counted from 1 as readers do."""
    return sorted(schedule.part(rank, chunk) + 1 for chunk in range(schedule.chunks))


def scattered(schedule: Schedule) -> bool:
    """Whether some rank holds parts that do not touch each other."""
    ranks = (parts(schedule, rank) for rank in range(schedule.stages))
    return any(b - a > 1 for held in ranks for a, b in pairwise(held))


def c08() -> dict[str, object]:
    """Schedules that scatter layers, and what the first of four ranks holds."""
    p, m = 4, 8
    built = [make(p, m, 2) if make is interleaved_1f1b else make(p, m) for make in SCHEDULES.values()]
    loop, v = interleaved_1f1b(p, m, 2), zb_v(p, m)
    llama, tokens = MODELS["llama-3-8b"], 2048
    output = 2 * tokens * llama.hidden_size * llama.vocab_size
    layer = (llama.forward_flops(tokens) - output) / llama.layers
    return {
        "schedules": len(built),
        "scattered": sum(map(scattered, built)),
        "stages": p,
        "depth": loop.depth,
        "loop": " and ".join(map(str, parts(loop, 0))),
        "head": f"{output / layer:.1f}",
        "v": " and ".join(map(str, parts(v, 0))),
    }


def c10() -> dict[str, object]:
    """Data that one GPU sends for a microbatch of GPT-3, in activations of one microbatch."""
    gpt3, t = MODELS["gpt3-175b"], 8
    sequence = gpt3.learned_positions
    layers = gpt3.layers // STAGES
    pipeline = boundary_bytes(sequence, 1, gpt3.hidden_size)
    activation = pipeline / 2

    def tensor(layers: int):
        return tensor_parallel_bytes(layers, t, sequence, 1, gpt3.hidden_size)

    return {
        "stages": STAGES,
        "layers": layers,
        "t": t,
        "tensor": f"{float(tensor(layers) / activation):.3g}",
        "pipeline": f"{pipeline / activation:.3g}",
        "ratio": f"{float(tensor(layers) / pipeline):.3g}",
        "thin": f"{float(tensor(1) / pipeline):.3g}",
    }


def c11() -> dict[str, object]:
    """The bubble without delay, and what a delay adds to three schedules; F = 1, B = I + W = 2."""
    plans = {
        "gpipe": gpipe(STAGES, MICROBATCHES),
        "plain": one_f_one_b(STAGES, MICROBATCHES),
        "deep": interleaved_1f1b(STAGES, MICROBATCHES, 1),  # one chunk: 1F1B with its warm-up doubled
    }
    late = {name: timeline(plan, transfer=DELAY).makespan for name, plan in plans.items()}
    added = {name: f"{late[name] - timeline(plan).makespan:.2g}" for name, plan in plans.items()}
    peaks = {f"{name}_peak": f"{float(max(peak_activations(plan))):.3g}" for name, plan in plans.items()}
    share = f"{100 * float(timeline(plans['plain']).bubble_share):.1f}"
    return {"p": STAGES, "m": MICROBATCHES, "c": DELAY, "share": share} | added | peaks
