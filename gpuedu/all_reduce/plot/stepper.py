"""The stepper: an all-reduce round by round, what each rank holds and what has gone through its link.

Its functions take every control by keyword; plans and what ranks hold are memoized, so that a step
through one costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import accumulate

from gpuedu.all_reduce.cost import plan_time, simulate
from gpuedu.all_reduce.plan import ALL_REDUCES, Plan, Transfer, contributions, hierarchical, validate
from gpuedu.all_reduce.plot.words import BYTES, NAMES, SECONDS, arrays, in_units
from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Table
from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.style import COLORS, ink_on, tint

OWN, PARTIAL, COMPLETE = (tint(COLORS["weight_gradient"], share) for share in (0.8, 0.45, 0))
IN_PIECES = ("tree", "double_binary_tree")
NETWORKS = {name: name for name in ("InfiniBand-NDR", "InfiniBand-HDR", "RoCE-100")}
ROW_PX, MARGIN_PX = 30, 150


@lru_cache(maxsize=64)
def _plan(algorithm: str, world_size: int, gpus_per_node: int) -> Plan:
    if algorithm != "hierarchical":
        plan = ALL_REDUCES[algorithm](world_size)
    elif world_size % gpus_per_node:
        raise ValueError(
            f"world_size={world_size}: must be a multiple of gpus_per_node={gpus_per_node} for full nodes"
        )
    else:
        plan = hierarchical(world_size // gpus_per_node, gpus_per_node)
    return plan


@lru_cache(maxsize=64)
def _check(plan: Plan) -> None:
    """:func:`validate`, once a plan."""
    validate(plan)


@lru_cache(maxsize=64)
def _held(plan: Plan) -> tuple:
    """How many ranks' contributions each chunk on each rank has: [round][rank][chunk]."""
    return tuple(
        tuple(tuple(chunk.bit_count() for chunk in rank) for rank in ranks) for ranks in contributions(plan)
    )


@lru_cache(maxsize=64)
def _traffic(plan: Plan, nbytes: int, gpus_per_node: int) -> tuple:
    """Bytes so far through each rank's four ports: [round][direction + to other nodes][rank]."""
    at = plan.byte_bounds(nbytes)

    def after(before: tuple, transfers: Sequence[Transfer]) -> tuple:
        now = [list(port) for port in before]
        for t in transfers:
            far = t.src // gpus_per_node != t.dst // gpus_per_node
            now[far][t.src] += at[t.stop] - at[t.start]
            now[2 + far][t.dst] += at[t.stop] - at[t.start]
        return tuple(map(tuple, now))

    nothing = ((0,) * plan.world_size,) * 4
    return tuple(accumulate(plan.rounds, after, initial=nothing))


def plan_figure(plan: Plan, nbytes: int, *, gpus_per_node: int = 8, step: int | None = None) -> dict:
    """What ranks hold, who sends to whom, and the bytes through each link.

    Parameters
    ----------
    plan : Plan
        A valid plan of sums, for example one written by hand.
    nbytes : int
        Bytes of the array.
    gpus_per_node : int
        Links inside a node are told from those between nodes.
    step : int, optional
        After so many rounds; without it all at once: when each chunk was complete, all links, all bytes.

    Returns
    -------
    dict
        A Plotly figure.

    Raises
    ------
    ValueError
        If the plan is wrong or has no such round.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import ring
    >>> figure = plan_figure(ring(4), 4_000_000, step=3)
    >>> figure["data"][0]["text"][0]  # what rank 0 holds: ✓ where it is the sum of all
    ['✓', '3', '2', '1']
    """
    rounds = len(plan.rounds)
    if step is not None and not 0 <= step <= rounds:
        raise ValueError(f"step={step}: must be from 0 to {rounds}")
    _check(plan)
    traffic = _traffic(plan, nbytes, gpus_per_node)
    if step is None:
        cells, drawn = _when_complete(plan), {(t.src, t.dst): t for t in plan.transfers}.values()
        words = "complete<br>after round …", "all<br>links"
    else:
        cells, drawn = _grid(plan, step), plan.rounds[step - 1] if step else ()
        words = _chunk_words(plan, nbytes), f"round<br>{step} of {rounds}"
    near_out, far_out, near_in, far_in = traffic[-1]
    most = max(map(sum, (*zip(near_out, far_out, strict=True), *zip(near_in, far_in, strict=True)))) or 1
    ranks = list(range(plan.world_size))
    plain = {"showgrid": False, "zeroline": False, "fixedrange": True}
    layout = {
        "height": max(300, plan.world_size * ROW_PX + MARGIN_PX),
        "barmode": "relative", "bargap": 0.3,
        "xaxis": plain | {"domain": [0, 0.52], "title": {"text": words[0]},
                          "range": [-0.5, plan.chunks - 0.5], "showticklabels": False, "ticks": ""},
        "xaxis2": plain | {"domain": [0.53, 0.66], "title": {"text": words[1]},
                           "range": [0, 1], "showticklabels": False, "ticks": "", "anchor": "y"},
        "xaxis3": {"domain": [0.68, 1], "title": {"text": "in ← → out<br>bytes per GPU"},
                   "range": [-1.05 * most, 1.05 * most], "anchor": "y", "zeroline": True, "fixedrange": True,
                   "tickvals": [0, most], "ticktext": ["0", in_units(most, BYTES)]},
        "yaxis": plain | {"range": [plan.world_size - 0.5, -0.5],
                          "tickvals": ranks, "ticktext": [f"rank {r}" for r in ranks]},
        "margin": {"l": 60, "r": 32, "t": 64, "b": 76},
        "legend": {"itemwidth": 30, "font": {"size": 13}, "traceorder": "normal"},
    }  # fmt: skip
    bars = _bars(traffic[rounds if step is None else step], gpus_per_node < plan.world_size)
    return {"data": [*cells, *_arcs(drawn), *bars], "layout": layout}


