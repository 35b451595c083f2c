"""The figures show the plans, and every control of the explorers does what it says."""

import json
import math
from itertools import pairwise

import pytest

from gpuedu.explorer import Choice, Integer, Real, Switch
from gpuedu.flash_attention.cost import FP32_TENSORS, plan_traffic, traffic
from gpuedu.flash_attention.plan import AttentionShape, Op, Tiles, split_kv, visited_tiles
from gpuedu.flash_attention.plot import explorer, traffic_explorer
from gpuedu.flash_attention.plot.frames import frames, make, running, score, value
from gpuedu.flash_attention.plot.odometer import DONE, HIDDEN, NOW, WAITING, total_bytes

EXPLORERS = [explorer, traffic_explorer]
PRESETS = [(e, p) for e in EXPLORERS for p in e.presets]
each_preset = pytest.mark.parametrize("shown, preset", PRESETS, ids=[f"{e.id}-{p.name}" for e, p in PRESETS])


def values_of(name, **changes):
    return explorer.values_of(next(p for p in explorer.presets if p.name == name)) | changes


def states(figure):
    (cells,) = [trace for trace in figure["data"] if trace["type"] == "heatmap"]
    return cells["z"]


def meters(figure):
    """Bytes read and written by tensor, as the bars show them."""
    names = figure["layout"]["yaxis2"]["ticktext"]
    bars = {t["name"]: t["x"] for t in figure["data"] if t.get("xaxis") == "x2"}
    return {n: (bars["read"][i], bars["written"][i], bars["still to come"][i]) for i, n in enumerate(names)}


@pytest.mark.parametrize("name", ["standard", "version_1", "version_2", "version_2_backward", "split_kv"])
def test_frames_move_what_the_plan_moves(name):
    plan = make(name, AttentionShape(40, 48, 64, causal=True), Tiles(16, 8), 3 if name == "split_kv" else 1)
    film, counted = frames(plan), plan_traffic(plan).tensors
    for tensor, (read, written) in film[-1].moved.items():
        width = 4 if tensor in FP32_TENSORS else 2
        assert (read, written) == (
            width * counted[tensor].read,
            width * (counted[tensor].written + counted[tensor].filled),
        )
    assert set(film[-1].moved) == set(counted)
    assert total_bytes(plan) == plan_traffic(plan).nbytes(2, fp32=FP32_TENSORS)
    for before, after in pairwise(film):
        assert all(after.moved[t][i] >= before.moved[t][i] for t in before.moved for i in (0, 1))
    computes = [s for s in plan.steps if s.op is Op.COMPUTE and s.what != "finish"]
    assert [frame.step for frame in film] == computes


def test_a_frame_has_on_its_chip_what_its_tile_needs():
    plan = make("version_2", AttentionShape(64, 64, 32), Tiles(16, 8), 1)
    for frame in frames(plan):
        assert frame.chip == {
            "Q": 2 * 16 * 32, "K": 2 * 8 * 32, "V": 2 * 8 * 32, "O": 4 * 16 * 32, "m": 4 * 16, "l": 4 * 16,
            "S": 4 * 16 * 8,
        }  # fmt: skip


def test_running_softmax_ends_at_the_softmax():
    """Tile by tile, from the figure's own steps, against all at once."""
    plan = make("version_2", AttentionShape(8, 40, 16, causal=True), Tiles(4, 8), 1)
    last = {}
    for frame in frames(plan):
        state = running(plan, frame.step)
        if state.query in last:
            assert state.before == pytest.approx(last[state.query].after)
        last[state.query] = state
    state = last[4]
    keys = range(*plan.attention.visible(4))
    top = max(score(4, key) for key in keys)
    weights = [math.exp(score(4, key) - top) for key in keys]
    out = sum(w * value(key) for w, key in zip(weights, keys, strict=True)) / sum(weights)
    assert state.after == pytest.approx((top, sum(weights), out))


def test_parts_of_split_keys_begin_anew():
    plan = split_kv(AttentionShape(1, 64, 16), Tiles(1, 8), 4)
    first = [running(plan, f.step) for f in frames(plan) if f.step.what == "tile"][2]
    assert first.keys == (16, 24) and first.before[1] == 0


