"""Bits against quality, memory and speed: measured perplexities above, a large model's step below.

Its functions take every control by keyword.
"""

from __future__ import annotations

from functools import lru_cache
from math import log10
from statistics import fmean

from gpuedu.explorer import Choice, Explorer, Preset, Real, Table
from gpuedu.hardware import GPUS
from gpuedu.quantization.cost import Work, decode_step, prefill, weight_bytes
from gpuedu.quantization.plan import FORMATS, Format, integer_format
from gpuedu.quantization.plot.measured import MEASURED, Measured
from gpuedu.style import COLORS
from gpuedu.transformer import MODELS

QUALITY, WEIGHTS, CACHE, COMPUTE = (
    COLORS[name] for name in ("rejected", "memory_used", "memory_reserved", "forward")
)
BITS = {"8": "8 bits", "4": "4 bits", "3": "3 bits", "2": "2 bits"}
METHODS = {"rtn": "To nearest", "gptq": "GPTQ", "awq": "AWQ"}
LINES = {"rtn": ("dot", "circle"), "gptq": ("solid", "diamond"), "awq": ("dash", "square")}
CALIBRATIONS = {"mixed": "All three texts", "speeches": "Speeches", "docs": "Python manual"}
TEXTS = {"speeches": "Speeches", "moby_dick": "Moby-Dick", "docs": "Python manual"}
SMALL = {"smollm2": "SmolLM2-135M", "tinylm": "tinylm"}
LARGE = {
    "llama-3-8b": "Llama 3 8B",
    "llama-2-7b": "Llama 2 7B",
    "llama-2-13b": "Llama 2 13B",
    "llama-3-70b": "Llama 3 70B",
}
HARDWARE = {"A100-80GB": "A100", "H100-SXM": "H100", "B200": "B200", "L4": "L4"}
PHASES = {"decode": "Decode: a token each", "prefill": "Prefill: a prompt"}
GROUP = 64
WORST = 8.0
"""Times the unquantized perplexity at which the picture ends; what is worse stands at its edge."""
TICKS = (1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 8)


@lru_cache(maxsize=1)
def _formats() -> dict[str, Format]:
    """What the bars compare: weights alone in 16 to 2 bits, then formats that are multiplied as they are."""
    weights = {f"{bits} bits": integer_format(bits, GROUP) for bits in (8, 4, 3, 2)}
    return {"BF16": FORMATS["bf16"], **weights, "FP8": FORMATS["fp8"], "NVFP4": FORMATS["nvfp4"]}


@lru_cache(maxsize=64)
def _work(name: str, large: str, gpu: str, phase: str, batch: int, tokens: int) -> Work:
    if phase == "prefill":
        return prefill(MODELS[large], GPUS[gpu], _formats()[name], tokens)
    return decode_step(MODELS[large], GPUS[gpu], _formats()[name], batch, tokens)


def _measured(small: str, text: str, method: str, calibration: str) -> list[tuple[Measured, float]]:
    """Results of a method, by bits a weight takes, and their perplexity over the unquantized one's.

    Where several draws of calibration texts were measured, the mean of their perplexities.
    """
    (full,) = (m for m in MEASURED if m.model == small and m.method == "fp32")
    seen = None if method == "rtn" else calibration
    draws: dict[tuple, list[Measured]] = {}
    for m in MEASURED:
        if m.model == small and m.method == method and m.calibration in (seen, _only(m, seen)):
            draws.setdefault((m.bits_per_weight, m.bits, m.group), []).append(m)
    return [
        (found[0], fmean(getattr(m, text) for m in found) / getattr(full, text))
        for _, found in sorted(draws.items(), key=lambda draw: draw[0][0])
    ]


def _only(m: Measured, seen: str | None) -> str | None:
    """At 8 bits nothing depends on the calibration: it was measured with all texts alone."""
    return "mixed" if m.bits == 8 and seen is not None else seen


