"""The traffic explorer: bytes and roofline time against the length and against the block size."""

from __future__ import annotations

from functools import lru_cache

from gpuedu.explorer import Choice, Explorer, Preset, Real, Switch, Table
from gpuedu.flash_attention.cost import (
    PUBLISHED,
    attention_time,
    extra_elements,
    least_traffic,
    traffic,
)
from gpuedu.flash_attention.plan import AttentionShape, Tiles, tiles_from_sram
from gpuedu.hardware import GPUS
from gpuedu.style import COLORS

from .odometer import in_bytes

AXES = {"length": "sequence length N", "block": "block size"}
PASSES = {"forward": "Forward", "both": "Forward and backward"}
MEASURES = {"bytes": "Bytes between HBM and chip", "time": "Time by the roofline", "memory": "Extra memory"}
GPU_NAMES = {name: name for name in ("A100-40GB", "A100-80GB", "H100-SXM", "H200", "B200", "V100", "L4")}
HEAD_DIMS = {"64": "64", "128": "128"}
LINES = {
    "standard": ("standard", COLORS["memory_wasted"], "solid", "square"),
    "version_1": ("version 1", COLORS["backward"], "dash", "diamond"),
    "version_2": ("version 2", COLORS["forward"], "solid", "circle"),
}
LENGTHS = tuple(2**k for k in range(7, 21))
BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
UNITS = {"bytes": "GB", "time": "ms", "memory": "GB"}


def _tiles(plan: str, sram: float, d: int, block: int | None) -> Tiles:
    """Tiles by the paper's rule for the chip's memory, or with a given block of the outer loop."""
    order = "version_2" if plan == "version_2" else "version_1"  # only there queries are the outer loop
    if block is None:
        return tiles_from_sram(order, max(4 * d, round(1e3 * sram / 2)), d)
    return Tiles(block, min(block, d)) if order == "version_2" else Tiles(min(block, d), block)


@lru_cache(maxsize=4096)
def _amount(plan, measure, direction, length, d, heads, sram, causal, gpu, block) -> float:
    """What one plan takes, in GB or ms."""
    attention = AttentionShape(length, length, d, heads=heads, causal=causal)
    names = [plan] if direction == "forward" else [plan, f"{plan}_backward"]
    jobs = [(name, attention, _tiles(name, sram, d, block)) for name in names]
    if measure == "time":
        return 1e3 * sum(attention_time(*job, GPUS[gpu]) for job in jobs)
    if measure == "memory":
        width = 2 if plan == "standard" else 4
        return width * max(extra_elements(*job) for job in jobs) / 1e9
    return sum(traffic(*job).nbytes(2, fills=False) for job in jobs) / 1e9


def _lines(
    *, axis, measure, direction, length, d, heads, sram, causal, gpu
) -> dict[str, list[tuple[int, float]]]:
    """``(x, y)`` of each plan."""
    length, heads = _whole(length), _whole(heads)
    points = {}
    for plan in LINES:
        common = (plan, measure, direction)
        if axis == "length":
            places = [(n, (n, int(d), heads, sram, causal, gpu, None)) for n in LENGTHS]
        else:
            places = [(b, (length, int(d), heads, sram, causal, gpu, b)) for b in BLOCKS]
        points[plan] = [(x, _amount(*common, *place)) for x, place in places]
    return points


def _whole(number: float) -> int:
    return round(number)


def traffic_figure(**values) -> dict:
    """One line a plan, both axes logarithmic; what the paper printed where its own shape is shown."""
    lines = _lines(**values)
    measure, unit = values["measure"], UNITS[values["measure"]]
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [x for x, _ in lines[plan]],
            "y": [float(f"{y:.5g}") for _, y in lines[plan]], 
            "line": {"color": color, "width": 2.5, "dash": dash},
            "marker": {"color": color, "symbol": symbol, "size": 8},
            "hovertemplate": f"{name}: %{{y:.3g}} {unit}<extra>%{{x:,}}</extra>",
        }
        for plan, (name, color, dash, symbol) in LINES.items()
    ]  # fmt: skip
    if _is_figure_2(**values):
        traces += [_printed(plan, measure) for plan in PUBLISHED]
    shapes = []
    if values["axis"] == "length":
        at = _whole(values["length"])
        shapes = [{"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1,
                   "line": {"color": COLORS["waiting"], "width": 1.5, "dash": "dot"}}]  # fmt: skip
    step = "D2" if values["axis"] == "block" else 1
    titles = {"length": "sequence length N (tokens)", "block": "block of the outer loop (rows)"}
    return {
        "data": traces,
        "layout": {
            "height": 420,
            "xaxis": {"type": "log", "title": {"text": titles[values["axis"]]}, "dtick": step,
                      "tickformat": ",", "fixedrange": True},
            "yaxis": {"type": "log", "dtick": step, "fixedrange": True,
                      "title": {"text": f"{MEASURES[measure]} ({unit})"}},
            "shapes": shapes,
            "margin": {"l": 72, "r": 24, "t": 40, "b": 56},
        },
    }  # fmt: skip


