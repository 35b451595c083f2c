"""The winner map: which all-reduce takes the least time, over message size and world size.

Its functions take every control by keyword; maps are memoized, so that moving the reader's own size
costs nothing but its curve.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from math import log10

from gpuedu.all_reduce.cost import NCCL_ALGORITHMS, candidate_times
from gpuedu.all_reduce.cost import winner_map as winners
from gpuedu.all_reduce.plan import ALL_REDUCES
from gpuedu.all_reduce.plot.words import BYTES, NAMES, SECONDS, in_units
from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Table
from gpuedu.hardware import Link
from gpuedu.style import COLORS, ink_on, tint

WORLD_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SIZES = tuple(10 ** (3 + i / 3) for i in range(23))  # 1 kB to 21.5 GB
LABEL_CELLS = 6  # that an algorithm's name takes
CHOICES = {"all": "All of this chapter", "nccl": "Ring and double tree, as NCCL"}
CANDIDATES = {"all": tuple(ALL_REDUCES), "nccl": NCCL_ALGORITHMS}

FILLS = {  # one concept, communication, in shades; the names stand in the map
    "recursive_doubling": tint(COLORS["communication"], 0.85),
    "tree": tint(COLORS["communication"], 0.7),
    "recursive_halving_doubling": tint(COLORS["communication"], 0.6),
    "double_binary_tree": tint(COLORS["communication"], 0.3),
    "ring": COLORS["communication"],
    "parameter_server": COLORS["waiting"],
}
DASHES = {
    "ring": "solid",
    "double_binary_tree": "dash",
    "recursive_halving_doubling": "dashdot",
    "recursive_doubling": "dot",
    "tree": "longdash",
    "parameter_server": "longdashdot",
}


@lru_cache(maxsize=64)
def _link(latency: float, bandwidth: float) -> Link:
    return Link("the reader's", latency * 1e-6, bandwidth * 1e9, "set by the reader")


@lru_cache(maxsize=64)
def _map(world_sizes: tuple[int, ...], latency: float, bandwidth: float, candidates: str) -> list[list[str]]:
    return winners(world_sizes, SIZES, _link(latency, bandwidth), algorithms=CANDIDATES[candidates])


def _rows(world_size: int) -> tuple[int, ...]:
    return tuple(sorted({*WORLD_SIZES, world_size}))


def winner_map_figure(*, candidates, world_size, megabytes, latency, bandwidth) -> dict:
    """The map above, the times at the reader's number of GPUs below."""
    rows = _rows(world_size)
    names = _map(rows, latency, bandwidth, candidates)
    mine = log10(megabytes * 1e6)
    powers = range(3, 11)
    sizes = {
        "range": [log10(SIZES[0]) - 1 / 6, log10(SIZES[-1]) + 1 / 6], "showgrid": False, "zeroline": False,
        "tickvals": list(powers),
        "ticktext": ["" if e % 2 == 0 else in_units(10.0**e, BYTES) for e in powers],
    }  # fmt: skip
    curves = list(_curves(world_size, latency, bandwidth, candidates))
    lows, highs = zip(*((min(curve["y"]), max(curve["y"])) for curve in curves), strict=True)
    decades = range(int(log10(min(lows)) // 1), int(log10(max(highs)) // 1) + 2)
    layout = {
        "height": 760,
        "xaxis": sizes | {"anchor": "y", "showticklabels": False},
        "yaxis": {"domain": [0.44, 1], "title": {"text": "GPUs n"}, "tickvals": list(range(len(rows))),
                  "ticktext": [str(n) for n in rows], "showgrid": False, "zeroline": False},
        "xaxis2": sizes | {"anchor": "y2", "title": {"text": "array (bytes)"}},
        "yaxis2": {"domain": [0, 0.39], "type": "log", "title": {"text": f"time with {world_size} GPUs"},
                   "tickvals": [10.0**e for e in decades],
                   "ticktext": [in_units(10.0**e, SECONDS) for e in decades]},
        "shapes": [{"type": "line", "x0": mine, "x1": mine, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": COLORS["waiting"], "width": 1.5, "dash": "dot"}}],
        "margin": {"l": 72, "r": 16, "t": 84, "b": 76},
        "legend": {"itemwidth": 40, "font": {"size": 13}},
    }  # fmt: skip
    mark = {
        "type": "scatter", "mode": "markers", "x": [mine], "y": [rows.index(world_size)], "showlegend": False,
        "marker": {"symbol": "diamond", "size": 14, "color": "#ffffff",
                   "line": {"color": "#000000", "width": 2}},
        "hovertemplate": f"{world_size} GPUs, {in_units(megabytes * 1e6, BYTES)}<extra>yours</extra>",
    }  # fmt: skip
    best = _best(curves)
    return {
        "data": [_areas(names, rows), _labels(names, rows, world_size), mark, *curves, best],
        "layout": layout,
    }


def _areas(names: list[list[str]], rows: tuple[int, ...]) -> dict:
    """The map as one picture."""
    order = list(FILLS)
    count = len(order)
    scale = [(edge / count, FILLS[name]) for i, name in enumerate(order) for edge in (i, i + 1)]
    return {
        "type": "heatmap", "x": [log10(size) for size in SIZES], "y": list(range(len(rows))),
        "z": [[order.index(name) + 0.5 for name in row] for row in names], "zmin": 0, "zmax": count,
        "colorscale": scale, "showscale": False, "ygap": 1,
        "customdata": [
            [(NAMES[name], n, in_units(size, BYTES)) for name, size in zip(row, SIZES, strict=True)]
            for row, n in zip(names, rows, strict=True)
        ],
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]} GPUs, %{customdata[2]}<extra></extra>",
    }  # fmt: skip


def _labels(names: list[list[str]], rows: tuple[int, ...], world_size: int) -> dict:
    """Each algorithm's name once: in the middle of what it wins, where it fits, beside the reader's row."""
    runs = defaultdict(list)
    for y, row in enumerate(names):
        start = 0
        for x in range(1, len(row) + 1):
            if x == len(row) or row[x] != row[start]:
                runs[row[start]].append((x - start, start, y))
                start = x
    spots = []
    for name, found in runs.items():
        fits = min(LABEL_CELLS, max(length for length, _, _ in found))
        found = [run for run in found if run[0] >= fits]
        middle = sum(y for _, _, y in found) / len(found)
        length, start, y = min(found, key=lambda run: (rows[run[2]] == world_size, abs(run[2] - middle)))
        x, side = _anchor(start, length)
        spots.append((3 + x / 3, y, NAMES[name], ink_on(FILLS[name]), side))
    xs, ys, texts, inks, sides = zip(*spots, strict=True)
    return {
        "type": "scatter", "mode": "text", "x": list(xs), "y": list(ys), "text": list(texts),
        "textposition": list(sides),
        "textfont": {"color": list(inks), "size": 12}, "hoverinfo": "skip", "showlegend": False,
        "cliponaxis": False,
    }  # fmt: skip


def _anchor(start: int, length: int) -> tuple[float, str]:
    """Where a name is held in its area, in cells: at an edge of the map that the area touches, else amid."""
    if start == 0:
        return -0.3, "middle right"
    if start + length == len(SIZES):
        return start + length - 0.7, "middle left"
    return start + (length - 1) / 2, "middle center"


def _curves(world_size: int, latency: float, bandwidth: float, candidates: str):
    """Time over size at one number of GPUs, one line an algorithm."""
    link = _link(latency, bandwidth)
    times = [candidate_times(world_size, s, link, algorithms=CANDIDATES[candidates]) for s in SIZES]
    for name in CANDIDATES[candidates]:
        seconds = [each[name] for each in times]
        yield {
            "type": "scatter", "mode": "lines", "xaxis": "x2", "yaxis": "y2", "name": NAMES[name],
            "x": [log10(size) for size in SIZES], "y": seconds,
            "line": {"color": COLORS["waiting"], "width": 2, "dash": DASHES[name]},
            "customdata": [(in_units(t, SECONDS), in_units(size, BYTES))
                           for t, size in zip(seconds, SIZES, strict=True)],
            "hovertemplate": f"{NAMES[name]}: %{{customdata[0]}} for %{{customdata[1]}}<extra></extra>",
        }  # fmt: skip


def _best(curves: list[dict]) -> dict:
    """The lower edge of all curves."""
    return {
        "type": "scatter", "mode": "lines", "xaxis": "x2", "yaxis": "y2", "name": "the fastest",
        "hoverinfo": "skip", "x": curves[0]["x"],
        "y": [min(seconds) for seconds in zip(*(curve["y"] for curve in curves), strict=True)],
        "line": {"color": COLORS["communication"], "width": 4},
    }  # fmt: skip


def winner_map_takeaway(*, candidates, world_size, megabytes, latency, bandwidth) -> str:
    """One sentence: who wins, by how much, and what part of it is latency."""
    link, nbytes = _link(latency, bandwidth), megabytes * 1e6
    times = candidate_times(world_size, nbytes, link, algorithms=CANDIDATES[candidates])
    best = min(times, key=times.__getitem__)
    floor = 2 * (world_size - 1) / world_size * nbytes / link.bandwidth
    text = (
        f"{NAMES[best]} sums {in_units(nbytes, BYTES)} over {world_size} GPUs in "
        f"**{in_units(times[best], SECONDS)}**"
    )
    ratio = f"{times['ring'] / times[best]:.3g}"
    if best != "ring":
        text += f", **{ratio} times** as fast as the ring" if ratio != "1" else ", as fast as the ring"
    return text + f"; bandwidth alone asks for {100 * floor / times[best]:.3g} % of that."


def winner_map_table(*, candidates, world_size, megabytes, latency, bandwidth) -> Table:
    """The winner for every tenfold size and every number of GPUs, and the times at the reader's own."""
    link, own = _link(latency, bandwidth), megabytes * 1e6
    rows = []
    for n, names in zip(
        _rows(world_size), _map(_rows(world_size), latency, bandwidth, candidates), strict=True
    ):
        rows += [(n, in_units(SIZES[i], BYTES), NAMES[names[i]]) for i in range(0, len(SIZES), 3)]
    times = candidate_times(world_size, own, link, algorithms=CANDIDATES[candidates])
    rows += [
        (world_size, in_units(own, BYTES), f"{NAMES[name]}: {in_units(seconds, SECONDS)}")
        for name, seconds in sorted(times.items(), key=lambda item: item[1])
    ]
    return Table(("GPUs", "array", "fastest; at your size, all of them"), tuple(rows))


winner_map = Explorer(
    id="all-reduce-winners",
    title="Which all-reduce wins",
    controls=(
        Choice("candidates", "Algorithms", CHOICES, "all"),
        Integer("world_size", "GPUs n", 2, 1024, 64, help="each with the same link to all others"),
        Real("megabytes", "Array S", 0.001, 20_000, 25, 0.2589, "log", unit="MB", help="your own size"),
        Real("latency", "Latency", 0.1, 100, 4, 0.2589, "log", unit="µs", help="alpha, of one message"),
        Real("bandwidth", "Bandwidth", 0.1, 1000, 50, 0.2589, "log", unit="GB/s", help="one direction"),
    ),
    presets=(
        Preset("small", "One activation", {"megabytes": 0.016}),
        Preset("bucket", "A gradient bucket", {"megabytes": 25}),
        Preset("odd", "384 GPUs", {"megabytes": 25, "world_size": 384}),
        Preset("nccl", "What NCCL has", {"candidates": "nccl", "megabytes": 1}),
        Preset("gradient", "A whole gradient", {"candidates": "nccl", "megabytes": 13_500}),
        Preset("slow", "10 Gbit/s Ethernet", {"candidates": "nccl", "latency": 50, "bandwidth": 1.25}),
    ),
    figure=winner_map_figure,
    takeaway=winner_map_takeaway,
    table=winner_map_table,
)  # fmt: skip