def tradeoff_figure(*, bits, method, calibration, text, small, large, gpu, phase, batch, tokens) -> dict:
    """Measured perplexity over bits, and the time that a step of a large model takes."""
    bare = {"zeroline": False, "fixedrange": True}
    layout = {
        "height": 640, "barmode": "stack", "bargap": 0.3,
        "xaxis": bare | {"anchor": "y", "range": [1.8, 9], "dtick": 1,
                         "title": {"text": "bits a weight takes, scales and zeros counted"}},
        "yaxis": bare | {"domain": [0.56, 1], "type": "log", "range": [log10(0.95), log10(1.1 * WORST)],
                         "tickvals": list(TICKS), "ticktext": [f"{t:g}" for t in TICKS],
                         "title": {"text": "perplexity, times<br>that of FP32"}},
        "xaxis2": bare | {"anchor": "y2", "rangemode": "tozero", "title": {"text": "ms"}},
        "yaxis2": bare | {"domain": [0, 0.4], "range": [len(_formats()) - 0.5, -0.5], "type": "category",
                          "showgrid": False, "categoryarray": list(_formats())},
        "margin": {"l": 72, "r": 16, "t": 84, "b": 56},
        "legend": {"itemwidth": 30, "font": {"size": 13}, "traceorder": "normal"},
    }  # fmt: skip
    curves = [
        _curve(name, _measured(small, text, name, calibration), chosen=name == method) for name in METHODS
    ]
    chosen = [
        (m, ratio)
        for m, ratio in _measured(small, text, method, calibration)
        if m.bits == int(bits) and m.group == GROUP
    ]
    marks = [_mark(m, ratio) for m, ratio in chosen]
    return {
        "data": [*curves, *marks, *_bars(large, gpu, phase, _batch(batch), _tokens(tokens))],
        "layout": layout,
    }


def _curve(name: str, points: list[tuple[Measured, float]], chosen: bool) -> dict:
    dash, symbol = LINES[name]
    groups = [f"groups of {m.group}" if m.group else "per channel" for m, _ in points]
    return {
        "type": "scatter", "mode": "lines+markers", "name": METHODS[name],
        "x": [m.bits_per_weight for m, _ in points], "y": [min(ratio, WORST) for _, ratio in points],
        "line": {"color": QUALITY, "width": 2.5 if chosen else 1.2, "dash": dash},
        "marker": {"color": QUALITY, "size": 9 if chosen else 7,
                   "symbol": [symbol if ratio <= WORST else "triangle-up" for _, ratio in points]},
        "customdata": [
            (m.bits, group, f"{ratio:.3g}") for (m, ratio), group in zip(points, groups, strict=True)
        ],
        "hovertemplate": "%{customdata[0]} bits, %{customdata[1]}: %{customdata[2]} times"
                         f"<extra>{METHODS[name]}</extra>",
    }  # fmt: skip


def _mark(m: Measured, ratio: float) -> dict:
    """A ring around the reader's own choice."""
    return {
        "type": "scatter", "mode": "markers", "x": [m.bits_per_weight], "y": [min(ratio, WORST)],
        "hoverinfo": "skip", "showlegend": False,
        "marker": {"symbol": "circle-open", "size": 20, "color": WEIGHTS, "line": {"width": 3}},
    }  # fmt: skip


def _bars(large: str, gpu: str, phase: str, batch: int, tokens: int) -> list[dict]:
    """What the memory takes, weights and cache; and where the tensor cores stand."""
    works = {name: _work(name, large, gpu, phase, batch, tokens) for name in _formats()}
    bandwidth = GPUS[gpu].memory_bandwidth
    place = {"xaxis": "x2", "yaxis": "y2", "y": list(works)}
    traces = []
    for name, color, shape, read in (
        ("memory: weights", WEIGHTS, "", lambda work: work.weight_bytes),
        ("memory: cache", CACHE, "/", lambda work: work.kv_bytes),
    ):
        traces.append(place | {
            "type": "bar", "orientation": "h", "name": name,
            "x": [1e3 * read(work) / bandwidth for work in works.values()],
            "customdata": [read(work) / 1e9 for work in works.values()],
            "marker": {"color": color, "line": {"color": color, "width": 1},
                       "pattern": {"shape": shape, "size": 7, "solidity": 0.4}},
            "hovertemplate": f"%{{y}}: %{{customdata:.3g}} GB, %{{x:.3g}} ms<extra>{name}</extra>",
        })  # fmt: skip
    traces.append(place | {
        "type": "scatter", "mode": "markers", "name": "tensor cores",
        "x": [1e3 * work.compute_s for work in works.values()],
        "customdata": [work.dtype.upper() for work in works.values()],
        "marker": {"symbol": "line-ns", "size": 16, "line": {"color": COMPUTE, "width": 4}},
        "hovertemplate": "%{y}: %{x:.3g} ms, multiplied in %{customdata}<extra>tensor cores</extra>",
    })  # fmt: skip
    return traces


