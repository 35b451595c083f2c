"""The figures show what was decided; every control of the explorers does what it says."""

import json
import time

import pytest

from gpuedu.continuous_batching.cost import BATCHING, slot_chart
from gpuedu.continuous_batching.plan import Sequence, StaticBatching
from gpuedu.continuous_batching.plot import frontier as frontier_explorer
from gpuedu.continuous_batching.plot import slot_figure
from gpuedu.continuous_batching.plot import slots as slots_explorer
from gpuedu.explorer import Choice, Integer

EXPLORERS = [slots_explorer, frontier_explorer]


def bars(figure, axis):
    """(slot, start, end) of everything that computes in a panel."""
    return sorted(
        (slot, start, start + length)
        for trace in figure["data"]
        if trace["type"] == "bar" and trace["yaxis"] == axis
        for slot, start, length in zip(trace["y"], trace["base"], trace["x"], strict=True)
    )


def test_bars_are_the_chart():
    values = slots_explorer.defaults | {"lengths": "exponential", "requests": 20}
    shown = slots_explorer.show(values)
    rows = [row for row in shown["table"]["rows"]]
    for axis, name in (("y", "static"), ("y2", "continuous")):
        expected = []
        for batching, _, slot, start, prompt_done, end in rows:
            if batching == name:
                expected += [(int(slot), int(start), int(prompt_done))]
                expected += [(int(slot), int(prompt_done), int(end))] * (prompt_done != end)
        assert bars(shown["figure"], axis) == sorted(expected)


def test_the_hatching_is_what_is_left():
    outputs = [3, 1, 2, 4, 1]
    requests = [Sequence(n, 1, tokens) for n, tokens in enumerate(outputs)]
    chart = slot_chart(StaticBatching(2, respond_early=True), requests, 2)
    figure = slot_figure({"static": chart, "continuous": chart}, derived=0.5)
    idle = figure["data"][0]
    corners = [x for x in idle["x"] if x is not None]
    hatched = sum(corners[i + 1] - corners[i] for i in range(0, len(corners), 4))
    assert hatched == 2 * chart.iterations - sum(outputs)


def test_a_step_hides_what_comes_later():
    values = slots_explorer.defaults
    last = slots_explorer.steps(**values)
    for step in (0, last // 2, last):
        figure = slots_explorer.figure(**values | {"step": step})
        cursor = figure["layout"]["shapes"][0]["x0"]
        for axis in ("y", "y2"):
            assert all(end <= cursor for *_, end in bars(figure, axis))
    finished, complete = (slots_explorer.figure(**values | {"step": step}) for step in (last, None))
    assert bars(finished, "y") == bars(complete, "y")


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.id)
def test_every_preset_shows(explorer):
    seen = set()
    for preset in explorer.presets:
        shown = json.loads(explorer.show_json(explorer.values_of(preset)))
        assert shown["takeaway"].count("**") in (2, 4) and shown["table"]["rows"]
        seen.add(shown["takeaway"])
    assert len(seen) == len(explorer.presets)


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.id)
def test_every_control_moves_the_figure(explorer):
    values = explorer.defaults
    before = explorer.figure(**values)
    for control in explorer.controls:
        if isinstance(control, Choice):
            others = [option for option in control.options if option != values[control.name]]
        elif isinstance(control, Integer):
            others = [control.low, control.high]
        else:
            continue
        assert any(explorer.figure(**values | {control.name: other}) != before for other in others), (
            control.name
        )


def test_unused_controls_change_nothing():
    for lengths in ("fixed", "azure_code", "exponential"):
        values = slots_explorer.defaults | {"lengths": lengths}
        for name in slots_explorer.unused(**values):
            control = next(control for control in slots_explorer.controls if control.name == name)
            figures = [slots_explorer.figure(**values | {name: v}) for v in (control.low, control.high)]
            assert figures[0] == figures[1], (lengths, name)


def test_equal_lengths_leave_nothing_to_gain():
    values = slots_explorer.values_of(slots_explorer.presets[1])
    assert "**1.00 times** as fast" in slots_explorer.takeaway(**values)


def test_the_frontier_names_its_policies():
    shown = frontier_explorer.show(frontier_explorer.defaults)
    names = {trace["name"] for trace in shown["figure"]["data"] if trace.get("name")}
    assert names == set(BATCHING.values())
    symbols = {trace["marker"]["symbol"] for trace in shown["figure"]["data"]}
    assert len(symbols) == 6  # no policy by color alone


def test_a_move_of_the_load_is_quick():
    """Some 600 requests simulated: far below 300 ms, also at Pyodide's 0.6 of CPython's speed."""
    values = frontier_explorer.values_of(frontier_explorer.presets[1])
    frontier_explorer.show(values, table=False)
    spent = []
    for rate in (5, 7, 8, 10, 11):
        begin = time.process_time()
        frontier_explorer.show(values | {"rate": rate}, table=False)
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.15
