"""A priced schedule as a Gantt figure: a plain Plotly dict without a template.

The page or the notebook adds the light or the dark one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt

from gpuedu.pipeline_parallel.cost import Timeline, memory_over_time, peak_activations
from gpuedu.pipeline_parallel.plan import Action, Kind
from gpuedu.style import COLORS, ink_on, tint, translucent

KIND_STYLE = {  # color, height of the bar in lanes (a second cue beside color), name in the legend
    Kind.FORWARD: (COLORS["forward"], 0.52, "F forward"),
    Kind.FULL_BACKWARD: (COLORS["backward"], 0.52, "B backward (I + W)"),
    Kind.BACKWARD_INPUT: (COLORS["backward"], 0.52, "I input gradient"),
    Kind.BACKWARD_WEIGHT: (COLORS["weight_gradient"], 0.34, "W weight gradient"),
}
NOMINAL_WIDTH_PX = 680  # of the plot area on a laptop; a narrower page hides the text that no longer fits
TEXT_WIDTH_PX = 8  # of one digit
HOVER_PX = 14  # how far from a point that answers the pointer Plotly looks for one
HOVER_STEP_PX = 19  # between such points at most, along a bar: less than the diagonal of what one reaches
BASELINE = 0.1  # foot of a bar, below the middle of its lane
GAP_PX, METER_PX, MARGIN_PX = 60, 22, 118


def gantt(timeline: Timeline, *, until: float | None = None, unit: str = "the unit of F, I and W") -> dict:
    """The timeline as a Gantt figure: one lane a rank, its memory below its bars, a bubble meter.

    Bars carry their microbatch's number where it can be read; chunks after the first are drawn
    lighter. The line under a lane is what the rank holds, in microbatches, on one scale for all ranks.

    Parameters
    ----------
    timeline : Timeline
        The priced schedule.
    until : float, optional
        Show only what happens before this time, and a cursor there.
    unit : str
        Of the timeline's times, for the axis title.

    Returns
    -------
    dict
        A Plotly figure, without a template.
    """
    stages = timeline.schedule.stages
    lane_px = _lane_px(timeline)
    plot_px = stages * lane_px + GAP_PX + METER_PX
    meter_top, lanes_bottom = METER_PX / plot_px, (METER_PX + GAP_PX) / plot_px
    end = float(timeline.makespan)
    ranks = range(stages)
    layout = {
        "height": plot_px + MARGIN_PX,
        "barmode": "overlay",
        "bargap": 0,
        "hoverdistance": HOVER_PX,
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "xaxis": {"title": {"text": f"time (in {unit})"},
                  "range": [0, end], "showgrid": False, "zeroline": False, "anchor": "y"},
        "yaxis": {"domain": [lanes_bottom, 1], "range": [stages - 0.5, -0.5], "showgrid": False,
                  "zeroline": False, "tickvals": list(ranks), "ticktext": [f"rank {r}" for r in ranks],
                  "fixedrange": True},
        "xaxis2": {"title": {"text": _bubble_words(timeline)}, "range": [0, 100], "ticksuffix": " %",
                   "anchor": "y2", "showgrid": False, "zeroline": False, "fixedrange": True},
        "yaxis2": {"domain": [0, meter_top], "showticklabels": False, "ticks": "", "showgrid": False,
                   "zeroline": False, "fixedrange": True},
        "margin": {"l": 60, "r": 58, "t": 12, "b": 76},
        # Placed by the figure's edge, not by the plot's: Plotly then keeps room for the rows that it has now
        "legend": {"yref": "container", "x": 0, "y": 1, "yanchor": "top", "itemwidth": 30,
                   "font": {"size": 13}, "tracegroupgap": 0},
    }  # fmt: skip
    traces = [_idle(timeline, until), *_bars(timeline, until), *_memory(timeline, until), _peaks(timeline)]
    if until is not None:
        cursor = {"type": "line", "x0": until, "x1": until, "y0": lanes_bottom, "y1": 1, "yref": "paper"}
        layout["shapes"] = [cursor | {"line": {"color": COLORS["waiting"], "width": 2}}]
    return {"data": traces + list(_meter(timeline)), "layout": layout}


def _lane_px(timeline: Timeline) -> int:
    return max(22, min(54, 400 // timeline.schedule.stages))


def _scale(timeline: Timeline) -> tuple[float, int]:
    """Pixels of a unit of time, nominally, and of a lane."""
    return NOMINAL_WIDTH_PX / float(timeline.makespan), _lane_px(timeline)


def _short(time: float) -> float:
    """A time without the last digits of a sum, which a page would have to carry and nobody can see."""
    return float(f"{time:.9g}")


def _idle(timeline: Timeline, until: float | None) -> dict:
    """Every gap of every rank, hatched, as one area."""
    now = timeline.makespan if until is None else until
    xs: list[float | None] = []
    ys: list[float | None] = []
    for rank, (starts, ends) in enumerate(zip(timeline.starts, timeline.ends, strict=True)):
        for left, right in zip((0, *ends), (*starts, timeline.makespan), strict=True):
            right = min(right, now)
            if right > left:
                left, right = _short(left), _short(right)
                xs += [left, right, right, left, None]
                ys += [rank - 0.42, rank - 0.42, rank + BASELINE, rank + BASELINE, None]
    return {
        "type": "scatter", "mode": "none", "name": "waiting", "x": xs, "y": ys,
        "fill": "toself", "hoverinfo": "skip",
        "fillpattern": {"shape": "/", "size": 7, "solidity": 0.15, "fgcolor": COLORS["waiting"],
                        "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip


@dataclass(frozen=True)
class _Bars:
    """The passes of one kind and chunk, as the figure draws them; ``drawn``: how much of each length."""

    kind: Kind
    chunk: int
    actions: tuple[Action, ...]
    starts: tuple[float, ...]
    lengths: tuple[float, ...]
    drawn: tuple[float, ...]
    fill: str
    edge: str


def _bars(timeline: Timeline, until: float | None) -> Iterator[dict]:
    """The traces of all passes: numbered bars, or plain ones where no number can be read."""
    px_per_unit, _ = _scale(timeline)
    number_px = TEXT_WIDTH_PX * len(str(timeline.schedule.microbatches - 1)) + 4
    for bars in _groups(timeline, until):
        if min(bars.lengths) * px_per_unit >= number_px:
            yield _numbered(bars, timeline)
        else:
            yield from _plain(bars, timeline)


def _groups(timeline: Timeline, until: float | None) -> Iterator[_Bars]:
    """The passes begun before ``until``, by kind and chunk, in the legend's order; one that runs is cut."""
    schedule = timeline.schedule
    now = float(timeline.makespan if until is None else until)
    groups: dict[tuple[Kind, int], list[tuple[Action, float, float, float]]] = {}
    for actions, starts, ends in zip(schedule.actions, timeline.starts, timeline.ends, strict=True):
        for action, start, stop in zip(actions, starts, ends, strict=True):
            if start < now:
                begin, length = _short(start), _short(stop - start)
                groups.setdefault((action.kind, action.chunk), []).append(
                    (action, begin, length, min(length, now - begin))
                )
    order = list(KIND_STYLE)
    for (kind, chunk), passes in sorted(groups.items(), key=lambda g: (order.index(g[0][0]), g[0][1])):
        color = KIND_STYLE[kind][0]
        fill = tint(color, 0.6 * chunk / (schedule.chunks - 1)) if chunk else color
        yield _Bars(kind, chunk, *zip(*passes, strict=True), fill, color if chunk else "rgba(0,0,0,0.45)")