def stepper_figure(*, algorithm, world_size, gpus_per_node, megabytes, step, **_) -> dict:
    """:func:`plan_figure` of the reader's plan."""
    plan = _plan(algorithm, world_size, gpus_per_node)
    return plan_figure(plan, _bytes(megabytes), gpus_per_node=gpus_per_node, step=step)


def _grid(plan: Plan, step: int) -> list[dict]:
    """The chunks of every rank after ``step`` rounds: how many contributions, and complete or not."""
    n, counts = plan.world_size, _held(plan)[step]
    state = [[2 if count == n else 1 if count > 1 else 0 for count in row] for row in counts]
    scale = [(0, OWN), (1 / 3, OWN), (1 / 3, PARTIAL), (2 / 3, PARTIAL), (2 / 3, COMPLETE), (1, COMPLETE)]
    cells = _cells(plan) | {
        "z": state, "zmin": 0, "zmax": 2, "colorscale": scale, "customdata": counts,
        "text": [["✓" if count == n else str(count) for count in row] for row in counts],
        "hovertemplate": f"chunk %{{x}}: the sum of %{{customdata}} of {n}<extra>rank %{{y}}</extra>",
    }  # fmt: skip
    legend = _legend((OWN, "1: own part only"), (PARTIAL, "partial sum"), (COMPLETE, f"✓ sum of all {n}"))
    return [cells, *legend, _arrived(plan.rounds[step - 1] if step else ())]


def _when_complete(plan: Plan) -> list[dict]:
    """The chunks of every rank, and after which round each was the sum of all."""
    n, held = plan.world_size, _held(plan)
    rounds = [
        [next(i for i, counts in enumerate(held) if counts[rank][chunk] == n) for chunk in range(plan.chunks)]
        for rank in range(n)
    ]
    first = min(map(min, rounds))
    cells = _cells(plan) | {
        "z": rounds, "zmin": first, "zmax": max(len(plan.rounds), first + 1),
        "colorscale": [(0, COMPLETE), (1, OWN)], "text": [list(map(str, row)) for row in rounds],
        "hovertemplate": "chunk %{x} is complete after round %{z}<extra>rank %{y}</extra>",
    }  # fmt: skip
    return [cells, *_legend((COMPLETE, "complete early"), (OWN, "complete late"))]


def _cells(plan: Plan) -> dict:
    """One cell a rank and chunk, with a text."""
    return {
        "type": "heatmap", "x": list(range(plan.chunks)), "y": list(range(plan.world_size)),
        "xgap": 2, "ygap": 2, "showscale": False,
        "texttemplate": "%{text}", "textfont": {"color": ink_on(PARTIAL)},
    }  # fmt: skip