def _is_figure_2(*, axis, measure, direction, length, d, heads, causal, gpu, **_) -> bool:
    """Whether these values are those of the paper's Figure 2."""
    shape = (_whole(length), d, _whole(heads), direction, causal)
    as_measured = measure == "bytes" or (measure == "time" and gpu == "A100-40GB")
    return axis == "block" and as_measured and shape == (1024, "64", 1024, "both", False)


def _printed(plan: str, measure: str) -> dict:
    """The paper's number, at the block size that its kernel would take."""
    name, color, _, _ = LINES[plan]
    amount = PUBLISHED[plan]["hbm_gb" if measure == "bytes" else "runtime_ms"]
    return {
        "type": "scatter", "mode": "markers+text", "x": [384], "y": [amount], "name": f"{name}, as printed",
        "marker": {"symbol": "x", "size": 12, "color": color}, "text": [f"{amount:g}"],
        "textposition": "top center", "textfont": {"size": 13},
        "hovertemplate": f"printed in Figure 2: {amount:g} {UNITS[measure]}<extra></extra>",
    }  # fmt: skip


def traffic_takeaway(**values) -> str:
    """One sentence: the two ends of the story at the chosen size."""
    length, heads, d = _whole(values["length"]), _whole(values["heads"]), int(values["d"])
    measure = values["measure"]

    def at(plan, block=None):
        return _amount(
            plan, measure, values["direction"], length, d, heads, values["sram"], values["causal"],
            values["gpu"], block,
        )  # fmt: skip

    if values["axis"] == "block":
        small, large = at("version_1", BLOCKS[0]), at("version_1", BLOCKS[-1])
        return (
            f"With blocks of {BLOCKS[0]} version 1 takes **{_said(measure, small)}**, with blocks of "
            f"{BLOCKS[-1]:,} **{_said(measure, large)}**; standard attention "
            f"**{_said(measure, at('standard'))}** whatever the block."
        )
    standard, second = at("standard"), at("version_2")
    text = (
        f"At {length:,} tokens standard attention takes **{_said(measure, standard)}**, version 2 "
        f"**{_said(measure, second)}**: {_times(standard, second)}"
    )
    if measure == "bytes":
        attention = AttentionShape(length, length, d, heads=heads)
        text += f". Inputs and output alone are {in_bytes(2 * least_traffic(attention))}"
    return text + "."


def _times(standard: float, second: float) -> str:
    ratio = standard / second
    return f"{ratio:,.0f} times less" if ratio >= 100 else f"{ratio:.3g} times less"


def _said(measure: str, amount: float) -> str:
    """GB or ms in the unit that suits them."""
    if measure != "time":
        return in_bytes(1e9 * amount)
    return f"{amount / 1e3:.3g} s" if amount >= 1e3 else f"{amount:.3g} ms"


def traffic_unused(*, axis, measure, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    if axis == "block" or measure == "memory":
        unused.append("sram")
    if measure != "time":
        unused.append("gpu")
    if measure == "memory":
        unused += ["causal", "d"]
    return tuple(unused)


def traffic_table(**values) -> Table:
    """What the lines show."""
    lines = _lines(**values)
    unit, standard = UNITS[values["measure"]], lines["standard"]
    rows = tuple(
        (x, y, lines["version_1"][i][1], lines["version_2"][i][1]) for i, (x, y) in enumerate(standard)
    )
    return Table((AXES[values["axis"]], *(f"{name} ({unit})" for name, *_ in LINES.values())), rows)


traffic_explorer = Explorer(
    id="attention-traffic",
    title="What grows, and what a block buys",
    controls=(
        Choice("axis", "Against", AXES, "length"),
        Choice("measure", "Show", MEASURES, "bytes"),
        Choice("direction", "Pass", PASSES, "forward"),
        Real("length", "Tokens N", 128, 2**20, 8192, 1, "log", help="queries, and as many keys"),
        Choice("d", "Head dimension d", HEAD_DIMS, "128"),
        Real("heads", "Heads in all", 1, 4096, 32, 1, "log", help="of all sequences together"),
        Real("sram", "SRAM", 16, 256, 192, 0.1, "log", unit="kB", help="gives tiles by the paper's rule"),
        Switch("causal", "Causal", help="standard attention computes what is hidden all the same"),
        Choice("gpu", "GPU", GPU_NAMES, "H100-SXM", help="whose peaks the roofline takes"),
    ),
    presets=(
        Preset("length", "Bytes as N grows"),
        Preset("figure_2", "The paper's Figure 2",
               {"axis": "block", "direction": "both", "length": 1024.0, "d": "64", "heads": 1024.0,
                "gpu": "A100-40GB"}),
        Preset("time", "Its time", {"axis": "block", "measure": "time", "direction": "both", "length": 1024.0,
                                    "d": "64", "heads": 1024.0, "gpu": "A100-40GB"}),
        Preset("memory", "Memory", {"measure": "memory", "direction": "both"}),
        Preset("million", "A million tokens", {"measure": "time", "length": 2.0**20, "causal": True}),
    ),
    figure=traffic_figure,
    takeaway=traffic_takeaway,
    table=traffic_table,
    unused=traffic_unused,
)  # fmt: skip
