"""The figures show the plan and the price, and every control of the explorers does what it says."""

import json
from time import perf_counter

import pytest

from gpuedu.explorer import Choice, Integer, Real, Switch
from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.tensor_parallel.cost import layer_activation_bytes, step_time
from gpuedu.tensor_parallel.plan import LAYER_SITES, shard
from gpuedu.tensor_parallel.plot import block, block_explorer, speed_explorer
from gpuedu.tensor_parallel.plot.block import held_text, sent_text
from gpuedu.transformer import MODELS

EXPLORERS = (block_explorer, speed_explorer)
PRESETS = [
    pytest.param(explorer, preset, id=f"{explorer.id}-{preset.name}")
    for explorer in EXPLORERS
    for preset in explorer.presets
]


def polygons(trace):
    """Closed outlines of a trace that is one area."""
    outlines, corners = [], []
    for corner in zip(trace["x"], trace["y"], strict=True):
        if corner == (None, None):
            outlines.append(corners)
            corners = []
        else:
            corners.append(corner)
    assert not corners
    return outlines


def area(outline):
    """Of a rectangle drawn corner by corner and closed."""
    xs, ys = {x for x, _ in outline}, {y for _, y in outline}
    assert len(outline) == 5 and outline[0] == outline[-1]
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def traces(figure, name):
    return [trace for trace in figure["data"] if trace.get("name", "").startswith(name)]


def texts(figure):
    (found,) = (trace["text"] for trace in figure["data"] if trace.get("mode") == "text")
    return found


SHOWN = (
    set("qkvo") | {"gate", "up", "down", "attention norm", "ffn norm"},
    {"attention norm input", "attention input", "queries", "keys", "values", "attention output"}
    | {"ffn norm input", "ffn input", "gate", "gate after SiLU", "up", "product"},
)


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("t", [1, 2, 8, 16])
def test_every_tensor_is_drawn_in_its_pieces(t, sp):
    plan = shard(MODELS["llama-3-70b"], t, sequence_parallel=sp, recompute="selective", dropout=False)
    drawn = [w for w in plan.weights if w.site in LAYER_SITES] + [
        a for a in plan.activations if a.site in LAYER_SITES
    ]
    assert {w.name for w in plan.weights if w.site in LAYER_SITES} == SHOWN[0]
    assert {a.name for a in plan.activations if a.site in LAYER_SITES} == SHOWN[1]
    figure = block(plan)
    ranks = traces(figure, "GPU 0")
    assert len(ranks) == t
    own = [x for x in drawn if x.copies == 1]
    for rank, trace in enumerate(ranks):
        outlines = polygons(trace)
        assert len(outlines) == len(own)
        for outline, first in zip(outlines, polygons(ranks[0]), strict=True):
            assert area(outline) == pytest.approx(area(first)), rank  # all ranks have as much of each
    (copies,) = traces(figure, "the same")
    assert len(polygons(copies)) == sum(x.pieces for x in drawn if x.copies > 1)
    assert len({trace["fillcolor"] for trace in ranks}) == t


def test_columns_lie_side_by_side_and_rows_and_tokens_one_below_the_other():
    plan = shard(MODELS["llama-3-70b"], 8, sequence_parallel=True, recompute="selective", dropout=False)
    first, second = traces(block(plan), "GPU 0")[:2]
    beside, below = [], []
    drawn = [x for x in (*plan.weights, *plan.activations) if x.site in LAYER_SITES and x.copies == 1]
    for one, other in zip(polygons(first), polygons(second), strict=True):
        (beside if one[0][1] == other[0][1] else below).append(one)
    assert len(below) == sum(x.axis == 1 for x in drawn) == 2 + 4  # o and down; inputs of norms and products
    assert len(beside) == sum(x.axis in (0, 2) for x in drawn)