def _legend(*entries: tuple[str, str]) -> list[dict]:
    """What the colors of the chunks say; the same stands in the cells."""
    return [
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": name, "hoverinfo": "skip",
            "marker": {"symbol": "square", "size": 14, "color": color,
                       "line": {"color": COMPLETE, "width": 1}},
        }
        for color, name in entries
    ]  # fmt: skip


def _arrived(transfers: Sequence[Transfer]) -> dict:
    """A frame around what the last round has brought, all in one path."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for t in transfers:
        left, right = t.start - 0.46, t.stop - 0.54
        xs += [left, right, right, left, left, None]
        ys += [t.dst - 0.46, t.dst - 0.46, t.dst + 0.46, t.dst + 0.46, t.dst - 0.46, None]
    return {
        "type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "skip",
        "name": "arrived in this round", "line": {"color": COLORS["communication"], "width": 3},
        "visible": True if transfers else "legendonly",
    }  # fmt: skip


def _arcs(transfers: Collection[Transfer]) -> list[dict]:
    """Who sends to whom: bows, the wider the further, down on the right and up on the left."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    reach = max((abs(t.dst - t.src) for t in transfers), default=1)
    ends = []
    for t in transfers:
        distance = t.dst - t.src
        bow = 0.45 * (0.3 + 0.7 * abs(distance) / reach) * (1 if distance > 0 else -1)
        for i in range(11):
            share = i / 10
            xs.append(round(0.5 + 4 * bow * share * (1 - share), 3))
            ys.append(round(t.src + distance * share, 3))
        xs.append(None)
        ys.append(None)
        ends.append((0.5 + 0.36 * bow, t.dst - 0.1 * distance, t))
    line = {"color": COLORS["communication"], "width": 2, "simplify": False}
    where = {"type": "scatter", "xaxis": "x2", "yaxis": "y", "showlegend": False}
    return [
        where | {"mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip"},
        where | {
            "mode": "markers", "x": [x for x, _, _ in ends], "y": [y for _, y, _ in ends],
            "marker": {"color": COLORS["communication"], "size": 9,
                       "symbol": ["triangle-down" if t.dst > t.src else "triangle-up" for _, _, t in ends]},
            "customdata": [
                (t.src, t.dst, f"{t.start} to {t.stop - 1}" if t.stop - t.start > 1 else f"{t.start}",
                 "is added" if t.reduce else "is copied")
                for _, _, t in ends
            ],
            "hovertemplate": "rank %{customdata[0]} → rank %{customdata[1]}: chunk %{customdata[2]} "
                             "%{customdata[3]}<extra></extra>",
        },
    ]  # fmt: skip


def _bars(ports: Sequence[Sequence[int]], has_nodes: bool) -> list[dict]:
    """Bytes so far through each rank's links, out to the right and in to the left."""
    color = COLORS["communication"]
    styles = (
        ("inside a node" if has_nodes else "bytes so far", tint(color, 0.4), ""),
        ("between nodes", "rgba(0,0,0,0)", "/"),
    )
    traces = []
    for port, sent in enumerate(ports):
        outward, far = port < 2, port % 2
        name, fill, pattern = styles[far]
        if far and not has_nodes:
            continue
        traces.append({
            "type": "bar", "orientation": "h", "xaxis": "x3", "yaxis": "y", "y": list(range(len(sent))),
            "x": [size if outward else -size for size in sent], "name": name, "legendgroup": name,
            "showlegend": outward, "customdata": [in_units(size, BYTES) for size in sent],
            "marker": {"color": fill, "line": {"color": color, "width": 1},
                       "pattern": {"shape": pattern, "fgcolor": color, "size": 6, "solidity": 0.4}},
            "hovertemplate": f"%{{customdata}} {'sent' if outward else 'received'}, {name}"
                             "<extra>rank %{y}</extra>",
        })  # fmt: skip
    return traces


def _bytes(megabytes: float) -> int:
    return round(megabytes * 1e6)


def _chunk_words(plan: Plan, nbytes: int) -> str:
    if plan.chunks == 1:
        return f"the whole array<br>of {in_units(nbytes, BYTES)}"
    return f"{plan.chunks} chunks<br>of {in_units(nbytes / plan.chunks, BYTES)}"


def stepper_steps(*, algorithm, world_size, gpus_per_node, **_) -> int:
    """As many as rounds."""
    return len(_plan(algorithm, world_size, gpus_per_node).rounds)


