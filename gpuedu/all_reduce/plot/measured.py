"""Model and measurement: what others have measured, and the line that two numbers make of it.

Its functions take every control by keyword. A machine's published points are fixed; the two numbers,
what one round costs and what the bytes cost, are the reader's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import log10
from statistics import median

from gpuedu.all_reduce.cost import (
    FITS,
    SWEEPS,
    Sweep,
    bus_bandwidth,
    bus_factor,
    collective_time,
    fit_latency_and_bandwidth,
    hierarchical_time,
)
from gpuedu.all_reduce.plan import Collective
from gpuedu.all_reduce.plot.words import BYTES, SECONDS, in_units
from gpuedu.explorer import Choice, Explorer, Preset, Real, Table
from gpuedu.hardware import LINKS, Link
from gpuedu.style import COLORS, tint

MACHINES = {name: name.replace(" x ", " × ") for name in SWEEPS}
SIZES = tuple(512 * 2 ** (i / 2) for i in range(51))  # 512 B to 16 GiB
RATES = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"))
LARGE_BYTES = 2**29  # all sweeps reach it


def _rate(sweep: Sweep, nbytes: float, seconds: float) -> float:
    """Bus bandwidth, in bytes/s."""
    return bus_bandwidth(Collective.ALL_REDUCE, sweep.world_size, nbytes, seconds)


def _two_numbers(sweep: Sweep, latency: float, bandwidth: float) -> Callable[[float], float]:
    """Seconds of a ring by the size of its array; µs and GB/s."""
    link = Link("the reader's", latency * 1e-6, bandwidth * 1e9, "set by the reader")
    return lambda nbytes: collective_time("ring", sweep.world_size, nbytes, link)


@lru_cache(maxsize=64)
def _ratios(machine: str, latency: float, bandwidth: float) -> tuple[tuple[int, float], ...]:
    """Modeled over measured time, by bytes."""
    model = _two_numbers(SWEEPS[machine], latency, bandwidth)
    return tuple((nbytes, model(nbytes) / seconds) for nbytes, seconds in SWEEPS[machine].times)


def measured_figure(*, machine, latency, bandwidth) -> dict:
    """Bus bandwidth over size, measured and modeled, above; the quotient of the two times below."""
    sweep = SWEEPS[machine]
    ratios = _ratios(machine, latency, bandwidth)
    powers, decades = range(3, 11), range(7, 13)
    spread = max(2.2, *(max(ratio, 1 / ratio) * 1.15 for _, ratio in ratios))
    factors = {0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4"}
    if spread > 8:
        factors = {0.001: "1/1000", 0.01: "1/100", 0.1: "1/10", 1: "1", 10: "10", 100: "100", 1000: "1000"}
    sizes = {
        "type": "log", "range": [log10(SIZES[0]) - 0.1, log10(SIZES[-1]) + 0.1],
        "tickvals": [10.0**e for e in powers],
        "ticktext": ["" if e % 2 == 0 else in_units(10.0**e, BYTES) for e in powers],
    }  # fmt: skip
    layout = {
        "height": 620,
        "xaxis": sizes | {"anchor": "y", "showticklabels": False},
        "yaxis": {"domain": [0.4, 1], "type": "log", "range": [7.3, 12.1], "title": {"text": "bus bandwidth"},
                  "tickvals": [10.0**e for e in decades],
                  "ticktext": [in_units(10.0**e, RATES) for e in decades]},
        "xaxis2": sizes | {"anchor": "y2", "title": {"text": "array (bytes)"}},
        "yaxis2": {"domain": [0, 0.32], "type": "log", "range": [-log10(spread), log10(spread)],
                   "title": {"text": "time, modeled<br>over measured"},
                   "tickvals": list(factors), "ticktext": list(factors.values())},
        "shapes": [{"type": "line", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
                    "line": {"color": COLORS["communication"], "width": 2}}],
        "margin": {"l": 72, "r": 16, "t": 84, "b": 76},
        "legend": {"itemwidth": 40, "font": {"size": 13}, "traceorder": "normal"},
    }  # fmt: skip
    model = _line(sweep, "two numbers", _two_numbers(sweep, latency, bandwidth))
    model["line"] = {"color": COLORS["communication"], "width": 3}
    return {
        "data": [model, *_others(sweep), _points(sweep), _residuals(ratios)],
        "layout": layout,
    }


def _line(sweep: Sweep, name: str, seconds: Callable[[float], float]) -> dict:
    """A model's bus bandwidth over all sizes."""
    rates = [_rate(sweep, nbytes, seconds(nbytes)) for nbytes in SIZES]
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": list(SIZES), "y": rates,
        "customdata": [(in_units(rate, RATES), in_units(nbytes, BYTES))
                       for rate, nbytes in zip(rates, SIZES, strict=True)],
        "hovertemplate": f"{name}: %{{customdata[0]}} at %{{customdata[1]}}<extra></extra>",
    }  # fmt: skip


def _others(sweep: Sweep):
    """The lines that do not move: of the datasheets, and fitted by others to their own measurements."""
    gray = {"color": COLORS["waiting"], "width": 2}
    if sweep.cluster is not None:
        by_levels = _line(sweep, "datasheets", lambda nbytes: hierarchical_time(sweep.cluster, nbytes))
        yield by_levels | {"line": gray | {"dash": "dash"}}
    if sweep.name in FITS:
        yield _line(sweep, "Vidur's fit", FITS[sweep.name].seconds) | {"line": gray | {"dash": "dot"}}


