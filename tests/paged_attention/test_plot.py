"""The figure shows what the managers hold, and every control of the explorer does what it says."""

import json
import re

import pytest

from gpuedu.explorer import Choice, Switch
from gpuedu.paged_attention.plot import explorer
from gpuedu.paged_attention.plot.film import CAPACITY, LONGEST, STRIDE, TICKS, film
from gpuedu.paged_attention.plot.memory_map import KINDS, RIBBON, ROWS, memory_map

CONTROLS = {control.name: control for control in explorer.controls}
FILMS = [
    ("chats", "max", 16, False),
    ("chats", "pow2", 4, True),
    ("shared_prompt", "oracle", 16, True),
    ("turns", "max", 8, True),
    ("answers", "oracle", 64, False),
    ("answers", "pow2", 8, True),
]


def frames_of(workload, reservation, block_size, caching):
    return film(workload, reservation, block_size, caching, "lru", "split")


def area(figure, axis, kind):
    """Area in cells of what the grid on ``axis`` shows of one kind."""
    name = KINDS[kind][2]
    (trace,) = (
        t for t in figure["data"] if t.get("name") == name and t["xaxis"] == axis and "fillcolor" in t
    )
    total, corners = 0.0, []
    for x, y in zip(trace["x"], trace["y"], strict=True):
        if x is None:
            if corners:
                (left, top), _, (right, bottom), *_ = corners
                total += (right - left) * (bottom - top)
            corners = []
        else:
            corners.append((x, y))
    return total


@pytest.mark.parametrize("choice", FILMS)
def test_areas_are_the_slots(choice):
    frames = frames_of(*choice)
    for frame in (frames[5], frames[20], frames[-1]):
        figure = memory_map(frame, "left")
        slots = CAPACITY / len(frame.blocks) / 0.8  # in a cell, whose height is drawn at 0.8
        for kind in ("tokens", "reserved", "internal"):
            expected = getattr(frame.contiguous, kind)
            assert area(figure, "x", kind) * slots == pytest.approx(expected, abs=0.1)
        rounded = sum(piece.given - max(end, piece.reserved) for piece, _, end in frame.pieces.values())
        assert area(figure, "x", "rounded") * slots == pytest.approx(rounded, abs=0.1)
        for kind in ("tokens", "internal"):
            expected = getattr(frame.paged, kind)
            assert area(figure, "x2", kind) * slots / 0.9 == pytest.approx(expected, abs=0.2)
        known = sum(not block.holders and block.name is not None for block in frame.blocks)
        assert area(figure, "x2", "known") == pytest.approx(known * 0.9 * 0.8, abs=0.1)


@pytest.mark.parametrize("choice", FILMS)
def test_frames_hold_together(choice):
    waited = 0
    for frame in frames_of(*choice):
        held = {number for number, block in enumerate(frame.blocks) if block.holders}
        assert held | set(frame.free) == set(range(len(frame.blocks))) and not held & set(frame.free)
        size = CAPACITY // len(frame.blocks)
        assert all(0 < frame.blocks[b].filled <= size for b in held)
        assert frame.paged.tokens <= CAPACITY and frame.paged.external == size * len(frame.free)
        pieces = sorted((piece.address, piece.given) for piece, _, _ in frame.pieces.values())
        everything = sorted([*pieces, *frame.holes])
        ends = [address + length for address, length in everything]
        assert [address for address, _ in everything] == [0, *ends[:-1]] and ends[-1] == CAPACITY
        assert all(now <= end <= LONGEST for _, now, end in frame.pieces.values())
        waited += bool(frame.contiguous_waiting)
    assert waited > TICKS / 2


def test_a_shared_prompt_is_held_once_and_read_by_all():
    frame = frames_of("shared_prompt", "max", 16, True)[-1]
    assert max(len(block.holders) for block in frame.blocks) == frame.paged.requests
    assert frame.chain and all(link.found for link in frame.chain[:3])


def test_answers_copy_one_block_less_than_there_are_branches():
    frames = frames_of("answers", "max", 8, False)
    first = next(frame for frame in frames if "A2 forks off A1" in frame.news)
    assert [number for number, block in enumerate(first.blocks) if len(block.holders) == 3]
    of_a = [pair for frame in frames[:3] for pair in frame.copies]
    assert len(of_a) in (2, 4)  # two for each prompt that does not end with a block


def test_what_was_said_is_what_the_next_turn_finds():
    frames = frames_of("turns", "max", 8, True)
    found = [news for frame in frames for news in frame.news if "tokens found" in news]
    assert len(found) > 10


def test_ribbon_is_the_free_queue():
    frame = frames_of("turns", "max", 8, True)[12]
    figure = memory_map(frame, "left")
    (labels,) = (t["text"] for t in figure["data"] if t["xaxis"] == "x5" and t["mode"] == "text")
    assert labels == [str(block) for block in frame.free[:RIBBON]]
    words = [note["text"] for note in figure["layout"]["annotations"]]
    assert any(f"{len(frame.free) - RIBBON} more" in text for text in words)


@pytest.mark.parametrize("preset", explorer.presets, ids=lambda preset: preset.name)
def test_presets_show(preset):
    values = explorer.values_of(preset)
    shown = json.loads(explorer.show_json(values))
    assert shown["takeaway"].count("**") >= 8 and shown["table"]["rows"]
    assert explorer.figure(**values) == explorer.figure(**values | {"step": TICKS - 1})
    assert len(json.dumps(shown)) < 80_000


def test_presets_tell_the_story():
    useful = {}
    for preset in explorer.presets:
        numbers = re.findall(r"\*\*(\d+) %\*\*", explorer.takeaway(**explorer.values_of(preset)))
        useful[preset.name] = tuple(map(int, numbers))
    left = [useful[name][0] for name in ("max", "pow2", "oracle")]
    assert left == sorted(left) and left[-1] < 50
    assert useful["max"][1] > 85 and useful["big"][1] < useful["max"][1] - 10


def test_every_control_changes_something_unless_it_says_so():
    start = explorer.values_of(next(p for p in explorer.presets if p.name == "shared")) | {
        "workload": "turns"
    }
    for name, control in CONTROLS.items():
        if isinstance(control, Choice):
            others = [value for value in control.options if value != start[name]]
        elif isinstance(control, Switch):
            others = [not start[name]]
        else:
            others = [0, 7]
        before = explorer.show(start)
        for value in others:
            after = explorer.show(start | {name: value})
            assert after["figure"] != before["figure"], (name, value)


def test_unused_controls_change_nothing():
    for values in (
        explorer.defaults,
        explorer.defaults | {"caching": True, "eviction": "lfu"},
        explorer.defaults | {"caching": True},
    ):
        for name in explorer.unused(**values):
            shown = explorer.figure(**values)
            assert all(explorer.figure(**values | {name: v}) == shown for v in CONTROLS[name].options)


def test_a_step_is_a_tick():
    values = explorer.defaults
    assert explorer.steps(**values) == TICKS - 1
    assert "Tick 3: " in explorer.takeaway(**values | {"step": 3})
    made = [frame.paged.tokens for frame in frames_of("chats", "max", 16, False)[:2]]
    assert made[1] > made[0] and ROWS == 8 and STRIDE == 4
