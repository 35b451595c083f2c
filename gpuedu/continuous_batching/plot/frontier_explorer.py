"""The frontier explorer: latency against throughput, by policy, load and limits of the batch."""

from __future__ import annotations

from functools import lru_cache

from gpuedu.continuous_batching.cost import BATCHING, Point, frontier_point
from gpuedu.explorer import Choice, Explorer, Integer, Preset, Table
from gpuedu.hardware import GPUS
from gpuedu.prefill_decode.cost import MEASURED
from gpuedu.serving.step_cost import RooflineStepCost
from gpuedu.serving.workload import TRAFFIC
from gpuedu.style import COLORS
from gpuedu.transformer import MODELS

MODEL, GPU = "llama-3-8b", "H100-SXM"
STEP_COST = RooflineStepCost(MODELS[MODEL], GPUS[GPU], MEASURED[GPU], overhead_s=0.002)
RATES = (1, 2, 4, 6, 9, 13, 18)
REQUESTS = 200
MAX_MODEL_LEN = 16384

METRICS = {  # of a point: the label of its axis, and its unit in seconds
    "normalized_s": ("latency per output token, mean (ms)", 1e-3),
    "ttft_p90_s": ("time to first token, 90th percentile (s)", 1.0),
    "tpot_mean_s": ("time per output token, mean (ms)", 1e-3),
    "worst_gap_p90_s": ("worst wait between two tokens, 90th percentile (ms)", 1e-3),
}
TRAFFICS = {"azure_conversation": "Azure, conversation", "azure_code": "Azure, code"}
LOOKS = {  # color, line and symbol: three cues for one policy
    "static": (COLORS["waiting"], "dot", "square"),
    "orca": (COLORS["memory_reserved"], "dash", "diamond"),
    "vllm": (COLORS["memory_used"], "solid", "circle"),
}


@lru_cache(maxsize=2048)
def _point(batching: str, rate: int, traffic: str, seqs: int, budget: int, blocks: int) -> Point:
    lengths = TRAFFIC[traffic]
    return frontier_point(
        batching,
        rate,
        prompt=lengths.prompt,
        output=lengths.output,
        step_cost=STEP_COST,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        blocks=blocks,
        max_model_len=MAX_MODEL_LEN,
        requests=REQUESTS,
    )


def _points(rate: int, batching: str, traffic: str, seqs: str, budget: str, blocks: str) -> Point:
    # The budget is vLLM's alone: for the others every budget is one entry of the cache
    tokens = int(budget) if batching == "vllm" else 2048
    return _point(batching, rate, traffic, int(seqs), tokens, int(blocks))


