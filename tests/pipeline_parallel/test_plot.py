"""The Gantt figure shows the timeline, and every control of the explorer does what it says."""

import json
import math
from itertools import pairwise

import pytest

from gpuedu.explorer import Choice, Integer, Real
from gpuedu.pipeline_parallel.cost import memory_over_time, peak_activations, timeline
from gpuedu.pipeline_parallel.plan import interleaved_1f1b, one_f_one_b, zb_h2
from gpuedu.pipeline_parallel.plot import explorer, gantt
from gpuedu.pipeline_parallel.plot.gantt import HOVER_PX, HOVER_STEP_PX, KIND_STYLE, NOMINAL_WIDTH_PX

CONTROLS = {control.name: control for control in explorer.controls}


def bars(figure):
    """(rank, letter, start, end) of every pass in the lanes, however it is drawn."""
    found = []
    for trace in figure["data"]:
        if "legendgroup" not in trace or trace["x"] == [None]:  # an entry of the legend alone
            continue
        if trace["type"] == "bar":
            drawn = zip(trace["y"], trace["base"], trace["x"], strict=True)
            found += [(y, trace["legendgroup"], x, x + length) for y, x, length in drawn]
        else:
            corners = [
                corner for corner in zip(trace["x"], trace["y"], strict=True) if corner != (None, None)
            ]
            for (_, foot), (start, _), (end, _) in zip(
                corners[0::4], corners[1::4], corners[2::4], strict=True
            ):
                found.append((math.floor(foot), trace["legendgroup"], start, end))
    return sorted(found)


def rounded(passes):
    """Without the last digits, which adding a cut length changes."""
    return [(*what, round(end, 9)) for *what, end in passes]


@pytest.mark.parametrize(
    "schedule", [one_f_one_b(3, 5), interleaved_1f1b(2, 4, 3), zb_h2(4, 9), interleaved_1f1b(8, 32, 2)]
)
def test_bars_are_the_timeline(schedule):
    priced = timeline(schedule, transfer=0.25)
    expected = sorted((s.rank, s.action.kind.value, float(s.start), float(s.end)) for s in priced.spans)
    found = bars(gantt(priced))
    assert [what[:2] for what in found] == [what[:2] for what in expected]
    drawn, times = ([t for what in passes for t in what[2:]] for passes in (found, expected))
    assert drawn == pytest.approx(times, rel=1e-8)  # the figure leaves off the last digits of a sum


def test_numbered_bar_says_what_it_is():
    priced = timeline(zb_h2(4, 9))
    told = {
        (trace["legendgroup"], int(text), *what)
        for trace in gantt(priced)["data"]
        if "text" in trace and "legendgroup" in trace
        for text, what in zip(trace["text"], trace["customdata"], strict=True)
    }
    assert told == {
        (s.action.kind.value, s.action.microbatch, s.action.microbatch, s.rank, s.start, s.end - s.start)
        for s in priced.spans
    }


def test_step_is_a_moment_whatever_order_its_time_was_added_up_in():
    sizes = explorer.defaults | {"schedule": "zb_h1", "p": 4, "m": 16}
    exact = explorer.steps(**sizes | {"f": 20, "i": 20, "w": 20, "transfer": 3})
    assert explorer.steps(**sizes | {"transfer": 0.15}) == exact


def answers(figure, told):
    """The points that answer the pointer, by what they tell; ``told``: how many things that are."""
    found = {}
    for trace in figure["data"]:
        if trace.get("mode") == "none" and "customdata" in trace and len(trace["customdata"][0]) == told:
            for x, y, what in zip(trace["x"], trace["y"], trace["customdata"], strict=True):
                found.setdefault((*what, trace["hovertemplate"][0]), []).append((x, y))
    return found


@pytest.mark.parametrize("schedule", [zb_h2(8, 32), one_f_one_b(4, 64)], ids=["many ranks", "tall lanes"])
def test_every_part_of_a_plain_bar_answers_the_pointer(schedule):
    priced = timeline(schedule, forward=4, backward_weight=0.5)
    figure = gantt(priced)
    found = answers(figure, 4)
    assert {(rank, number, start, start + length) for number, rank, start, length, _ in found} == {
        (s.rank, s.action.microbatch, s.start, s.end) for s in priced.spans
    }
    px = NOMINAL_WIDTH_PX / priced.makespan
    bottom, top = figure["layout"]["yaxis"]["domain"]
    margin = figure["layout"]["margin"]
    lane_px = (figure["layout"]["height"] - margin["t"] - margin["b"]) * (top - bottom) / schedule.stages
    heights = {kind.value: height for kind, (_, height, _) in KIND_STYLE.items()}
    for (_, rank, start, length, kind), points in found.items():
        corners = [(x, rank + y) for x in (start, start + length) for y in (0.1, 0.1 - heights[kind])]
        for x, y in corners:  # the parts of a bar that are farthest from what answers in it
            assert min(math.hypot((x - a) * px, (y - b) * lane_px) for a, b in points) <= HOVER_PX
        columns = sorted({x for x, _ in points})
        assert all((b - a) * px <= HOVER_STEP_PX + 1e-9 for a, b in pairwise(columns))
    assert figure["layout"]["hoverdistance"] == HOVER_PX


def test_memory_tells_its_numbers():
    priced = timeline(interleaved_1f1b(4, 8, 2))
    found = answers(gantt(priced), 2)
    for rank, curve in enumerate(memory_over_time(priced)):
        for (since, held), (to, _) in pairwise(curve):
            inside = [x for x, _ in found.get((held, rank, "m"), []) if since < x < to]
            assert inside or held == 0
    assert max(held for held, *_ in found) == max(peak_activations(priced.schedule))


