"""W8A8 with outliers: how one loud channel ruins eight bits, and what SmoothQuant's alpha trades for it.

Its functions take every control by keyword; products are memoized, so that moving alpha costs one more.
"""

from __future__ import annotations

from functools import lru_cache
from math import log10, sqrt
from random import Random

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Switch, Table
from gpuedu.quantization.plan import peaks, rounded_product, smoothing_scales
from gpuedu.style import COLORS, tint

TOKENS, CHANNELS, OUTPUTS = 12, 24, 10
ALPHAS = tuple(k / 20 for k in range(21))
ACTIVATIONS, WEIGHTS, ERROR, MARK = (
    COLORS[name] for name in ("forward", "memory_used", "rejected", "waiting")
)
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
SCALES = {"token": "One a token", "tensor": "One for all tokens"}

Matrix = tuple[tuple[float, ...], ...]


def _loud(channels: int) -> tuple[int, ...]:
    return tuple((5 + 7 * k) % CHANNELS for k in range(channels))


@lru_cache(maxsize=64)
def _activations(outlier: float, channels: int) -> Matrix:
    """Normal numbers, some channels of them larger."""
    chosen = Random(7)
    size = [outlier if j in _loud(channels) else 1.0 for j in range(CHANNELS)]
    return tuple(tuple(chosen.gauss(0, 1) * s for s in size) for _ in range(TOKENS))


@lru_cache(maxsize=1)
def _weights() -> Matrix:
    chosen = Random(11)
    return tuple(tuple(chosen.gauss(0, 1) / sqrt(CHANNELS) for _ in range(CHANNELS)) for _ in range(OUTPUTS))


@lru_cache(maxsize=64)
def _product(outlier: float, channels: int) -> Matrix:
    """Exact, every token with every output."""
    tokens = _activations(outlier, channels)
    return tuple(tuple(_dot(token, row) for row in _weights()) for token in tokens)


@lru_cache(maxsize=64)
def _quiet(channels: int) -> float:
    """Root mean square of what the other channels contribute to the product."""
    return _rms(_product(0.0, channels))


def _rms(matrix: Matrix) -> float:
    return sqrt(sum(x * x for row in matrix for x in row) / (TOKENS * OUTPUTS))


def _dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _scales(outlier: float, channels: int, smooth: bool, alpha: float) -> tuple[float, ...]:
    if not smooth:
        return (1.0,) * CHANNELS
    return smoothing_scales(peaks(_activations(outlier, channels)), peaks(_weights()), alpha)


@lru_cache(maxsize=512)
def _error(outlier: float, channels: int, per: str, smooth: bool, alpha: float) -> float:
    """Root mean square error of the product, as a share of what the quiet channels contribute to it."""
    scales = _scales(outlier, channels, smooth, alpha)
    tokens = _activations(outlier, channels)
    rounded = rounded_product(tokens, _weights(), scales, per_tensor=per == "tensor")
    exact = _product(outlier, channels)
    off = tuple(tuple(a - b for a, b in zip(*rows, strict=True)) for rows in zip(rounded, exact, strict=True))
    return _rms(off) / _quiet(channels if outlier > 1 else 0)


def outlier_figure(*, outlier, channels, per, smooth, alpha) -> dict:
    """Peaks of activations and weights by channel, and the error of the product over alpha."""
    bare = {"showgrid": False, "zeroline": False, "fixedrange": True, "ticks": ""}
    own = _error(outlier, channels, per, smooth, alpha)
    curve = [100 * _error(outlier, channels, per, True, a) for a in ALPHAS]
    plain = 100 * _error(outlier, channels, per, False, 0.0)
    layout = {
        "height": 520, "barmode": "overlay", "bargap": 0.25,
        "xaxis": bare | {"anchor": "y2", "matches": "x", "title": {"text": "input channel"},
                         "showticklabels": False},
        "yaxis": {"domain": [0.75, 1], "type": "log", "fixedrange": True, "dtick": 1, "range": [-1.2, 2.5],
                  "title": {"text": "largest<br>activation"}},
        "yaxis2": {"domain": [0.46, 0.71], "type": "log", "fixedrange": True, "dtick": 1,
                   "range": [-1.2, 2.5], "title": {"text": "largest<br>weight"}},
        "xaxis3": {"anchor": "y3", "range": [-0.02, 1.02], "fixedrange": True, "dtick": 0.25,
                   "title": {"text": "migration strength α"}},
        "yaxis3": {"domain": [0, 0.32], "type": "log", "fixedrange": True, "tickvals": list(TICKS),
                   "ticktext": [f"{tick:g} %" for tick in TICKS],
                   "range": [log10(0.7 * min(*curve, plain)), log10(1.8 * max(*curve, plain))],
                   "title": {"text": "error (of quiet<br>channels' part)"}},
        "margin": {"l": 72, "r": 16, "t": 64, "b": 56},
        "legend": {"itemwidth": 30, "font": {"size": 13}, "traceorder": "normal"},
    }  # fmt: skip
    return {
        "data": [*_bars(outlier, channels, smooth, alpha), *_error_curve(curve, plain, smooth, alpha, own)],
        "layout": layout,
    }


