"""Slots by iterations, static batches above and continuous ones below, and how full each was."""

from __future__ import annotations

from gpuedu.continuous_batching.cost import SlotChart
from gpuedu.style import COLORS, ink_on, tint, translucent

LABELS = {"static": "static batches", "continuous": "continuous batching"}
MINIMUM_TEXT_SHARE = 0.028  # of the axis: a bar that can carry two digits at a nominal width
TITLE_PX, METER_PX, GAP_PX, AXIS_PX, MARGIN_PX = 22, 62, 40, 76, 128


def slot_figure(charts: dict[str, SlotChart], *, derived: float, until: int | None = None) -> dict:
    """Two charts on one scale, with a meter for each.

    Parameters
    ----------
    charts : dict
        A chart for each name of ``LABELS``.
    derived : float
        Occupancy of static slots by the formula, drawn as a mark in the meter.
    until : int, optional
        Show only what happens before this iteration, and a cursor there.

    Returns
    -------
    dict
        A Plotly figure, without a template.
    """
    slots = charts["static"].slots
    end = max(chart.iterations for chart in charts.values())
    lane_px = max(11, min(26, 230 // slots))
    panel = slots * lane_px
    total = TITLE_PX + 2 * panel + GAP_PX + AXIS_PX + METER_PX
    domains = {
        "static": [(METER_PX + AXIS_PX + GAP_PX + panel) / total, 1 - TITLE_PX / total],
        "continuous": [(METER_PX + AXIS_PX) / total, (METER_PX + AXIS_PX + panel) / total],
        "meter": [0, METER_PX / total],
    }
    traces: list[dict] = []
    for place, chart in enumerate(charts.values()):
        axes = {"xaxis": "x", "yaxis": "y" if place == 0 else "y2"}
        traces.append(_idle(chart, until, place == 0) | axes)
        traces += [trace | axes for trace in _bars(chart, until, end, place == 0)]
    traces += _meter(charts, derived, until)
    lanes = {
        "range": [slots - 0.5, -0.5], "showgrid": False, "zeroline": False, "fixedrange": True,
        "tickvals": [0, slots - 1], "ticktext": ["slot 0", f"slot {slots - 1}"],
    }  # fmt: skip
    layout = {
        "height": total + MARGIN_PX,
        "barmode": "overlay",
        "bargap": 0,
        "margin": {"l": 74, "r": 20, "t": 8, "b": 56},
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "xaxis": {"range": [0, end], "showgrid": False, "zeroline": False, "anchor": "y2",
                  "title": {"text": "iterations of the model"}},
        "yaxis": lanes | {"domain": domains["static"]},
        "yaxis2": lanes | {"domain": domains["continuous"]},
        "xaxis2": {"range": [0, 100], "ticksuffix": " %", "anchor": "y3", "showgrid": False,
                   "zeroline": False, "fixedrange": True,
                   "title": {"text": "slots that compute for somebody"}},
        "yaxis3": {"domain": domains["meter"], "anchor": "x2", "range": [1.5, -0.5], "showgrid": False,
                   "zeroline": False, "fixedrange": True, "tickvals": [0, 1],
                   "ticktext": ["static", "contin."]},
        "legend": {"orientation": "h", "yref": "container", "x": 0, "y": 1, "yanchor": "top",
                   "font": {"size": 13}},
        "annotations": [
            {"text": LABELS[name], "xref": "paper", "yref": "paper", "x": 1, "y": domains[name][1],
             "xanchor": "right", "yanchor": "bottom", "showarrow": False, "font": {"size": 14}}
            for name in charts
        ],
    }  # fmt: skip
    layout["annotations"] += _sooner(charts, end, until)
    if until is not None:
        cursor = {"type": "line", "x0": until, "x1": until, "yref": "paper",
                  "y0": domains["continuous"][0], "y1": domains["static"][1]}  # fmt: skip
        layout["shapes"] = [cursor | {"line": {"color": COLORS["waiting"], "width": 2}}]
    return {"data": traces, "layout": layout}


def _sooner(charts: dict[str, SlotChart], end: int, until: int | None) -> list[dict]:
    """In the space that continuous batching leaves free: when it was finished."""
    done = charts["continuous"].iterations
    if until is not None or end - done < 0.25 * end:
        return []
    text = f"finished after<br>{done} iterations,<br>{charts['static'].iterations / done:.2f} times as fast"
    return [
        {"text": text, "xref": "x", "yref": "y2", "x": (done + end) / 2,
         "y": (charts["continuous"].slots - 1) / 2, "showarrow": False, "font": {"size": 14}}
    ]  # fmt: skip


def _idle(chart: SlotChart, until: int | None, in_legend: bool) -> dict:
    """Every gap of every slot before the chart's end, hatched, as one area."""
    now = chart.iterations if until is None else min(until, chart.iterations)
    taken: dict[int, list[tuple[int, int]]] = {slot: [] for slot in range(chart.slots)}
    for span in chart.spans:
        taken[span.slot].append((span.start, span.end))
    xs: list[int | None] = []
    ys: list[float | None] = []
    for slot, spans in taken.items():
        before = 0
        for start, stop in [*sorted(spans), (chart.iterations, chart.iterations)]:
            right = min(start, now)
            if right > before:
                xs += [before, right, right, before, None]
                ys += [slot - 0.42, slot - 0.42, slot + 0.42, slot + 0.42, None]
            before = stop
    return {
        "type": "scatter", "mode": "none", "name": "nobody's", "x": xs, "y": ys, "fill": "toself",
        "hoverinfo": "skip", "legendgroup": "idle", "showlegend": in_legend,
        "fillcolor": translucent(COLORS["waiting"], 0.12),
        "fillpattern": {"shape": "/", "size": 7, "solidity": 0.2, "fgcolor": COLORS["waiting"],
                        "bgcolor": translucent(COLORS["waiting"], 0.1)},
    }  # fmt: skip


def _bars(chart: SlotChart, until: int | None, end: int, in_legend: bool) -> list[dict]:
    """Prompt and answer of every request; neighbors in a slot differ in shade."""
    now = end if until is None else until
    prefill: dict[str, list] = {"y": [], "x": [], "base": [], "customdata": []}
    decode: dict[str, list] = {"y": [], "x": [], "base": [], "customdata": [], "text": [], "color": []}
    turn = [0] * chart.slots
    for span in chart.spans:
        turn[span.slot] += 1
        told = [span.request_id, span.slot, span.start, span.end]
        for bars, start, stop in (
            (prefill, span.start, span.prefilled),
            (decode, span.prefilled, span.end),
        ):
            stop = min(stop, now)
            if stop <= start:
                continue
            bars["y"].append(span.slot)
            bars["base"].append(start)
            bars["x"].append(stop - start)
            bars["customdata"].append(told)
            if bars is decode:
                wide = stop - start >= MINIMUM_TEXT_SHARE * end
                decode["text"].append(str(span.request_id) if wide else "")
                decode["color"].append(COLORS["backward"] if turn[span.slot] % 2 else _LIGHTER)
    hover = "request %{customdata[0]}<br>iterations %{customdata[2]} to %{customdata[3]}<extra></extra>"
    shared = {
        "type": "bar", "orientation": "h", "width": 0.84, "hovertemplate": hover, "showlegend": in_legend
    }  # fmt: skip
    colors = decode.pop("color")
    ink = [ink_on(color) for color in colors]
    return [
        shared | prefill | {
            "name": "prompt", "legendgroup": "prompt", "marker": {"color": COLORS["forward"]},
        },
        shared | decode | {
            "name": "answer, a token an iteration", "legendgroup": "answer",
            "marker": {"color": colors or COLORS["backward"], "line": {"width": 0}},
            "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
            "textfont": {"color": ink or "#000000", "size": 11},
        },
    ]  # fmt: skip


_LIGHTER = tint(COLORS["backward"], 0.3)


def _meter(charts: dict[str, SlotChart], derived: float, until: int | None) -> list[dict]:
    """A bar for each chart: used, and the rest hatched; and a mark for the formula."""
    used = [
        100 * (chart.occupancy if until is None else chart.occupancy_until(min(until, chart.iterations)))
        for chart in charts.values()
    ]
    shared = {
        "type": "bar", "orientation": "h", "y": [0, 1], "width": 0.62, "xaxis": "x2", "yaxis": "y3",
        "showlegend": False,
    }  # fmt: skip
    return [
        shared | {
            "x": used, "marker": {"color": COLORS["backward"]}, "text": [f"{share:.0f} %" for share in used],
            "textposition": "inside", "insidetextanchor": "start", "textangle": 0,
            "textfont": {"color": ink_on(COLORS["backward"]), "size": 13},
            "hovertemplate": "%{x:.1f} % of the slots<extra></extra>",
        },
        shared | {
            "x": [100 - share for share in used], "base": used, "hoverinfo": "skip",
            "marker": {"color": translucent(COLORS["waiting"], 0.1), "pattern": {
                "shape": "/", "size": 7, "solidity": 0.2, "fgcolor": COLORS["waiting"],
                "fillmode": "replace"}},
        },
        {
            "type": "scatter", "mode": "markers", "x": [100 * derived], "y": [0], "xaxis": "x2",
            "yaxis": "y3", "name": "static, derived", "cliponaxis": False,
            "marker": {"symbol": "line-ns", "size": 34, "line": {"width": 3, "color": COLORS["memory_used"]}},
            "hovertemplate": "derived: %{x:.1f} %<extra></extra>",
        },
    ]  # fmt: skip