def _batch(batch: float) -> int:
    return round(batch)


def _tokens(tokens: float) -> int:
    return round(tokens)


def tradeoff_unused(*, phase, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values: a prompt is priced alone."""
    return ("batch",) if phase == "prefill" else ()


def tradeoff_takeaway(*, bits, method, calibration, text, small, large, gpu, phase, batch, tokens) -> str:
    """One sentence: memory and time of the large model, and what the small one paid."""
    model, name = MODELS[large], f"{bits} bits"
    size, full = (weight_bytes(model, format) for format in (_formats()[name], FORMATS["bf16"]))
    batch, tokens = _batch(batch), _tokens(tokens)
    own, plain = (_work(n, large, gpu, phase, batch, tokens) for n in (name, "BF16"))
    what = (
        f"a prompt of {tokens:,} tokens"
        if phase == "prefill"
        else f"a step for {batch:,} at {tokens:,} tokens"
    )
    if phase == "decode" and batch == 1:
        what = f"a step for one reader at {tokens:,} tokens"
    gain = plain.seconds / own.seconds
    speed = f"is **{gain:.2g} times** as fast" if gain > 1.005 else "is **no faster**"
    text_ = f"{LARGE[large]} in {name}: {size / 1e9:.3g} GB instead of {full / 1e9:.3g}, and {what} {speed}"
    for m, ratio in _measured(small, text, method, calibration):
        if m.bits == int(bits) and m.group == GROUP:
            text_ += f". {SMALL[small]} paid with **{ratio:.3g} times** the perplexity ({METHODS[method]})"
    return text_ + "."


def tradeoff_table(*, bits, method, calibration, text, small, large, gpu, phase, batch, tokens) -> Table:
    """Every point and every bar."""
    rows = [
        (METHODS[name], f"{m.bits} bits, {f'groups of {m.group}' if m.group else 'per channel'}",
         m.bits_per_weight, getattr(m, text), ratio)
        for name in METHODS
        for m, ratio in _measured(small, text, name, calibration)
    ]  # fmt: skip
    for name in _formats():
        work = _work(name, large, gpu, phase, _batch(batch), _tokens(tokens))
        rows.append((LARGE[large], name, work.weight_bytes / 1e9, 1e3 * work.memory_s, 1e3 * work.compute_s))
    columns = ("method or model", "format", "bits, or GB", "perplexity, or ms of memory",
               "times FP32, or ms of tensor cores")  # fmt: skip
    return Table(columns, tuple(rows))


tradeoff = Explorer(
    id="quantization-tradeoff",
    title="What a bit buys, and what it costs",
    controls=(
        Choice("bits", "Bits", BITS, "4", help="of the weights, in groups of 64"),
        Choice("method", "Method", METHODS, "gptq"),
        Choice("calibration", "Calibrated on", CALIBRATIONS, "mixed"),
        Choice("text", "Evaluated on", TEXTS, "speeches"),
        Choice("small", "Measured model", SMALL, "smollm2"),
        Choice("large", "Priced model", LARGE, "llama-3-8b"),
        Choice("gpu", "GPU", HARDWARE, "H100-SXM"),
        Choice("phase", "Phase", PHASES, "decode"),
        Real("batch", "Sequences", 1, 1024, 1, 0.4142, "log", help="that get a token at once"),
        Real("tokens", "Tokens of each", 128, 32768, 2048, 0.4142, "log",
             help="in the cache, or in the prompt"),
    ),
    presets=(
        Preset("one", "One reader"),
        Preset("crowd", "A crowd", {"batch": 64.0}),
        Preset("prefill", "A prompt", {"phase": "prefill"}),
        Preset("three", "Three bits", {"bits": "3"}),
        Preset("elsewhere", "Wrong calibration", {"bits": "3", "calibration": "docs"}),
        Preset("two", "Two bits", {"bits": "2"}),
    ),
    figure=tradeoff_figure,
    takeaway=tradeoff_takeaway,
    table=tradeoff_table,
    unused=tradeoff_unused,
)  # fmt: skip