@pytest.mark.parametrize("schedule", [one_f_one_b(3, 5), zb_h2(8, 32)], ids=["numbered", "plain"])
def test_until_shows_what_has_happened_and_cuts_what_runs(schedule):
    priced = timeline(schedule, backward_input=2)
    for until in (4, 4.5):
        figure = gantt(priced, until=until)
        expected = [(*bar[:3], min(bar[3], until)) for bar in bars(gantt(priced)) if bar[2] < until]
        assert rounded(bars(figure)) == rounded(expected)
        memory = next(trace for trace in figure["data"] if trace.get("name") == "activations held")
        assert max(x for x in memory["x"] if x is not None) == until
        assert {what for what in answers(figure, 4)} <= {what for what in answers(gantt(priced), 4)}


def test_step_shows_what_begins_with_it():
    values = explorer.defaults | {"schedule": "1f1b", "transfer": 0.15}
    seen = [len(bars(explorer.figure(**values | {"step": k}))) for k in range(explorer.steps(**values) + 1)]
    assert seen[0] == 1 and all(few < more for few, more in pairwise(seen))
    last = explorer.figure(**values | {"step": explorer.steps(**values)})
    assert rounded(bars(last)) == rounded(bars(explorer.figure(**values)))


def test_legend_has_one_square_a_kind_however_its_passes_are_drawn():
    for size in ((4, 8), (8, 64)):
        figure = gantt(timeline(zb_h2(*size)))
        keys = [t for t in figure["data"] if "legendgroup" in t and t["showlegend"]]
        assert [t["type"] for t in keys] == ["bar"] * 3
        assert len({t["marker"]["line"]["color"] for t in keys}) == 1


def test_meter_splits_the_makespan():
    priced = timeline(zb_h2(4, 9), transfer=0.5)
    meter = [trace for trace in gantt(priced)["data"] if trace.get("xaxis") == "x2"]
    assert sum(trace["x"][0] for trace in meter) == pytest.approx(100)
    assert meter[-1]["x"][0] == pytest.approx(100 * priced.bubble_share)


def test_gaps_fill_what_the_bars_leave():
    priced = timeline(one_f_one_b(4, 6), transfer=0.5)
    gaps = next(trace for trace in gantt(priced)["data"] if trace.get("name") == "waiting")
    waiting = sum(gaps["x"][k + 1] - gaps["x"][k] for k in range(0, len(gaps["x"]), 5))
    assert waiting == pytest.approx(sum(priced.makespan - busy for busy in priced.busy))


def test_peaks_are_written_at_their_lanes():
    schedule = interleaved_1f1b(4, 8, 2)
    labels = next(trace for trace in gantt(timeline(schedule))["data"] if trace.get("mode") == "text")
    assert labels["text"] == [f" peak {float(peak):.3g}" for peak in peak_activations(schedule)]


def test_text_only_where_it_can_be_read():
    def written(p, m):
        return any("customdata" in t and "text" in t for t in gantt(timeline(zb_h2(p, m)))["data"])

    assert written(4, 8)
    assert not written(16, 64)


@pytest.mark.parametrize("preset", explorer.presets, ids=lambda preset: preset.name)
def test_every_enabled_control_changes_something_and_no_disabled_one_does(preset):
    values = explorer.values_of(preset)
    unused = explorer.unused(**values)
    seen = (explorer.figure(**values), explorer.takeaway(**values))
    for control in explorer.controls:
        if isinstance(control, Choice):
            others = list(control.options)
        elif isinstance(control, Integer | Real):
            others = [control.low, control.high]
        else:
            others = [0, explorer.steps(**values)]
        changed = False
        for other in others:
            moved = values | {control.name: other}
            try:
                changed |= (explorer.figure(**moved), explorer.takeaway(**moved)) != seen
            except ValueError:
                changed = True
        assert changed != (control.name in unused), control.name


def test_presets_tell_the_story():
    """Naive waits most; 1F1B waits as GPipe does and holds less; interleaving and zero-bubble wait less."""
    shares, peaks = {}, {}
    for preset in explorer.presets:
        rows = explorer.table(**explorer.values_of(preset)).rows
        makespan = max(row[5] for row in rows)
        busy = sum(row[5] - row[4] for row in rows if row[0] == 0)
        shares[preset.name] = 1 - busy / makespan
        held = peak = 0
        for row in sorted((row for row in rows if row[0] == 0), key=lambda row: row[4]):
            held += {"F": 1, "I": 0, "B": -1, "W": -1}[row[1]]
            peak = max(peak, held)
        peaks[preset.name] = peak
    assert shares["naive"] == pytest.approx(3 / 4)
    assert shares["gpipe"] == pytest.approx(3 / 11)
    assert shares["1f1b"] == pytest.approx(3 / 11)
    assert shares["interleaved"] == pytest.approx(1.5 / 9.5)
    assert shares["zero_bubble"] < shares["interleaved"] < shares["1f1b"] < shares["slow_network"]
    assert peaks["1f1b"] == 4 and peaks["gpipe"] == 8


def test_everything_shown_is_json_and_names_its_numbers():
    for preset in explorer.presets:
        shown = json.loads(explorer.show_json(explorer.values_of(preset)))
        assert "**" in shown["takeaway"]
        assert len(shown["table"]["rows"]) == len(bars(shown["figure"]))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"schedule": "interleaved", "p": 4, "m": 7}, "multiple of"),
        ({"p": 0}, "p=0: must be from 1 to 16"),
        ({"schedule": "pipedream"}, "must be one of"),
        ({"step": 10_000}, "must be from 0 to"),
    ],
)
def test_what_cannot_be_shown_says_why(values, message):
    with pytest.raises(ValueError, match=message):
        explorer.show(explorer.defaults | values)