@pytest.mark.parametrize("name", ["version_1", "version_2", "causal"])
def test_cells_are_the_tiles(name):
    values = values_of(name)
    tile = Tiles(int(values["rows"]), int(values["columns"]))
    attention = AttentionShape(values["queries"], values["keys"], 64, causal=values["causal"])
    visited = {(r[0] // tile.rows, c[0] // tile.columns) for r, c in visited_tiles(attention, tile)}
    done = states(explorer.figure(**values))
    cells = {(i, j) for i, line in enumerate(done) for j, state in enumerate(line) if state == DONE}
    assert cells == visited
    assert all(state in (DONE, HIDDEN) for line in done for state in line)
    first = states(explorer.figure(**values | {"step": 1}))
    flat = [state for line in first for state in line]
    assert flat.count(NOW) == 1 and flat.count(WAITING) == len(visited) - 1 and first[0][0] == NOW


def test_numbers_in_the_cells_are_the_loop_order():
    def order(name):
        figure = explorer.figure(**values_of(name, queries=128, keys=128, rows="64", columns="64"))
        (numbers,) = [t for t in figure["data"] if t.get("mode") == "text"]
        return {(x, y): n for x, y, n in zip(numbers["x"], numbers["y"], numbers["text"], strict=True)}

    assert order("version_1") == {(32, 32): "1", (32, 96): "2", (96, 32): "3", (96, 96): "4"}
    assert order("version_2") == {(32, 32): "1", (96, 32): "2", (32, 96): "3", (96, 96): "4"}


def test_odometer_ends_at_the_closed_form_and_says_what_is_to_come():
    values = values_of("version_1")
    expected = traffic("version_1", AttentionShape(512, 512, 64), Tiles(64, 128)).tensors
    finished = meters(explorer.figure(**values))
    for name, elements in expected.items():
        width = 4 if name in FP32_TENSORS else 2
        assert finished[name] == (width * elements.read, width * (elements.written + elements.filled), 0)
    halfway = meters(explorer.figure(**values | {"step": 16}))
    for name, (read, written, rest) in halfway.items():
        assert read + written + rest == sum(finished[name])


def test_a_tile_that_does_not_fit_is_called_out():
    values = values_of("version_2", rows="256", columns="256", sram=64.0)
    assert "does not fit" in explorer.takeaway(**values)
    assert "does not fit" not in explorer.takeaway(**values | {"sram": 256.0, "rows": "64", "columns": "64"})


def test_presets_tell_the_story():
    moved = {
        p.name: sum(row[3] for row in explorer.table(**explorer.values_of(p)).rows) for p in explorer.presets
    }
    assert moved["standard"] > 2 * moved["version_1"] > 2 * moved["version_2"] > 2 * moved["causal"]
    assert "**8** programs can run side by side, where version 2 has 1" in explorer.takeaway(
        **values_of("split_kv")
    )
    assert "25 % more FLOPs" in explorer.takeaway(**values_of("backward"))


def test_figure_2_shows_what_was_printed_and_only_there():
    values = traffic_explorer.values_of(next(p for p in traffic_explorer.presets if p.name == "figure_2"))
    printed = [t for t in traffic_explorer.figure(**values)["data"] if "printed" in t["name"]]
    assert [t["y"] for t in printed] == [[40.3], [4.4]]
    other = traffic_explorer.figure(**values | {"length": 2048.0})
    assert not [t for t in other["data"] if "printed" in t["name"]]
    table = {row[0]: row[1:] for row in traffic_explorer.table(**values).rows}
    assert table[256][1] == pytest.approx(5.15, abs=0.005) and table[256][0] == pytest.approx(25.2, abs=0.05)


@each_preset
def test_every_enabled_control_changes_something_and_no_disabled_one_does(shown, preset):
    values = shown.values_of(preset)
    unused = shown.unused(**values)
    seen = (shown.figure(**values), shown.takeaway(**values))
    for control in shown.controls:
        if isinstance(control, Choice):
            others = list(control.options)
        elif isinstance(control, Integer | Real):
            others = [control.low, control.low + 1, control.high]
        elif isinstance(control, Switch):
            others = [False, True]
        else:
            others = [0, shown.steps(**values)]
        changed = any(
            (shown.figure(**moved), shown.takeaway(**moved)) != seen
            for moved in (values | {control.name: other} for other in others)
        )
        assert changed != (control.name in unused), control.name


@each_preset
def test_everything_shown_is_json_and_light(shown, preset):
    text = shown.show_json(shown.values_of(preset))
    assert len(text) < 60_000
    answer = json.loads(text)
    assert "**" in answer["takeaway"]
    assert len(answer["figure"]["data"]) < 40


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": 1, "keys": 1}, {"queries": 1024, "keys": 1024, "rows": "16", "columns": "16"},
        {"queries": 300, "keys": 7, "causal": True}, {"window": 1, "causal": True},
        {"plan": "standard", "direction": "backward"}, {"plan": "version_1", "direction": "backward"},
        {"plan": "split_kv", "splits": 16, "keys": 100},
    ],
)  # fmt: skip
def test_corners_can_be_shown(changes):
    values = explorer.defaults | {"plan": "version_2"} | changes
    last = explorer.steps(**values)
    for step in (None, 0, 1, last // 2, last):
        text = json.dumps(explorer.show(values | {"step": step}), allow_nan=False)
        assert len(text) < 250_000


@pytest.mark.parametrize(
    "values, message",
    [({"queries": 0}, "queries=0: must be from 1 to 1024"), ({"plan": "version_3"}, "must be one of"),
     ({"step": 10_000}, "must be from 0 to")],
)  # fmt: skip
def test_what_cannot_be_shown_says_why(values, message):
    with pytest.raises(ValueError, match=message):
        explorer.show(explorer.defaults | values)