def test_pieces_of_a_tensor_do_not_overlap():
    plan = shard(MODELS["llama-3-70b"], 8, sequence_parallel=True, recompute="selective")
    boxes = [outline for trace in block(plan)["data"] if trace.get("fill") for outline in polygons(trace)]
    spans = [
        (min(x for x, _ in b), max(x for x, _ in b), min(y for _, y in b), max(y for _, y in b))
        for b in boxes
    ]
    for i, (left, right, top, bottom) in enumerate(spans):
        assert -0.01 <= left < right <= 10.01
        for other_left, other_right, other_top, other_bottom in spans[:i]:
            apart = (
                right <= other_left + 1e-9
                or other_right <= left + 1e-9
                or bottom <= other_top + 1e-9
                or other_bottom <= top + 1e-9
            )
            assert apart


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_collectives_and_their_bytes_are_written(sp, training):
    plan = shard(MODELS["llama-3-8b"], 4, sequence_parallel=sp, training=training)
    figure = block(plan)
    written = [text for text in texts(figure) if text[0] in "▼▲" and "nothing" not in text]
    names = {"all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter", "all_gather": "all-gather"}
    expected = [
        f"{'▼' if c.phase.value == 'forward' else '▲'} "
        f"{'re-gather' if c.again else names[c.collective.value]} {sent_text(c.bytes_sent)}"
        for c in plan.layer
    ]
    assert sorted(written) == sorted(expected)
    bands = polygons(traces(figure, "collectives")[0])
    assert len(bands) == len({(c.site, c.phase) for c in plan.layer})


def test_what_has_no_backward_takes_the_whole_width():
    training, inference = (block(shard(MODELS["llama-3-8b"], 4, training=way)) for way in (True, False))
    for figure, column, number in ((training, 4.7, 4), (inference, 10, 2)):
        bands = polygons(traces(figure, "collect")[0])
        sides = {(min(x for x, _ in band), max(x for x, _ in band)) for band in bands}
        assert len(bands) == number and (0, column) in sides
    drawn = polygons(traces(inference, "GPU 0")[-1])
    assert len(drawn) == 7 and 7.5 < max(x for outline in drawn for x, _ in outline) <= 10


def test_the_pointer_is_told_what_each_box_is():
    plan = shard(MODELS["llama-3-70b"], 8, recompute="selective", dropout=False)
    (told,) = (trace["text"] for trace in block(plan)["data"] if trace.get("mode") == "none")
    (keys,) = (w for w in plan.weights if w.name == "k")
    assert f"k: 1024 × 8192<br>{held_text(keys)}" in told
    assert held_text(keys) == "each GPU 128 × 8192"
    norm = next(w for w in plan.weights if w.name == "ffn norm")
    assert held_text(norm) == "each GPU 8192, 8 GPUs the same"


def test_bytes_are_written_in_their_unit():
    assert [sent_text(n) for n in (12, 1234, 58720256, 2.5e9)] == ["12 B", "1.23 kB", "58.7 MB", "2.5 GB"]


# The story ----------------------------------------------------------------------------------------


def test_cutting_tells_its_story():
    rows = {p.name: block_explorer.table(**block_explorer.values_of(p)).rows for p in block_explorer.presets}

    def sent(name):
        """Bytes of one layer's collectives; the table has every collective of a step once."""
        return sum(r[4] for r in rows[name] if "all-" in r[0] or "scatter" in r[0] if "attention" in r[1])

    def kept(name):
        return sum(r[4] for r in rows[name] if r[0] == "activation" and r[1] != "logits")

    assert sent("one") == 0
    assert sent("eight") / sent("two") == pytest.approx((7 / 8) / (1 / 2))
    assert sent("inference") == sent("eight") / 2
    assert sent("sequence") == sent("eight") * 10 / 8
    assert kept("sequence") == pytest.approx(kept("one") / 8)
    assert kept("eight") > 2 * kept("sequence")
    assert any(r[1] == "k" and r[3].endswith("4 GPUs the same") for r in rows["few_kv"])
    takeaways = {
        p.name: block_explorer.takeaway(**block_explorer.values_of(p)) for p in block_explorer.presets
    }
    assert "**4** all-reduces" in takeaways["eight"] and "**2** all-reduces" in takeaways["inference"]
    assert "**4** reduce-scatters and **6** all-gathers" in takeaways["sequence"]
    assert "sends nothing" in takeaways["one"]
    assert "**4** GPUs hold the same KV head" in takeaways["few_kv"]
    layer = layer_activation_bytes(shard(MODELS["llama-3-70b"], 8, recompute="selective", dropout=False))
    assert sent_text(layer) in takeaways["eight"]