def _points(sweep: Sweep) -> dict:
    """What was measured."""
    return {
        "type": "scatter", "mode": "markers", "name": "measured", "marker": _marker(),
        "x": [nbytes for nbytes, _ in sweep.points], "y": [rate for _, rate in sweep.points],
        "customdata": [
            (in_units(rate, RATES), in_units(nbytes, BYTES), in_units(seconds, SECONDS))
            for (nbytes, rate), (_, seconds) in zip(sweep.points, sweep.times, strict=True)
        ],
        "hovertemplate": "measured: %{customdata[0]} at %{customdata[1]}, %{customdata[2]}<extra></extra>",
    }  # fmt: skip


def _residuals(ratios: tuple[tuple[int, float], ...]) -> dict:
    """Modeled over measured time."""
    return {
        "type": "scatter", "mode": "markers", "xaxis": "x2", "yaxis": "y2", "showlegend": False,
        "x": [nbytes for nbytes, _ in ratios], "y": [ratio for _, ratio in ratios], "marker": _marker(),
        "customdata": [in_units(nbytes, BYTES) for nbytes, _ in ratios],
        "hovertemplate": "modeled time %{y:.2f} times the measured one at %{customdata}<extra></extra>",
    }  # fmt: skip


def _marker() -> dict:
    color = COLORS["communication"]
    return {"size": 9, "color": tint(color, 0.6), "line": {"color": color, "width": 1.5}}


def measured_takeaway(*, machine, latency, bandwidth) -> str:
    """One sentence: how far off at a large array, in the middle of the field, and at the worst."""
    ratios = _ratios(machine, latency, bandwidth)
    large = dict(ratios)[LARGE_BYTES]
    off = [(max(ratio, 1 / ratio), nbytes) for nbytes, ratio in ratios]
    worst, where = max(off)
    return (
        f"On {MACHINES[machine]}, a model of {latency:.3g} µs a round and {bandwidth:.4g} GB/s is off by a "
        f"factor of **{median(factor for factor, _ in off):.3g}** at the median size and of **{worst:.3g}** "
        f"at the worst, {in_units(where, BYTES)}; {in_units(LARGE_BYTES, BYTES)} took {1 / large:.3g} times "
        "as long as modeled."
    )


def measured_table(*, machine, latency, bandwidth) -> Table:
    """Every point: size, measured time and bus bandwidth, modeled time, quotient."""
    sweep = SWEEPS[machine]
    rows = (
        (in_units(nbytes, BYTES), in_units(seconds, SECONDS), in_units(rate, RATES),
         in_units(ratio * seconds, SECONDS), f"{ratio:.2f}")
        for (nbytes, rate), (_, seconds), (_, ratio) in zip(
            sweep.points, sweep.times, _ratios(machine, latency, bandwidth), strict=True
        )
    )  # fmt: skip
    columns = ("array", "measured", "bus bandwidth", "modeled", "modeled over measured")
    return Table(columns, tuple(rows))


def _from_link(machine: str, link: str) -> dict:
    """The preset of a link's datasheet."""
    return {
        "machine": machine, "latency": LINKS[link].latency_s * 1e6, "bandwidth": LINKS[link].bandwidth / 1e9,
    }  # fmt: skip


def _fitted(machine: str) -> dict:
    """The preset whose two numbers lie nearest to the points, to three digits."""
    sweep = SWEEPS[machine]
    seconds, algorithm_bandwidth = fit_latency_and_bandwidth(sweep.times)
    rounds = 2 * (sweep.world_size - 1)
    bus = bus_factor(Collective.ALL_REDUCE, sweep.world_size) * algorithm_bandwidth
    return {
        "machine": machine, "latency": float(f"{seconds / rounds * 1e6:.3g}"),
        "bandwidth": float(f"{bus / 1e9:.3g}"),
    }  # fmt: skip


measured = Explorer(
    id="all-reduce-measured",
    title="Model and measurement",
    controls=(
        Choice("machine", "Measured on", MACHINES, "8 x A100"),
        Real("latency", "A round costs", 0.1, 100, 1.9, 0.0593, "log", unit="µs", help="alpha"),
        Real("bandwidth", "Bandwidth", 5, 2000, 300, 0.0593, "log", unit="GB/s", help="one direction"),
    ),
    presets=(
        Preset("a100", "A100, datasheet", _from_link("8 x A100", "NVLink3")),
        Preset("a100-fit", "A100, fitted", _fitted("8 x A100")),
        Preset("h100", "H100, datasheet", _from_link("8 x H100", "NVLink4")),
        Preset("torch", "H200, called from PyTorch", _from_link("8 x H200, by PyTorch", "NVLink4")),
        Preset("flat", "4 nodes, one ring", _from_link("4 x 8 B200", "InfiniBand-NDR")),
        Preset("nodes", "4 nodes, fitted", _fitted("4 x 8 B200")),
    ),
    figure=measured_figure,
    takeaway=measured_takeaway,
    table=measured_table,
)  # fmt: skip