def _in_legend(bars: _Bars) -> dict:
    """What the traces of a kind share: all its chunks are one entry in the legend."""
    return {
        "name": KIND_STYLE[bars.kind][2], "legendgroup": bars.kind.value, "showlegend": bars.chunk == 0,
    }  # fmt: skip


def _hover(bars: _Bars, timeline: Timeline) -> str:
    """What the pointer is told; customdata: microbatch, rank, start, length."""
    chunk = f", chunk {bars.chunk}" if timeline.schedule.chunks > 1 else ""
    what = f"{bars.kind.value}%{{customdata[0]}}{chunk}"
    when = "from %{customdata[2]:.4~g}, %{customdata[3]:.4~g} long"
    return f"{what}: {when}<extra>rank %{{customdata[1]}}</extra>"


def _numbered(bars: _Bars, timeline: Timeline) -> dict:
    """One bar a pass, its microbatch's number in it."""
    height = KIND_STYLE[bars.kind][1]
    return _in_legend(bars) | {
        "type": "bar", "orientation": "h",
        "y": [a.stage for a in bars.actions], "base": bars.starts, "x": bars.drawn,
        "width": height, "offset": BASELINE - height,
        "marker": {"color": bars.fill, "line": {"color": bars.edge, "width": 0.6}},
        "customdata": [
            (a.microbatch, a.stage, start, length)
            for a, start, length in zip(bars.actions, bars.starts, bars.lengths, strict=True)
        ],
        "hovertemplate": _hover(bars, timeline),
        "text": [str(a.microbatch) for a in bars.actions], "textposition": "inside",
        "insidetextanchor": "middle", "textangle": 0, "constraintext": "none",
        "insidetextfont": {"color": ink_on(bars.fill), "size": 12},
    }  # fmt: skip