def _bars(outlier, channels, smooth, alpha) -> list[dict]:
    """Peaks before, as outlines, and after."""
    scales = _scales(outlier, channels, smooth, alpha)
    first = peaks(_activations(outlier, channels)), peaks(_weights())
    after = (
        [peak / s for peak, s in zip(first[0], scales, strict=True)],
        [peak * s for peak, s in zip(first[1], scales, strict=True)],
    )
    traces = []
    for kind, (name, color) in enumerate((("activations", ACTIVATIONS), ("weights", WEIGHTS))):
        axis = "y2" if kind else "y"
        place = {"type": "bar", "x": list(range(CHANNELS)), "xaxis": "x", "yaxis": axis}
        traces.append(place | {
            "y": list(first[kind]), "name": f"{name}, as they were", "width": 0.9,
            "marker": {"color": tint(color, 0.75), "line": {"color": color, "width": 1}},
            "hovertemplate": f"channel %{{x}}: %{{y:.3g}}<extra>{name}, as they were</extra>",
        })  # fmt: skip
        traces.append(place | {
            "y": after[kind], "name": f"{name}, as rounded", "width": 0.45, "marker": {"color": color},
            "hovertemplate": f"channel %{{x}}: %{{y:.3g}}<extra>{name}, as rounded</extra>",
        })  # fmt: skip
    return traces


def _error_curve(curve, plain, smooth, alpha, own) -> list[dict]:
    place = {"type": "scatter", "xaxis": "x3", "yaxis": "y3", "showlegend": False}
    return [
        place | {"mode": "lines", "x": list(ALPHAS), "y": curve, "line": {"color": ERROR, "width": 2},
                 "hovertemplate": "α = %{x:.2f}: %{y:.2f} %<extra>smoothed</extra>"},
        place | {"mode": "lines+text", "x": [0, 1], "y": [plain, plain], "text": ["", "not smoothed"],
                 "textposition": "top left", "textfont": {"color": MARK, "size": 12},
                 "line": {"color": MARK, "width": 1.5, "dash": "dash"},
                 "hovertemplate": "%{y:.2f} %<extra>not smoothed</extra>"},
        place | {"mode": "markers", "x": [alpha if smooth else 0], "y": [100 * own],
                 "marker": {"symbol": "diamond", "size": 13, "color": ERROR},
                 "hovertemplate": "%{y:.2f} %<extra>yours</extra>"},
    ]  # fmt: skip


def outlier_unused(*, outlier, smooth, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    if not smooth:
        unused.append("alpha")
    if outlier == 1:
        unused.append("channels")
    return tuple(unused)


def outlier_takeaway(*, outlier, channels, per, smooth, alpha) -> str:
    """One sentence: the error of the product, with and without smoothing."""
    own = 100 * _error(outlier, channels, per, smooth, alpha)
    plain = 100 * _error(outlier, channels, per, False, 0.0)
    of = "of what the quiet channels contribute"
    if smooth:
        smoothed = f"Smoothed with α = {alpha:.2g}, eight bits are off by **{own:.2g} %** {of}"
        return f"{smoothed}; unsmoothed, by {plain:.2g} %."
    if outlier == 1:
        return f"Where all channels are of one size, eight bits are off by **{own:.2g} %** {of}."
    loud = "one channel" if channels == 1 else f"{channels} channels"
    clean = 100 * _error(1.0, channels, per, False, 0.0)
    return (
        f"With {loud} of {CHANNELS} at {outlier:.3g} times the others, eight bits are off by **{own:.2g} %** "
        f"{of}; without, by {clean:.2g} %."
    )


def outlier_table(*, outlier, channels, per, smooth, alpha) -> Table:
    """Every channel's peaks, before and after."""
    scales = _scales(outlier, channels, smooth, alpha)
    first, weights = peaks(_activations(outlier, channels)), peaks(_weights())
    rows = tuple(
        (k + 1, a, w, s, a / s, w * s) for k, (a, w, s) in enumerate(zip(first, weights, scales, strict=True))
    )
    return Table(("channel", "activation", "weight", "scale", "activation after", "weight after"), rows)


outliers = Explorer(
    id="smoothquant-outliers",
    title="Outliers, and where to put them",
    controls=(
        Real("outlier", "Outlier", 1, 200, 60, 0.15, "log", unit="times",
             help="how large the loud channels are, others being 1"),
        Integer("channels", "Loud channels", 1, 4, 1, help=f"of {CHANNELS}"),
        Choice("per", "Scales of the activations", SCALES, "token"),
        Switch("smooth", "SmoothQuant", help="divide activations and multiply weights, channel by channel"),
        Real("alpha", "Migration strength α", 0, 1, 0.5, 0.05),
    ),
    presets=(
        Preset("clean", "No outliers", {"outlier": 1.0}),
        Preset("one", "One loud channel"),
        Preset("tensor", "One scale for all", {"per": "tensor"}),
        Preset("half", "Half moved", {"smooth": True}),
        Preset("all", "All moved", {"smooth": True, "alpha": 1.0}),
    ),
    figure=outlier_figure,
    takeaway=outlier_takeaway,
    table=outlier_table,
    unused=outlier_unused,
)  # fmt: skip
