"""What is left of t GPUs, and where a step's time goes: a plain Plotly dict without a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gpuedu.style import COLORS
from gpuedu.tensor_parallel.cost import StepTime

Sizes = Mapping[int, StepTime]  # by t


@dataclass(frozen=True)
class Fabric:
    """One way to connect the GPUs, and what a step takes on it."""

    label: str
    steps: Sizes
    dash: str
    symbol: str


def speed(fabrics: tuple[Fabric, ...], chosen: int) -> dict:
    """Useful share against t for each fabric, and below it what a microbatch costs on the chosen one.

    Parameters
    ----------
    fabrics : tuple of Fabric
        Same sizes t in each.
    chosen : int
        Whose curve is drawn thick, and whose GPU-seconds are taken apart.

    Returns
    -------
    dict
        A Plotly figure, without a template.
    """
    sizes = [str(t) for t in fabrics[chosen].steps]
    return {
        "data": [*_curves(fabrics, chosen), *_bars(fabrics[chosen])],
        "layout": {
            "height": 500,
            "barmode": "stack",
            "bargap": 0.35,
            "xaxis": {"type": "category", "categoryarray": sizes, "anchor": "y2", "fixedrange": True,
                      "title": {"text": "tensor-parallel GPUs t"}, "showgrid": False},
            "yaxis": {"domain": [0.5, 1], "range": [0, 105], "fixedrange": True,
                      "title": {"text": "useful work (%)"}},
            "yaxis2": {"domain": [0, 0.4], "rangemode": "tozero", "fixedrange": True,
                       "title": {"text": "GPU-seconds"}},
            "legend": {"itemwidth": 30, "font": {"size": 13}, "tracegroupgap": 0, "traceorder": "normal"},
            "margin": {"l": 56, "r": 16, "t": 72, "b": 56},
        },
    }  # fmt: skip


def _curves(fabrics: tuple[Fabric, ...], chosen: int) -> Iterator[dict]:
    for i, fabric in enumerate(fabrics):
        yield {
            "type": "scatter", "mode": "lines+markers", "name": fabric.label,
            "x": [str(t) for t in fabric.steps],
            "y": [100 * step.useful_share for step in fabric.steps.values()],
            "line": {"color": COLORS["forward"], "width": 3 if i == chosen else 1.5, "dash": fabric.dash},
            "marker": {"color": COLORS["forward"], "symbol": fabric.symbol, "size": 9 if i == chosen else 7},
            "hovertemplate": f"t = %{{x}}: %{{y:.1f}} % useful<extra>{fabric.label}</extra>",
        }  # fmt: skip


def _bars(fabric: Fabric) -> Iterator[dict]:
    """GPU-seconds of each step: what t GPUs spend together."""
    parts = {  # color, pattern (a second cue beside color), seconds of one GPU
        "computing": (COLORS["forward"], "", lambda step: step.compute_s),
        "waiting for collectives": (COLORS["communication"], "/", lambda step: step.communication_s),
    }
    for name, (color, shape, seconds) in parts.items():
        share = [100 * seconds(step) / step.total_s for step in fabric.steps.values()]
        yield {
            "type": "bar", "name": name, "yaxis": "y2", "x": [str(t) for t in fabric.steps],
            "y": [t * seconds(step) for t, step in fabric.steps.items()], "customdata": share,
            "marker": {"color": color, "line": {"color": color, "width": 1},
                       "pattern": {"shape": shape, "size": 7, "solidity": 0.5}},
            "hovertemplate": f"t = %{{x}}: %{{y:.3g}} GPU-seconds {name}, %{{customdata:.1f}} % of the step"
                             "<extra></extra>",
        }  # fmt: skip