def explorer_figure(*, metric: str, rate: int, **limits) -> dict:
    """A line for each policy over the loads, and a large mark at the chosen load."""
    title, unit = METRICS[metric]
    traces = []
    for batching, label in BATCHING.items():
        color, dash, symbol = LOOKS[batching]
        line = [_points(each, batching, **limits) for each in RATES]
        chosen = _points(rate, batching, **limits)
        hover = "%{customdata} requests/s offered<br>%{x:.0f} tokens/s, %{y:.3g}<extra>" + label + "</extra>"
        shared = {"type": "scatter", "hovertemplate": hover, "legendgroup": batching}
        traces.append(
            shared | {
                "mode": "lines+markers", "name": label, "customdata": list(RATES),
                "x": [round(point.output_tokens_per_s, 1) for point in line],
                "y": [_short(getattr(point, metric) / unit) for point in line],
                "line": {"color": color, "width": 2.5, "dash": dash, "shape": "spline", "smoothing": 0.6},
                "marker": {"color": color, "size": 7, "symbol": symbol},
            }
        )  # fmt: skip
        traces.append(
            shared | {
                "mode": "markers", "showlegend": False, "customdata": [rate],
                "x": [round(chosen.output_tokens_per_s, 1)],
                "y": [_short(getattr(chosen, metric) / unit)],
                "marker": {"color": color, "size": 17, "symbol": symbol + "-open",
                           "line": {"width": 3, "color": color}},
            }
        )  # fmt: skip
    layout = {
        "height": 470,
        "margin": {"l": 84, "r": 24, "t": 16, "b": 64},
        "xaxis": {"title": {"text": f"output tokens/s, {MODEL} on one {GPU}"},
                  "rangemode": "tozero"},
        "yaxis": {"title": {"text": title}, "type": "log", "dtick": "D2", "exponentformat": "none"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}},
        "hovermode": "closest",
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def explorer_takeaway(*, metric: str, rate: int, **limits) -> str:
    """One sentence: what each policy makes of the chosen load."""
    title, unit = METRICS[metric]
    points = {batching: _points(rate, batching, **limits) for batching in BATCHING}
    quantity = title.split(",")[0]
    unit_name = title.rsplit("(", 1)[1].rstrip(")")
    told = {name: f"{getattr(point, metric) / unit:.3g} {unit_name}" for name, point in points.items()}
    full, ours = points["static"], points["vllm"]
    text = (
        f"At {rate} requests a second, {quantity}: **{told['vllm']}** with paged continuous batching, "
        f"{told['orca']} where slots are reserved, {told['static']} in static batches. "
        f"While the GPU computes, {100 * ours.slot_occupancy:.0f} %, "
        f"{100 * points['orca'].slot_occupancy:.0f} % and {100 * full.slot_occupancy:.0f} % of the slots do "
        "so for somebody"
    )
    if ours.preemptions:
        text += f"; the cache overflowed {ours.preemptions} times"
    return text + "."


def explorer_table(*, metric: str, rate: int, **limits) -> Table:
    """Every point drawn, with its occupancies."""
    title, unit = METRICS[metric]
    rows = []
    for batching, label in BATCHING.items():
        for each in sorted({*RATES, rate}):
            point = _points(each, batching, **limits)
            rows.append(
                (
                    label,
                    each,
                    round(point.output_tokens_per_s),
                    getattr(point, metric) / unit,
                    round(100 * point.slot_occupancy, 1),
                    round(100 * point.kv_occupancy, 1),
                    point.preemptions,
                )
            )
    columns = ("batching", "requests/s", "tokens/s", title, "slots used %", "KV cache used %", "preemptions")
    return Table(columns, tuple(rows))


explorer = Explorer(
    id="latency-throughput",
    title="Latency against throughput",
    controls=(
        Choice("metric", "Latency", {name: title for name, (title, _) in METRICS.items()}, "normalized_s"),
        Integer("rate", "Load", 1, 20, 6, unit="requests/s", help="the large marks"),
        Choice("traffic", "Traffic", TRAFFICS, "azure_conversation"),
        Choice("seqs", "Batch limit", {str(n): str(n) for n in (8, 16, 32, 64, 128, 256)}, "32",
               help="sequences that run at once: max_num_seqs, or the size of a static batch"),
        Choice("budget", "Token budget", {str(n): f"{n:,}" for n in (256, 512, 1024, 2048, 8192)}, "2048",
               help="tokens of one iteration: max_num_batched_tokens, for vLLM alone"),
        Choice("blocks", "KV cache", {"2000": "2,000 blocks", "4000": "4,000 blocks", "8000": "8,000 blocks"},
               "8000", help="blocks of 16 tokens"),
    ),
    presets=(
        Preset("policies", "Three policies"),
        Preset("large", "A larger batch", {"seqs": "128"}),
        Preset("overload", "Too much", {"seqs": "128", "rate": 18}),
        Preset("stalls", "Stalls", {"seqs": "128", "metric": "worst_gap_p90_s", "budget": "8192"}),
        Preset("chunks", "Small chunks", {"seqs": "128", "metric": "worst_gap_p90_s", "budget": "512"}),
        Preset("memory", "A small cache", {"seqs": "128", "blocks": "2000", "rate": 9}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
)  # fmt: skip
