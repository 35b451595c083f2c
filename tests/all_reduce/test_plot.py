"""The figures show the plans and the prices, and every control of the explorers does what it says."""

import json
from collections import Counter
from math import log10

import pytest

from gpuedu.all_reduce.cost import FITS, SWEEPS, candidate_times, plan_time, simulate, winner
from gpuedu.all_reduce.plan import ALL_REDUCES, Collective, Plan, contributions, hierarchical, ring, tree
from gpuedu.all_reduce.plot import measured, plan_figure, stepper, winner_map
from gpuedu.all_reduce.plot.winner_map import CANDIDATES, FILLS, SIZES
from gpuedu.all_reduce.plot.words import BYTES, NAMES, SECONDS, in_units
from gpuedu.explorer import Choice, Integer, Real, Step
from gpuedu.hardware import GPUS, LINKS, Cluster, Link

EXPLORERS = {explorer.id: explorer for explorer in (stepper, winner_map, measured)}
PRESETS = [(explorer, preset) for explorer in EXPLORERS.values() for preset in explorer.presets]


def each_preset(function):
    ids = [f"{explorer.id}-{preset.name}" for explorer, preset in PRESETS]
    return pytest.mark.parametrize("explorer, preset", PRESETS, ids=ids)(function)


def plan_of(algorithm, n, gpus_per_node):
    if algorithm == "hierarchical":
        return hierarchical(n // gpus_per_node, gpus_per_node)
    return ALL_REDUCES[algorithm](n)


# The stepper ------------------------------------------------------------------------------------

VIEWS = [
    {"algorithm": name, "world_size": n, "gpus_per_node": g}
    for name in NAMES
    for n, g in ((1, 8), (4, 2), (6, 3), (8, 8), (16, 8))
    if name != "hierarchical" or n % g == 0
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: "-".join(map(str, view.values())))
def test_cells_are_the_contributions_and_bars_the_bytes(view):
    plan = plan_of(*view.values())
    values = stepper.defaults | view
    assert stepper.steps(**values) == len(plan.rounds)
    for step, held in enumerate(contributions(plan)):
        figure = stepper.figure(**values | {"step": step})
        grid = figure["data"][0]
        counts = [[chunk.bit_count() for chunk in rank] for rank in held]
        assert [list(row) for row in grid["customdata"]] == counts
        for row, texts, states in zip(counts, grid["text"], grid["z"], strict=True):
            for count, text, state in zip(row, texts, states, strict=True):
                complete = count == plan.world_size
                assert (text, state) == ("✓", 2) if complete else (str(count), min(count, 2) - 1)
        bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
        so_far = sum(sum(t["x"]) for t in bars if sum(t["x"]) > 0)
        back = sum(sum(t["x"]) for t in bars if sum(t["x"]) < 0)
        at = plan.byte_bounds(100_000_000)
        assert so_far == -back
        assert so_far == sum(at[t.stop] - at[t.start] for round_ in plan.rounds[:step] for t in round_)


def test_bars_tell_bytes_between_nodes_from_those_inside():
    values = stepper.values_of(next(p for p in stepper.presets if p.name == "flat")) | {"step": None}
    bars = [trace for trace in stepper.figure(**values)["data"] if trace["type"] == "bar"]
    links = ring(16).link_bytes(100_000_000)
    outward = {trace["name"]: trace["x"] for trace in bars if max(trace["x"]) > 0}
    inward = {trace["name"]: [-x for x in trace["x"]] for trace in bars if min(trace["x"]) < 0}
    for rank in range(16):
        for end, drawn in ((0, outward), (1, inward)):
            mine = {pair: size for pair, size in links.items() if pair[end] == rank}
            inside = sum(size for (src, dst), size in mine.items() if src // 8 == dst // 8)
            between = sum(mine.values()) - inside
            assert (drawn["inside a node"][rank], drawn["between nodes"][rank]) == (inside, between)


def test_arcs_and_frames_are_the_transfers_of_the_round():
    plan = ring(4)
    for step in range(1, 7):
        figure = stepper.figure(**stepper.defaults | {"algorithm": "ring", "world_size": 4, "step": step})
        heads = next(t for t in figure["data"] if t.get("mode") == "markers" and "customdata" in t)
        frames = next(t for t in figure["data"] if t.get("name") == "arrived in this round")
        transfers = plan.rounds[step - 1]
        assert [(src, dst) for src, dst, *_ in heads["customdata"]] == [(t.src, t.dst) for t in transfers]
        assert frames["x"].count(None) == len(transfers)
        corners = zip(frames["x"][::6], frames["y"][::6], strict=True)
        assert [(round(x), round(y)) for x, y in corners] == [(t.start, t.dst) for t in transfers]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: "-".join(map(str, view.values())))
def test_finished_picture_says_when_and_over_which_links(view):
    plan = plan_of(*view.values())
    figure = stepper.figure(**stepper.defaults | view)
    history = list(contributions(plan))
    everybody = (1 << plan.world_size) - 1
    for rank, row in enumerate(figure["data"][0]["z"]):
        for chunk, number in enumerate(row):
            assert history[number][rank][chunk] == everybody
            assert number == 0 or history[number - 1][rank][chunk] != everybody
    heads = next(t for t in figure["data"] if t.get("mode") == "markers" and "customdata" in t)
    assert {(src, dst) for src, dst, *_ in heads["customdata"]} == plan.link_bytes(100).keys()


def test_a_plan_by_hand_is_drawn_too():
    by_hand = Plan("mine", Collective.ALL_REDUCE, 3, 1, tree(3).rounds)
    for step in (None, 0, 2):
        drawn = plan_figure(by_hand, 10**6, step=step)
        assert drawn == stepper.figure(**stepper.defaults | {
            "algorithm": "tree", "world_size": 3, "megabytes": 1.0, "step": step
        })  # fmt: skip
    with pytest.raises(ValueError, match="step=5: must be from 0 to 4"):
        plan_figure(by_hand, 10**6, step=5)
    with pytest.raises(ValueError, match="lacks the contribution"):
        plan_figure(Plan("half", Collective.ALL_REDUCE, 3, 1, tree(3).rounds[:2]), 10**6, step=1)
    with pytest.raises(ValueError, match="a second time"):
        plan_figure(Plan("mine", Collective.ALL_REDUCE, 2, 2, ring(2).rounds[:1] * 2), 10**6)


def test_before_the_first_round_nothing_has_happened():
    figure = stepper.figure(**stepper.defaults | {"step": 0})
    assert all(not any(trace["x"]) for trace in figure["data"] if trace["type"] == "bar")
    assert stepper.table(**stepper.defaults | {"step": 0}).rows == ()


def test_stepper_takeaway_is_the_price():
    for name in ("ring", "parameter_server", "recursive_halving_doubling"):
        values = stepper.defaults | {"algorithm": name, "world_size": 16, "gpus_per_node": 4, "step": None}
        cluster = Cluster(GPUS["H100-SXM"], 4, 4, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
        plan = ALL_REDUCES[name](16)
        text = stepper.takeaway(**values)
        assert f"**{in_units(plan_time(plan, 10**8, cluster), SECONDS)}**" in text
        ports = Counter()  # of each rank: out and in, inside its node and to others
        for (src, dst), size in plan.link_bytes(10**8).items():
            far = src // 4 != dst // 4
            ports[src, "out", far] += size
            ports[dst, "in", far] += size
        busiest = max(ports.values()) / 1e8
        between = max(size for (_, _, far), size in ports.items() if far) / 1e8
        assert f"the busiest link carries **{busiest:.3g} arrays** in one direction" in text
        assert f"the busiest one between nodes **{between:.3g} arrays**" in text


def test_pieces_are_simulated():
    values = stepper.defaults | {"algorithm": "double_binary_tree"}
    cluster = Cluster(GPUS["H100-SXM"], 8, 1, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    for pieces in (2, 16):
        seconds = simulate(ALL_REDUCES["double_binary_tree"](8), 10**8, cluster, pieces=pieces).seconds
        said = stepper.takeaway(**values | {"pieces": pieces})
        assert f"in {pieces} pieces take **{in_units(seconds, SECONDS)}**" in said


def test_stepper_table_is_every_transfer():
    values = stepper.defaults | {"algorithm": "ring", "step": 3}
    rows = stepper.table(**values).rows
    expected = [(i + 1, t.src, t.dst) for i, round_ in enumerate(ring(8).rounds[:3]) for t in round_]
    assert [row[:3] for row in rows] == expected
    assert {row[4] for row in rows} == {12_500_000}


def test_stepper_presets_tell_the_story():
    """From one overloaded link to balanced ones; over nodes the flat ring loses to the hierarchy."""
    seconds = {}
    for preset in stepper.presets:
        values = stepper.values_of(preset)
        n, g = values["world_size"], values["gpus_per_node"]
        cluster = Cluster(GPUS["H100-SXM"], g, -(-n // g), LINKS["NVLink4"], LINKS[values["network"]])
        seconds[preset.name] = plan_time(plan_of(values["algorithm"], n, g), 10**8, cluster)
    assert seconds["server"] > 5 * seconds["ring"]
    assert seconds["tree"] > seconds["ring"] > seconds["halving"]
    assert seconds["flat"] > 5 * seconds["nodes"]


# The winner map ---------------------------------------------------------------------------------


def areas(figure):
    """{(GPUs, size index): name} as drawn: by color."""
    heat = figure["data"][0]
    rows = figure["layout"]["yaxis"]["ticktext"]
    names = list(FILLS)
    return {
        (int(n), i): names[int(z)]
        for n, row in zip(rows, heat["z"], strict=True)
        for i, z in enumerate(row)
    }  # fmt: skip


@pytest.mark.parametrize("preset", winner_map.presets, ids=lambda preset: preset.name)
def test_the_map_is_the_winner(preset):
    values = winner_map.values_of(preset)
    figure = winner_map.figure(**values)
    link = Link("mine", values["latency"] * 1e-6, values["bandwidth"] * 1e9, "test")
    drawn = areas(figure)
    for (n, i), name in list(drawn.items())[::7]:
        assert name == winner(n, SIZES[i], link, algorithms=CANDIDATES[values["candidates"]])
    said = [cell[0] for row in figure["data"][0]["customdata"] for cell in row]
    assert said == [NAMES[name] for name in drawn.values()]
    labels = next(trace for trace in figure["data"] if trace.get("mode") == "text")
    assert sorted(labels["text"]) == sorted({NAMES[name] for name in drawn.values()})
    for x, y, text in zip(labels["x"], labels["y"], labels["text"], strict=True):
        n = int(figure["layout"]["yaxis"]["ticktext"][y])
        assert NAMES[drawn[n, round((x - 3) * 3)]] == text


@pytest.mark.parametrize("n", [2, 100, 384])
def test_curves_are_the_times_and_the_mark_is_the_readers(n):
    values = winner_map.defaults | {"world_size": n, "megabytes": 3.0}
    figure = winner_map.figure(**values)
    link = Link("mine", 4e-6, 50e9, "test")
    curves = {trace["name"]: trace["y"] for trace in figure["data"] if trace.get("xaxis") == "x2"}
    times = [candidate_times(n, size, link) for size in SIZES]
    for name in ALL_REDUCES:
        assert curves[NAMES[name]] == pytest.approx([each[name] for each in times])
    assert curves["the fastest"] == pytest.approx([min(each.values()) for each in times])
    mark = next(trace for trace in figure["data"] if trace.get("mode") == "markers")
    assert mark["x"] == [log10(3e6)]
    assert figure["layout"]["yaxis"]["ticktext"][mark["y"][0]] == str(n)


def test_winner_presets_tell_the_story():
    words = {p.name: winner_map.takeaway(**winner_map.values_of(p)) for p in winner_map.presets}
    first = {name: text.partition(" sums")[0] for name, text in words.items()}
    assert first == {
        "small": "Recursive doubling",
        "bucket": "Halving-doubling",
        "odd": "Double binary tree",
        "nccl": "Double binary tree",
        "gradient": "Ring",
        "slow": "Ring",
    }
    assert "99.9 %" in words["gradient"]


def test_only_latency_times_bandwidth_moves_the_borders():
    one = winner_map.figure(**winner_map.defaults | {"latency": 2.0, "bandwidth": 100.0})
    same = winner_map.figure(**winner_map.defaults | {"latency": 8.0, "bandwidth": 25.0})
    other = winner_map.figure(**winner_map.defaults | {"latency": 20.0, "bandwidth": 100.0})
    assert areas(one) == areas(same) != areas(other)


# Model and measurement --------------------------------------------------------------------------


def named(figure):
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


@pytest.mark.parametrize("machine", SWEEPS)
def test_points_are_the_measurements_and_lines_the_models(machine):
    sweep = SWEEPS[machine]
    figure = measured.figure(machine=machine, latency=3.0, bandwidth=120.0)
    drawn = named(figure)
    points = list(zip(drawn["measured"]["x"], drawn["measured"]["y"], strict=True))
    assert points == list(sweep.points)

    n = sweep.world_size
    factor = 2 * (n - 1) / n
    for nbytes, rate in zip(drawn["two numbers"]["x"], drawn["two numbers"]["y"], strict=True):
        seconds = 2 * (n - 1) * 3e-6 + factor * nbytes / 120e9
        assert rate == pytest.approx(factor * nbytes / seconds)
    residuals = next(trace for trace in figure["data"] if trace.get("yaxis") == "y2")
    for nbytes, ratio, (_, rate) in zip(residuals["x"], residuals["y"], points, strict=True):
        seconds = 2 * (n - 1) * 3e-6 + factor * nbytes / 120e9
        assert ratio == pytest.approx(seconds * rate / (factor * nbytes))
    assert all(abs(log10(ratio)) < figure["layout"]["yaxis2"]["range"][1] for ratio in residuals["y"])


def test_lines_of_others_do_not_move():
    for machine, sweep in SWEEPS.items():
        here, there = (named(measured.figure(machine=machine, latency=a, bandwidth=b))
                       for a, b in ((0.1, 2000), (100, 5)))  # fmt: skip
        assert ("datasheets" in here) == (sweep.cluster is not None)
        assert ("Vidur's fit" in here) == (machine in FITS)
        for name in here.keys() - {"two numbers"}:
            assert here[name] == there[name]
    a100 = named(measured.figure(machine="8 x A100", latency=1.9, bandwidth=300.0))
    for nbytes, rate in zip(a100["Vidur's fit"]["x"], a100["Vidur's fit"]["y"], strict=True):
        assert rate == pytest.approx(1.75 * nbytes / (70e-6 + 1.75 * nbytes / 181e9))
    # In one node the datasheet's two numbers are the datasheet's line
    assert a100["datasheets"]["y"] == pytest.approx(a100["two numbers"]["y"])
    limit = named(measured.figure(machine="4 x 8 B200", latency=4.0, bandwidth=50.0))["datasheets"]["y"][-1]
    across, inside = 2 * 3 / 4 / 8 / 50e9, 2 * 7 / 8 / 900e9
    assert limit == pytest.approx(2 * 31 / 32 / (across + inside), rel=0.01)


def test_measured_takeaway_says_how_far_off():
    values = measured.defaults
    text = measured.takeaway(**values)
    off = sorted((max(t / m, m / t), s) for s, t, m in (
        (s, 14 * 1.9e-6 + 1.75 * s / 300e9, seconds) for s, seconds in SWEEPS["8 x A100"].times
    ))  # fmt: skip
    assert f"**{off[len(off) // 2][0]:.3g}** at the median" in text
    assert f"**{off[-1][0]:.3g}** at the worst, {in_units(off[-1][1], BYTES)}" in text
    assert "537 MB took 1.34 times as long" in text


def test_measured_presets_tell_the_story():
    """Datasheets are good for a factor of two; a fit is better; one ring over four nodes is far off."""
    worst = {}
    for preset in measured.presets:
        text = measured.takeaway(**measured.values_of(preset))
        worst[preset.name] = float(text.split("**")[3])
    assert worst["a100-fit"] < worst["a100"] < 2 and worst["h100"] < 2
    assert worst["flat"] > 7 > 2.5 > worst["nodes"]


# All --------------------------------------------------------------------------------------------


@each_preset
def test_every_enabled_control_changes_something_and_no_disabled_one_does(explorer, preset):
    values = explorer.values_of(preset)
    unused = explorer.unused(**values) if explorer.unused else ()
    seen = (explorer.figure(**values), explorer.takeaway(**values))
    for control in explorer.controls:
        if isinstance(control, Choice):
            others = list(control.options)
        elif isinstance(control, Integer | Real):
            others = [control.low, control.high]
        elif isinstance(control, Step):
            others = [0, explorer.steps(**values)]
        changed = False
        for other in others:
            moved = values | {control.name: other}
            try:
                changed |= (explorer.figure(**moved), explorer.takeaway(**moved)) != seen
            except ValueError:
                changed = True
        assert changed != (control.name in unused), control.name


@each_preset
def test_everything_shown_is_json_small_and_names_its_numbers(explorer, preset):
    text = explorer.show_json(explorer.values_of(preset))
    shown = json.loads(text)
    assert shown["takeaway"].count("**") >= 2
    assert shown["table"]["rows"]
    assert len(json.dumps(shown["figure"])) < 40_000
    traces = shown["figure"]["data"]
    drawn = sum(len(t["y"]) for t in traces if t["type"] == "bar" or t.get("mode") in ("markers", "text"))
    cells = sum(len(row) for t in traces if "texttemplate" in t for row in t["text"])
    assert drawn <= 130 and cells <= 256  # elements that a browser draws one by one


@pytest.mark.parametrize(
    "explorer, values, message",
    [
        (
            stepper,
            {"algorithm": "hierarchical", "world_size": 6, "gpus_per_node": 4},
            "must be a multiple of",
        ),
        (stepper, {"world_size": 0}, "world_size=0: must be from 1 to 16"),
        (stepper, {"algorithm": "gossip"}, "must be one of"),
        (stepper, {"step": 10_000}, "must be from 0 to"),
        (winner_map, {"world_size": 1}, "world_size=1: must be from 2 to 1024"),
        (winner_map, {"latency": 0}, "latency=0: must be from 0.1"),
        (measured, {"machine": "8 x V100"}, "machine='8 x V100': must be one of 8 x A100"),
        (measured, {"bandwidth": 4}, "bandwidth=4: must be from 5"),
    ],
)
def test_what_cannot_be_shown_says_why(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.show(explorer.defaults | values)


@pytest.mark.parametrize(
    "value, steps, text",
    [(999.9, BYTES, "1 kB"), (1e12, BYTES, "1 TB"), (0.5, BYTES, "0.5 B"), (1.234e-3, SECONDS, "1.23 ms"),
     (123.4, SECONDS, "123 s"), (1234, SECONDS, "1,234 s"), (2.5e15, BYTES, "2,500 TB")],
)  # fmt: skip
def test_numbers_are_written_in_units(value, steps, text):
    assert in_units(value, steps) == text