def shares(preset):
    """{(links, t): useful share} of a preset of the speed explorer."""
    values = speed_explorer.values_of(preset)
    return {(row[0], row[1]): row[5] for row in speed_explorer.table(**values).rows}


def test_speed_tells_its_story():
    by_name = {preset.name: shares(preset) for preset in speed_explorer.presets}
    node, network, wide = "NVLink in nodes of 8", "InfiniBand alone", "NVLink between all"
    plain = by_name["node"]
    assert plain[node, 8] > 80 > 50 > plain[network, 8]
    assert plain[node, 16] < plain[wide, 16] < plain[node, 8]
    assert by_name["small"][node, 8] < plain[node, 8]
    assert plain[node, 8] < by_name["tokens"][node, 8] < plain[node, 8] + 5  # more tokens hardly help
    assert by_name["faster"][network, 8] < plain[network, 8]


def test_curves_and_bars_are_the_price():
    values = speed_explorer.values_of(speed_explorer.presets[0])
    figure = speed_explorer.figure(**values)
    cluster = Cluster(GPUS["H100-SXM"], 8, 4, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    steps = {t: step_time(shard(MODELS["llama-3-70b"], t), cluster) for t in (1, 2, 4, 8, 16, 32)}
    (curve,) = traces(figure, "NVLink in nodes")
    assert curve["x"] == [str(t) for t in steps]
    assert curve["y"] == pytest.approx([100 * step.useful_share for step in steps.values()])
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    for i, (t, step) in enumerate(steps.items()):
        assert sum(bar["y"][i] for bar in bars) == pytest.approx(t * step.total_s)
    assert f"**{100 * steps[8].useful_share:.0f} %**" in speed_explorer.takeaway(**values)


# The explorers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("explorer, preset", PRESETS)
def test_every_enabled_control_changes_something_and_no_disabled_one_does(explorer, preset):
    values = explorer.values_of(preset)
    unused = explorer.unused(**values) if explorer.unused else ()
    seen = (explorer.figure(**values), explorer.takeaway(**values))
    for control in explorer.controls:
        if isinstance(control, Choice):
            others = list(control.options)
        elif isinstance(control, Integer | Real):
            others = [control.low, control.high]
        else:
            assert isinstance(control, Switch)
            others = [not values[control.name]]
        changed = any(
            (explorer.figure(**moved), explorer.takeaway(**moved)) != seen
            for moved in (values | {control.name: other} for other in others)
        )
        assert changed != (control.name in unused), control.name


@pytest.mark.parametrize("explorer, preset", PRESETS)
def test_everything_shown_is_json_and_names_its_numbers(explorer, preset):
    shown = json.loads(explorer.show_json(explorer.values_of(preset)))
    assert shown["takeaway"].count("**") >= 2
    assert shown["table"]["rows"]


@pytest.mark.parametrize("explorer, preset", PRESETS)
def test_a_redraw_is_light(explorer, preset):
    values = explorer.values_of(preset)
    explorer.show_json(values)  # imports, and plans that a preset shares
    seconds = []
    for batch in (5, 6, 7):
        start = perf_counter()
        explorer.show_json(values | {"batch": batch}, table=False)
        seconds.append(perf_counter() - start)
    assert min(seconds) < 0.02
    assert len(explorer.figure(**values)["data"]) <= 16


@pytest.mark.parametrize(
    "explorer, values, message",
    [
        (block_explorer, {"t": 3}, "tensor_parallel=3: must divide attention_heads=64 without rest"),
        (block_explorer, {"t": 9}, "t=9: must be from 1 to 8"),
        (block_explorer, {"model": "gpt2", "t": 8}, "must divide attention_heads=12"),
        (speed_explorer, {"efficiency": 0}, "efficiency=0: must be from 20 to 90"),
        (speed_explorer, {"link": "ethernet"}, "must be one of"),
    ],
)
def test_what_cannot_be_shown_says_why(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.show(explorer.defaults | values)
