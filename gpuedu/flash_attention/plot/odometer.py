"""The tile explorer's figure: scores in tiles, the chip, and the bytes that have crossed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpuedu.flash_attention.plan import AttentionShape, TilePlan, Tiles, blocks
from gpuedu.style import COLORS, ink_on, tint, translucent

from .frames import Frame, frames, running

HIDDEN, WAITING, DONE, NOW = range(4)
STATE_COLORS = (
    "rgba(0,0,0,0)", tint(COLORS["waiting"], 0.55), tint(COLORS["forward"], 0.3), COLORS["backward"],
)  # fmt: skip
NUMBERED_COLUMNS = 8  # with more, the numbers would not be legible on a phone
FROM_KEYS = {"K", "V", "dK", "dV"}
ORDER = ("Q", "K", "V", "O", "m", "l", "LSE", "O parts", "LSE parts", "S", "P", "dO", "D", "dP", "dS", "dQ",
         "dK", "dV")  # fmt: skip
BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))


def in_bytes(amount: float) -> str:
    """Bytes in the unit that fits, three digits.

    >>> in_bytes(41_500)
    '41.5 kB'
    """
    unit, size = next(((u, s) for u, s in BYTES if amount >= s), BYTES[-1])
    return f"{amount / size:.3g} {unit}"


def tile_figure(plan: TilePlan, sram_bytes: float, step: int | None, scale: dict[str, int]) -> dict:
    """The plan after ``step`` computations, or finished.

    Parameters
    ----------
    plan : TilePlan
        Of one unit.
    sram_bytes : float
        What the chip holds for one program.
    step : int, optional
        How many computations have been done.
    scale : dict
        Bytes by tensor that the odometer's axis must have room for.

    Returns
    -------
    dict
        A Plotly figure, without a template.
    """
    film = frames(plan)
    shown = film if step is None else film[:step]
    now = shown[-1] if step else None
    moved = shown[-1].moved if shown else {}
    totals = film[-1].moved if film else {}
    tensors = [name for name in ORDER if name in totals]
    most = max([1, *map(sum, totals.values()), *scale.values()])
    chip = now.chip if now else _fullest(film) if step is None else {}
    plain = {"showgrid": False, "zeroline": False, "fixedrange": True}
    keys, queries = plan.attention.keys, plan.attention.queries
    limit = max(1.15 * sram_bytes, sum(chip.values()) * 1.05)
    right = {"domain": [0.6, 1], "side": "top"}
    layout = {
        "height": max(430, 280 + 21 * len(tensors)),
        "barmode": "stack",
        "xaxis": plain | {"domain": [0, 0.48], "side": "top", "range": [-0.09 * keys, keys],
                          "title": {"text": "keys →"}, "tickvals": [0, keys], "ticktext": ["0", f"{keys:,}"]},
        "yaxis": plain | {"range": [queries, -0.09 * queries], "title": {"text": "← queries"},
                          "tickvals": [0, queries], "ticktext": ["0", f"{queries:,}"]},
        "xaxis2": plain | right | {"anchor": "y2", "range": [0, 1.24 * most], "showticklabels": False,
                                   "ticks": "", "title": {"text": "bytes of one head"}},
        "yaxis2": plain | {"domain": [0.36, 1], "anchor": "x2", "range": [len(tensors) - 0.5, -0.5],
                           "tickvals": list(range(len(tensors))), "ticktext": tensors},
        "xaxis3": plain | right | {"anchor": "y3", "range": [0, limit], "tickvals": [sram_bytes],
                                   "ticktext": [f"SRAM {in_bytes(sram_bytes)}"],
                                   "title": {"text": _chip_words(chip)}},
        "yaxis3": plain | {"domain": [0, 0.1], "anchor": "x3", "range": [-0.5, 0.5],
                           "showticklabels": False, "ticks": ""},
        "margin": {"l": 56, "r": 28, "t": 84, "b": 84},
        "legend": {"x": 0, "y": 1, "yref": "container", "itemwidth": 30, "font": {"size": 13},
                   "traceorder": "normal",
                   "yanchor": "top"},
        "shapes": [{"type": "line", "xref": "x3", "yref": "y3", "x0": sram_bytes, "x1": sram_bytes,
                    "y0": -0.6, "y1": 0.6, "line": {"color": COLORS["rejected"], "width": 2}}],
        "annotations": _words(plan, now),
    }  # fmt: skip
    traces = [
        *_matrix(plan, shown, now),
        *_strips(plan, now),
        *_meters(tensors, moved, totals),
        *_held(chip, sram_bytes),
    ]
    return {"data": traces, "layout": layout}


def _fullest(film: Sequence[Frame]) -> dict[str, int]:
    """What the chip holds when it holds most."""
    return max((frame.chip for frame in film), key=lambda chip: sum(chip.values()), default={})


def _chip_words(chip: dict[str, int]) -> str:
    return f"on the chip: {in_bytes(sum(chip.values()))}" if chip else "on the chip: as a library likes"


def _matrix(plan: TilePlan, shown: Sequence[Frame], now: Frame | None) -> Iterator[dict]:
    """The scores, a cell a tile; its number says when it was computed first."""
    attention = plan.attention
    tiles = _shown_tiles(plan)
    rows, columns = blocks(attention.queries, tiles.rows), blocks(attention.keys, tiles.columns)
    when: dict[tuple[int, int], int] = {}
    for frame in shown:
        if frame.step.what != "D":
            when.setdefault((frame.step.rows[0], frame.step.columns[0]), len(when) + 1)
    at = (now.step.rows[0], now.step.columns[0]) if now else None
    everything = plan.name.startswith("standard")

    def state(row, column) -> int:
        place = (row[0], column[0])
        if place == at or (now and now.step.what == "combine" and row[0] == now.step.rows[0]):
            return NOW
        if place in when:
            return DONE
        return WAITING if everything or _sees_any(attention, row, column) else HIDDEN

    states = [[state(row, column) for column in columns] for row in rows]
    numbered = len(columns) <= NUMBERED_COLUMNS and len(rows) <= 2 * NUMBERED_COLUMNS
    colors = [(i / 4 + edge / 4, color) for i, color in enumerate(STATE_COLORS) for edge in (0, 1)]
    yield {
        "type": "heatmap", "z": states, "zmin": -0.5, "zmax": 3.5, "colorscale": colors, "showscale": False,
        "x": [c[0] for c in columns] + [attention.keys], "y": [r[0] for r in rows] + [attention.queries],
        "xgap": 1, "ygap": 1,
        "hovertemplate": "tile from query %{y:.0f}, key %{x:.0f}<extra></extra>",
    }  # fmt: skip
    if numbered:
        yield _numbers(when, rows, columns, at)
    names = ("hidden by the mask: skipped", "not yet", "computed", "on the chip")
    for state_of, name in enumerate(names):
        if any(state_of in line for line in states) or state_of == DONE:
            yield _key(name, STATE_COLORS[state_of])


def _shown_tiles(plan: TilePlan) -> Tiles:
    """Standard attention takes all keys at once."""
    standard = plan.name.startswith("standard")
    return Tiles(plan.tiles.rows, plan.attention.keys) if standard else plan.tiles


def _numbers(when, rows, columns, at) -> dict:
    """The order of the tiles, in one trace."""
    ends = {r[0]: r[1] for r in rows}, {c[0]: c[1] for c in columns}
    placed = [(row, column, n) for (row, column), n in when.items() if column in ends[1] and row in ends[0]]
    return {
        "type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False,
        "x": [(column + ends[1][column]) / 2 for _, column, _ in placed],
        "y": [(row + ends[0][row]) / 2 for row, _, _ in placed], "text": [str(n) for _, _, n in placed],
        "textfont": {"size": 10 if len(when) > 9 else 12, "color": [
            ink_on(STATE_COLORS[NOW if (row, column) == at else DONE]) for row, column, _ in placed
        ]},
    }  # fmt: skip


def _sees_any(attention: AttentionShape, row, column) -> bool:
    start, stop = attention.visible_keys(row)
    return max(start, column[0]) < min(stop, column[1])


def _key(name: str, color: str) -> dict:
    return {
        "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": name, "hoverinfo": "skip",
        "marker": {"symbol": "square", "size": 13, "color": color,
                   "line": {"color": COLORS["waiting"], "width": 1}},
    }  # fmt: skip


def _strips(plan: TilePlan, now: Frame | None) -> Iterator[dict]:
    """Q and O at the left edge, K and V at the top: in HBM, and the block that is on the chip."""
    attention, size = plan.attention, _shown_tiles(plan)
    for length, block, across, other in (
        (attention.queries, size.rows, False, attention.keys),
        (attention.keys, size.columns, True, attention.queries),
    ):
        span = (now.step.columns if across else now.step.rows) if now else (0, 0)
        for inside in (False, True):
            along, beside = [], []
            for start, stop in blocks(length, block):
                if (span[0] < stop and start < span[1]) == inside:
                    gap = 0.004 * length
                    along += [start + gap, stop - gap, stop - gap, start + gap, start + gap, None]
                    beside += [
                        -0.08 * other,
                        -0.08 * other,
                        -0.02 * other,
                        -0.02 * other,
                        -0.08 * other,
                        None,
                    ]
            color = COLORS["backward"] if inside else COLORS["memory_used"]
            yield {
                "type": "scatter", "mode": "lines", "fill": "toself", "showlegend": False,
                "x": along if across else beside, "y": beside if across else along,
                "fillcolor": color if inside else translucent(color, 0.35),
                "line": {"color": color, "width": 1}, "hoverinfo": "text",
                "text": ("K, V" if across else "Q, O") + (", on the chip" if inside else ", in HBM"),
            }  # fmt: skip


def _meters(tensors, moved, totals) -> Iterator[dict]:
    """Bytes so far by tensor, and faintly those still to come."""
    color = COLORS["communication"]
    rows = list(range(len(tensors)))
    pairs = [moved.get(name, (0, 0)) for name in tensors]
    rest = [sum(totals[name]) - sum(pair) for name, pair in zip(tensors, pairs, strict=True)]
    place = {"type": "bar", "orientation": "h", "xaxis": "x2", "yaxis": "y2", "y": rows, "width": 0.7}
    for index, (name, fill, shape) in enumerate((("read", color, ""), ("written", "rgba(0,0,0,0)", "/"))):
        yield place | {
            "x": [pair[index] for pair in pairs], "name": name,
            "marker": {"color": fill, "line": {"color": color, "width": 1},
                       "pattern": {"shape": shape, "fgcolor": color, "size": 6, "solidity": 0.4}},
            "customdata": [in_bytes(pair[index]) for pair in pairs],
            "hovertemplate": f"%{{customdata}} {name}<extra></extra>",
        }  # fmt: skip
    yield place | {
        "x": rest, "name": "still to come", "showlegend": any(rest), "hoverinfo": "skip",
        "marker": {"color": "rgba(0,0,0,0)", "line": {"color": COLORS["waiting"], "width": 1}},
        "text": [in_bytes(sum(pair)) for pair in pairs], "textposition": "outside", "cliponaxis": False,
        "textfont": {"size": 12},
    }  # fmt: skip


def _held(chip: dict[str, int], sram_bytes: float) -> Iterator[dict]:
    """What is on the chip, tensor by tensor, against what it holds."""
    fits = sum(chip.values()) <= sram_bytes
    color = COLORS["memory_used"] if fits else COLORS["memory_wasted"]
    for number, (name, nbytes) in enumerate(chip.items()):
        fill = tint(color, 0.6 * number / max(1, len(chip) - 1))
        yield {
            "type": "bar", "orientation": "h", "xaxis": "x3", "yaxis": "y3", "x": [nbytes], "y": [0],
            "width": 0.9,
            "marker": {"color": fill, "line": {"color": color, "width": 1}}, "showlegend": False,
            "text": [name if nbytes > 0.07 * sram_bytes else ""], "textposition": "inside",
            "insidetextanchor": "middle", "textangle": 0,
            "insidetextfont": {"color": ink_on(fill), "size": 12},
            "hovertemplate": f"{name}: {in_bytes(nbytes)}<extra></extra>",
        }  # fmt: skip


def _words(plan: TilePlan, now: Frame | None) -> list[dict]:
    """The online softmax of one query, with numbers; or what takes its place."""
    return [
        {
            "xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top",
            "showarrow": False, "align": "left", "yshift": -6, 
            "text": running_words(plan, now), "font": {"size": 13},
        }
    ]  # fmt: skip


def running_words(plan: TilePlan, now: Frame | None) -> str:
    """What happens to m, l and O in this frame, in two lines."""
    if now is None:
        if plan.name.startswith("standard"):
            return "Step through: which kernel reads<br>and writes what"
        return "Step through: m, l and O of<br>one query change tile by tile"
    what = now.step.what
    if what.startswith("tile"):
        state = running(plan, now.step)
        if state is None:
            return "no query of this tile sees a key of it"
        (m0, l0, o0), (m1, l1, o1) = state.before, state.after
        first = "-∞" if not l0 else f"{m0:.2f}"
        return (
            f"query {state.query} meets keys {state.keys[0]}-{state.keys[1] - 1}<br>"
            f"m: {first} → <b>{m1:.2f}</b><br>"
            f"l: {l0:.2f} × {state.shrink:.2f} + {state.sum:.2f} = <b>{l1:.2f}</b><br>"
            f"O: {o0:.3f} × {l0 * state.shrink / l1:.2f} + new = <b>{o1:.3f}</b>"
        )
    return {
        "scores": "S = Q K<sup>T</sup>: a block of queries,<br>all keys, to HBM",
        "softmax": "softmax: the whole row of S comes<br>from HBM, and P goes there",
        "values": "O = P V: P comes from HBM again",
        "combine": "each part's O counts by<br>exp(its LSE - the LSE of all)",
        "D": "D = rowsum(dO ∘ O): one number<br>a query, and no P needed",
        "dV": "dV = P<sup>T</sup> dO: P comes from HBM",
        "dP": "dP = dO V<sup>T</sup> goes to HBM",
        "dS": "dS = P ∘ (dP - D): two matrices<br>from HBM, one to it",
        "dQ": "dQ = dS K: dS comes from HBM",
        "dK": "dK = dS<sup>T</sup> Q: dS comes from HBM",
    }.get(what, "P once more from Q, K and LSE;<br>then dV, dP, dS, dK and dQ,<br>all on the chip")


def total_bytes(plan: TilePlan) -> int:
    """All bytes that cross for one unit, those filled with constants too."""
    film = frames(plan)
    return sum(map(sum, film[-1].moved.values())) if film else 0