def stepper_unused(*, algorithm, world_size, gpus_per_node, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    if algorithm not in IN_PIECES or world_size == 1:
        unused.append("pieces")
    if world_size <= gpus_per_node:
        unused.append("network")
    return tuple(unused)


@lru_cache(maxsize=64)
def _seconds(plan: Plan, nbytes: int, gpus_per_node: int, network: str, pieces: int) -> float:
    nodes = -(-plan.world_size // gpus_per_node)
    cluster = Cluster(GPUS["H100-SXM"], gpus_per_node, nodes, LINKS["NVLink4"], LINKS[network])
    if pieces == 1:
        return plan_time(plan, nbytes, cluster)
    return simulate(plan, nbytes, cluster, pieces=pieces).seconds


def stepper_takeaway(*, algorithm, world_size, gpus_per_node, megabytes, pieces, network, step) -> str:
    """One sentence: rounds, time, and what the busiest link carries."""
    plan = _plan(algorithm, world_size, gpus_per_node)
    nbytes, rounds = _bytes(megabytes), len(plan.rounds)
    if not rounds:
        return "One GPU has the sum already: **0** rounds."
    pieces = pieces if algorithm in IN_PIECES else 1
    traffic = _traffic(plan, nbytes, gpus_per_node)
    seconds = in_units(_seconds(plan, nbytes, gpus_per_node, network, pieces), SECONDS)
    busiest = max(max(port) for port in traffic[-1]) / nbytes
    streamed = f" in {pieces} pieces" if pieces > 1 else ""
    text = (
        f"{NAMES[algorithm]}: {rounds} rounds{streamed} take **{seconds}**, and the busiest link carries "
        f"**{arrays(busiest)}** in one direction"
    )
    if world_size > gpus_per_node:
        between = max(max(port) for port in (traffic[-1][1], traffic[-1][3])) / nbytes
        text += f", the busiest one between nodes **{arrays(between)}**"
    if step is not None and step < rounds:
        complete = sum(count == world_size for row in _held(plan)[step] for count in row)
        text += f". After {step} of them {complete} of {world_size * plan.chunks} chunks are complete"
    return text + "."


def stepper_table(*, algorithm, world_size, gpus_per_node, megabytes, step, **_) -> Table:
    """Every transfer up to the step: round, from, to, chunks, bytes, added or copied."""
    plan = _plan(algorithm, world_size, gpus_per_node)
    at = plan.byte_bounds(_bytes(megabytes))
    rows = (
        (
            number + 1,
            t.src,
            t.dst,
            f"{t.start}-{t.stop - 1}",
            at[t.stop] - at[t.start],
            "add" if t.reduce else "copy",
        )
        for number, transfers in enumerate(plan.rounds[:step])
        for t in transfers
    )
    return Table(("round", "from rank", "to rank", "chunks", "bytes", "what the receiver does"), tuple(rows))


stepper = Explorer(
    id="all-reduce-steps",
    title="The all-reduce stepper",
    controls=(
        Choice("algorithm", "Algorithm", NAMES, "ring"),
        Integer("world_size", "GPUs n", 1, 16, 8, help="ranks of the all-reduce, one GPU each"),
        Integer("gpus_per_node", "GPUs per node", 1, 16, 8, help="within a node they have NVLink 4"),
        Real("megabytes", "Array S", 0.001, 10_000, 100, 0.2589, "log", unit="MB", help="bytes to be summed"),
        Integer("pieces", "Pieces per chunk", 1, 32, 1, help="that follow one another; trees only"),
        Choice("network", "Between nodes", NETWORKS, "InfiniBand-NDR", help="one link for each GPU"),
        Step("step", "Step through", help="one round of transfers"),
    ),
    presets=(
        Preset("server", "Parameter server", {"algorithm": "parameter_server"}),
        Preset("ring", "Ring", {"algorithm": "ring"}),
        Preset("tree", "Double binary tree", {"algorithm": "double_binary_tree", "pieces": 16}),
        Preset("halving", "Halving-doubling", {"algorithm": "recursive_halving_doubling"}),
        Preset("flat", "Ring over two nodes", {"algorithm": "ring", "world_size": 16}),
        Preset("nodes", "Hierarchical", {"algorithm": "hierarchical", "world_size": 16}),
    ),
    figure=stepper_figure,
    takeaway=stepper_takeaway,
    table=stepper_table,
    steps=stepper_steps,
    unused=stepper_unused,
)  # fmt: skip