def _plain(bars: _Bars, timeline: Timeline) -> Iterator[dict]:
    """All passes as one area, and points without a mark that say what is under the pointer.

    Elements cost a browser time, points hardly any: a rank's bars are one line, along the foot of the
    lane from bar to bar.
    """
    height, scale = KIND_STYLE[bars.kind][1], _scale(timeline)
    edge = {"color": bars.edge, "width": 0.6}
    xs: list[float | None] = []
    ys: list[float | None] = []
    points: list[tuple[float, float, tuple]] = []
    rank = bars.actions[0].stage
    for action, start, length, drawn in zip(bars.actions, bars.starts, bars.lengths, bars.drawn, strict=True):
        if action.stage != rank:
            rank = action.stage
            xs.append(None)
            ys.append(None)
        foot = rank + BASELINE
        xs += [start, start, start + drawn, start + drawn]
        ys += [foot, foot - height, foot - height, foot]
        told = (action.microbatch, rank, start, length)
        points += [(x, y, told) for x, y in _cells(start, drawn, foot - height, height, scale)]
    in_legend = _in_legend(bars)
    yield in_legend | {
        "type": "scatter", "mode": "lines", "x": xs, "y": ys, "fill": "toself", "fillcolor": bars.fill,
        "line": edge | {"simplify": False}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    if in_legend["showlegend"]:  # a bar that is nowhere: the key is the same however its passes are drawn
        yield in_legend | {
            "type": "bar", "orientation": "h", "x": [None], "y": [None],
            "marker": {"color": bars.fill, "line": edge},
        }  # fmt: skip
    yield _answering(points) | {"hoverlabel": {"bgcolor": bars.fill}, "hovertemplate": _hover(bars, timeline)}


def _cells(
    x: float, width: float, y: float, height: float, scale: tuple[float, int]
) -> Iterator[tuple[float, float]]:
    """Middles of the cells into which a rectangle is cut: as few as reach all of it."""
    width_px, height_px = width * scale[0], height * scale[1]
    columns = ceil(width_px / HOVER_STEP_PX)
    reach_px = 2 * HOVER_PX
    rows = ceil(height_px / sqrt(reach_px**2 - (width_px / columns) ** 2)) if columns else 0
    for column in range(columns):
        for row in range(rows):
            yield x + width * (column + 0.5) / columns, y + height * (row + 0.5) / rows


def _answering(points: list[tuple[float, float, tuple]]) -> dict:
    """Points (x, y, customdata) that nobody sees and that answer the pointer."""
    return {
        "type": "scatter", "mode": "none", "showlegend": False, "x": [x for x, _, _ in points],
        "y": [y for _, y, _ in points], "customdata": [told for _, _, told in points],
    }  # fmt: skip


def _memory(timeline: Timeline, until: float | None) -> Iterator[dict]:
    """What each rank holds over time, as an area at the foot of its lane."""
    top = max(map(max, [[1], peak_activations(timeline.schedule)]))
    now = float(timeline.makespan if until is None else until)
    scale = _scale(timeline)
    xs: list[float | None] = []
    ys: list[float | None] = []
    points: list[tuple[float, float, tuple]] = []
    for rank, curve in enumerate(memory_over_time(timeline)):
        floor = rank + 0.42
        since, level = 0.0, 0.0
        for time, activations in [*curve, (now, 0)]:
            time = min(float(time), now)
            if activations == level and time < now:
                continue
            y = floor - 0.28 * level / top
            xs += [since, time]
            ys += [y, y]
            if level:
                told = (level, rank)
                points += [(x, y, told) for x, y in _cells(since, time - since, y, floor - y, scale)]
            since, level = time, float(activations)
            if time == now:
                break
        xs += [now, 0.0, None]
        ys += [floor, floor, None]
    yield {
        "type": "scatter", "mode": "lines", "name": "activations held", "x": xs, "y": ys, "fill": "toself",
        "hoverinfo": "skip", "line": {"color": COLORS["memory_used"], "width": 1},
        "fillcolor": translucent(COLORS["memory_used"], 0.4),
    }  # fmt: skip
    held = "microbatches held: %{customdata[0]:.4~g}"
    yield _answering(points) | {
        "hoverlabel": {"bgcolor": COLORS["memory_used"]},
        "hovertemplate": f"{held}<extra>rank %{{customdata[1]}}</extra>",
    }


def _peaks(timeline: Timeline) -> dict:
    """Each rank's peak, written at the end of its lane."""
    peaks = [float(peak) for peak in peak_activations(timeline.schedule)]
    return {
        "type": "scatter", "mode": "text", "x": [float(timeline.makespan)] * len(peaks),
        "y": [rank + BASELINE for rank in range(len(peaks))], "text": [f" peak {peak:.3g}" for peak in peaks],
        "textposition": "middle right", "textfont": {"color": COLORS["memory_used"], "size": 12},
        "cliponaxis": False, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def _bubble_words(timeline: Timeline) -> str:
    """The bubble in its three definitions: a time, a ratio to the work, a share of the makespan."""
    ratio, share = 100 * float(timeline.bubble_ratio), 100 * float(timeline.bubble_share)
    long = f"bubble of the whole step: {float(timeline.bubble_time):.4g} long"
    return f"{long}<br>= {ratio:.1f} % of the work = {share:.1f} % of the step"


def _meter(timeline: Timeline) -> Iterator[dict]:
    """The makespan of the busiest rank, split into work by kind and the bubble."""
    schedule = timeline.schedule
    rank = max(range(schedule.stages), key=lambda r: timeline.busy[r])
    spent: dict[Kind, float] = {}
    for action, start, stop in zip(
        schedule.actions[rank], timeline.starts[rank], timeline.ends[rank], strict=True
    ):
        spent[action.kind] = spent.get(action.kind, 0.0) + float(stop - start)
    segments = [
        (KIND_STYLE[kind][2], KIND_STYLE[kind][0], spent[kind]) for kind in KIND_STYLE if kind in spent
    ]
    segments.append(("bubble", COLORS["waiting"], float(timeline.bubble_time)))
    left = 0.0
    for name, color, seconds in segments:
        share = 100 * seconds / float(timeline.makespan)
        yield {
            "type": "bar", "orientation": "h", "xaxis": "x2", "yaxis": "y2", "y": [0], "x": [share],
            "base": [left], "marker": {"color": color}, "showlegend": False, "name": name,
            "text": [f"{name.partition(' ')[0]} {share:.1f} %"] if share > 4 else [""],
            "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
            "insidetextfont": {"color": ink_on(color), "size": 12},
            "hovertemplate": f"{name}: {share:.1f} %<extra></extra>",
        }  # fmt: skip
        left += share
