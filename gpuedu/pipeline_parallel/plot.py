"""Pipeline schedules as pictures: the Gantt figure and the schedule explorer.

Figures are plain Plotly dicts, without a template: the page or the notebook adds the light or the
dark one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Table
from gpuedu.pipeline_parallel.cost import Timeline, memory_over_time, peak_activations, timeline
from gpuedu.pipeline_parallel.plan import (
    Action,
    Kind,
    Schedule,
    dualpipe_v,
    gpipe,
    interleaved_1f1b,
    naive,
    one_f_one_b,
    validate,
    zb_auto,
    zb_h1,
    zb_h2,
    zb_v,
)
from gpuedu.style import COLORS, ink_on, tint, translucent

KIND_STYLE = {  # color, height of the bar in lanes (a second cue beside color), name in the legend
    Kind.FORWARD: (COLORS["forward"], 0.52, "F forward"),
    Kind.FULL_BACKWARD: (COLORS["backward"], 0.52, "B backward (I + W)"),
    Kind.BACKWARD_INPUT: (COLORS["backward"], 0.52, "I input gradient"),
    Kind.BACKWARD_WEIGHT: (COLORS["weight_gradient"], 0.34, "W weight gradient"),
}
NOMINAL_WIDTH_PX = 680  # of the plot area on a laptop; a narrower page hides the text that no longer fits
TEXT_WIDTH_PX = 8  # of one digit
GAP_PX, METER_PX, MARGIN_PX = 60, 22, 124


def gantt(timeline: Timeline, *, until: float | None = None, unit: str = "the unit of F, I and W") -> dict:
    """The timeline as a Gantt figure: one lane a rank, its memory below its bars, a bubble meter.

    Bars carry their microbatch's number where it can be read; chunks after the first are drawn
    lighter. The line under a lane is what the rank holds, in microbatches, on one scale for all ranks.

    Parameters
    ----------
    timeline : Timeline
        The priced schedule.
    until : float, optional
        Show only the actions begun by this time, and a cursor there.
    unit : str
        Of the timeline's times, for the axis title.

    Returns
    -------
    dict
        A Plotly figure, without a template.
    """
    stages = timeline.schedule.stages
    lane_px = max(22, min(54, 400 // stages))
    plot_px = stages * lane_px + GAP_PX + METER_PX
    meter_top, lanes_bottom = METER_PX / plot_px, (METER_PX + GAP_PX) / plot_px
    end = float(timeline.makespan)
    ranks = range(stages)
    layout = {
        "height": plot_px + MARGIN_PX,
        "barmode": "overlay",
        "bargap": 0,
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
        "margin": {"l": 60, "r": 58, "t": 48, "b": 76},
        "legend": {"itemwidth": 30, "font": {"size": 13}, "tracegroupgap": 0},
    }  # fmt: skip
    traces = [_idle(timeline, until), *_bars(timeline, until), _memory(timeline, until), _peaks(timeline)]
    if until is not None:
        cursor = {"type": "line", "x0": until, "x1": until, "y0": lanes_bottom, "y1": 1, "yref": "paper"}
        layout["shapes"] = [cursor | {"line": {"color": COLORS["waiting"], "width": 2}}]
    return {"data": traces + list(_meter(timeline)), "layout": layout}


def _idle(timeline: Timeline, until: float | None) -> dict:
    """Every gap of every rank, hatched, as one area."""
    now = timeline.makespan if until is None else until
    xs: list[float | None] = []
    ys: list[float | None] = []
    for rank, (starts, ends) in enumerate(zip(timeline.starts, timeline.ends, strict=True)):
        for left, right in zip((0, *ends), (*starts, timeline.makespan), strict=True):
            right = min(right, now)
            if right > left:
                xs += [float(left), float(right), float(right), float(left), None]
                ys += [rank - 0.42, rank - 0.42, rank + 0.1, rank + 0.1, None]
    return {
        "type": "scatter", "mode": "lines", "name": "waiting", "x": xs, "y": ys, "line": {"width": 0},
        "fill": "toself", "hoverinfo": "skip",
        "fillpattern": {"shape": "/", "size": 7, "solidity": 0.15, "fgcolor": COLORS["waiting"],
                        "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip


def _bars(timeline: Timeline, until: float | None) -> Iterator[dict]:
    """One bar trace for each kind and chunk that occurs, in the order of first use."""
    schedule = timeline.schedule
    groups: dict[tuple[Kind, int], list[tuple[Action, float, float]]] = {}
    for actions, starts, ends in zip(schedule.actions, timeline.starts, timeline.ends, strict=True):
        for action, start, stop in zip(actions, starts, ends, strict=True):
            if until is None or start <= until:
                groups.setdefault((action.kind, action.chunk), []).append((action, float(start), float(stop)))
    order = list(KIND_STYLE)
    px_per_unit = NOMINAL_WIDTH_PX / float(timeline.makespan)
    for (kind, chunk), bars in sorted(groups.items(), key=lambda g: (order.index(g[0][0]), g[0][1])):
        color, height, name = KIND_STYLE[kind]
        fill = tint(color, 0.6 * chunk / (schedule.chunks - 1)) if chunk else color
        trace = {
            "type": "bar", "orientation": "h", "legendgroup": kind.value, "showlegend": chunk == 0,
            "name": name, "y": [a.stage for a, _, _ in bars], "base": [s for _, s, _ in bars],
            "x": [e - s for _, s, e in bars], "width": height, "offset": 0.1 - height,
            "marker": {"color": fill,
                       "line": {"color": color if chunk else "rgba(0,0,0,0.45)", "width": 0.6}},
            "customdata": [a.microbatch for a, _, _ in bars],
            "hovertemplate": f"{kind.value}%{{customdata}}"
            + (f", chunk {chunk}" if schedule.chunks > 1 else "")
            + ": %{base:.4g} for %{x:.4g}<extra>rank %{y}</extra>",
        }  # fmt: skip
        digits = len(str(schedule.microbatches - 1))
        if min(trace["x"]) * px_per_unit >= TEXT_WIDTH_PX * digits + 4:
            trace |= {
                "text": [str(a.microbatch) for a, _, _ in bars], "textposition": "inside",
                "insidetextanchor": "middle", "textangle": 0, "constraintext": "none",
                "insidetextfont": {"color": ink_on(fill), "size": 12},
            }  # fmt: skip
        yield trace


def _memory(timeline: Timeline, until: float | None) -> dict:
    """What each rank holds over time, as an area at the foot of its lane."""
    top = max(map(max, [[1], peak_activations(timeline.schedule)]))
    xs: list[float | None] = []
    ys: list[float | None] = []
    held: list[str | None] = []
    for rank, curve in enumerate(memory_over_time(timeline)):
        floor = rank + 0.42
        before = 0.0
        for time, activations in curve:
            if until is not None and time > until:
                break
            for level in (before, activations):
                xs.append(float(time))
                ys.append(floor - 0.28 * float(level) / top)
                held.append(f"{float(level):.4g}")
            before = activations
        stop = float(timeline.makespan if until is None else until)
        xs += [stop, stop, 0.0, None]
        ys += [floor - 0.28 * float(before) / top, floor, floor, None]
        held += ["", "", "", None]
    return {
        "type": "scatter", "mode": "lines", "name": "activations held", "x": xs, "y": ys, "fill": "toself",
        "text": held, "hovertemplate": "%{text} microbatches held<extra></extra>",
        "line": {"color": COLORS["memory_used"], "width": 1},
        "fillcolor": translucent(COLORS["memory_used"], 0.4),
    }  # fmt: skip


def _peaks(timeline: Timeline) -> dict:
    """Each rank's peak, written at the end of its lane."""
    peaks = [float(peak) for peak in peak_activations(timeline.schedule)]
    return {
        "type": "scatter", "mode": "text", "x": [float(timeline.makespan)] * len(peaks),
        "y": [rank + 0.1 for rank in range(len(peaks))], "text": [f" peak {peak:.3g}" for peak in peaks],
        "textposition": "middle right", "textfont": {"color": COLORS["memory_used"], "size": 12},
        "cliponaxis": False, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def _bubble_words(timeline: Timeline) -> str:
    """The bubble in its three definitions: a time, a ratio to the work, a share of the makespan."""
    ratio, share = 100 * float(timeline.bubble_ratio), 100 * float(timeline.bubble_share)
    long = f"bubble: {float(timeline.bubble_time):.4g} long"
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


# The explorer. Its functions take every control by keyword; plans and prices are memoized, so that a
# step through one costs nothing.

NAMES = {
    "naive": "Naive",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved 1F1B",
    "zb_h1": "ZB-H1",
    "zb_h2": "ZB-H2",
    "zb_v": "ZB-V",
    "dualpipe_v": "DualPipeV",
    "zb_auto": "Zero-bubble search",
}


@lru_cache(maxsize=64)
def _plan(schedule, p, m, chunks, memory, f, i, w, transfer) -> Schedule:
    match schedule:
        case "interleaved":
            return interleaved_1f1b(p, m, chunks)
        case "zb_auto":
            return zb_auto(p, m, memory, f, i, w, transfer)
    simple = {"naive": naive, "gpipe": gpipe, "1f1b": one_f_one_b, "zb_h1": zb_h1, "zb_h2": zb_h2}
    return (simple | {"zb_v": zb_v, "dualpipe_v": dualpipe_v})[schedule](p, m)


@lru_cache(maxsize=64)
def _price(schedule, p, m, chunks, memory, f, i, w, transfer) -> Timeline:
    # Only the search looks at times; every other plan is one cache entry whatever a pass costs.
    times = (f, i, w, transfer) if schedule == "zb_auto" else (1, 1, 1, 0)
    plan = _plan(schedule, p, m, chunks, memory, *times)
    validate(plan)
    return timeline(plan, forward=f, backward_input=i, backward_weight=w, transfer=transfer)


def explorer_figure(*, step: int | None, **values) -> dict:
    """The Gantt figure for the explorer's values, up to ``step`` where one is given."""
    priced = _price(**values)
    return gantt(priced, until=None if step is None else _moments(priced)[step])


def explorer_steps(*, step: int | None, **values) -> int:
    """The last step: the moments at which something begins, less one."""
    return len(_moments(_price(**values))) - 1


def _moments(priced: Timeline) -> Sequence[float]:
    return sorted({float(start) for starts in priced.starts for start in starts})


def explorer_unused(*, schedule: str, p: int, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    if schedule != "interleaved":
        unused.append("chunks")
    if schedule != "zb_auto":
        unused.append("memory")
    if p == 1:
        unused.append("transfer")
    return tuple(unused)


def explorer_takeaway(*, step: int | None, **values) -> str:
    """One sentence: the bubble, the memory, and what the network adds."""
    priced = _price(**values)
    peaks = peak_activations(priced.schedule)
    holds = max(peaks)
    rank = peaks.index(holds)
    share = 100 * float(priced.bubble_share)
    text = (
        f"{NAMES[values['schedule']]}: the busiest GPU waits **{share:.1f} %** of the step, "
        f"and rank {rank} holds **{_plural(float(holds), 'microbatch', 'microbatches')}**."
    )
    if values["transfer"] and values["p"] > 1:
        added = float(priced.makespan - _price(**values | {"transfer": 0.0}).makespan)
        text += f" Of its {float(priced.makespan):.4g} units of time, the network adds **{added:.4g}**."
    return text


def _plural(count: float, one: str, many: str) -> str:
    return f"{count:.3g} {one if count == 1 else many}"


def explorer_table(*, step: int | None, **values) -> Table:
    """Every action drawn: rank, kind, microbatch, chunk, start and end."""
    priced = _price(**values)
    rows = (
        (a.stage, a.kind.value, a.microbatch, a.chunk, round(float(start), 4), round(float(stop), 4))
        for actions, starts, ends in zip(priced.schedule.actions, priced.starts, priced.ends, strict=True)
        for a, start, stop in zip(actions, starts, ends, strict=True)
    )
    return Table(("rank", "pass", "microbatch", "chunk", "start", "end"), tuple(rows))


explorer = Explorer(
    id="pipeline-schedule",
    title="The schedule explorer",
    controls=(
        Choice("schedule", "Schedule", NAMES, "gpipe"),
        Integer("p", "Stages p", 1, 16, 4, help="GPUs in the pipeline, one stage each"),
        Integer("m", "Microbatches m", 1, 64, 8, help="pieces the batch is cut into"),
        Integer("chunks", "Chunks per stage v", 1, 4, 2, help="model chunks on each GPU; interleaved only"),
        Real("memory", "Memory limit", 1, 32, 8, 0.5, unit="microbatches",
             help="activations a rank may hold; zero-bubble search only"),
        Real("f", "Forward F", 0.25, 4, 1, 0.25, help="time of a forward pass through one stage"),
        Real("i", "Input gradient I", 0.25, 4, 1, 0.25, help="time of the gradient of a stage's input"),
        Real("w", "Weight gradient W", 0.25, 4, 1, 0.25, help="time of the gradient of its weights"),
        Real("transfer", "Transfer per hop", 0, 2, 0, 0.05, help="delay from one stage to the next"),
        Step("step", "Step through", help="one moment at which something begins"),
    ),
    presets=(
        Preset("naive", "Naive", {"schedule": "naive"}),
        Preset("gpipe", "GPipe", {"schedule": "gpipe"}),
        Preset("1f1b", "1F1B", {"schedule": "1f1b"}),
        Preset("interleaved", "Interleaved", {"schedule": "interleaved", "chunks": 2}),
        Preset("zero_bubble", "Zero-bubble", {"schedule": "zb_h2"}),
        Preset("slow_network", "Slow network", {"schedule": "1f1b", "transfer": 0.5}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    steps=explorer_steps,
    unused=explorer_unused,
)  # fmt: skip
