"""One frame of the film as a figure: two memories, their waste, the free queue, the hash chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpuedu.paged_attention.cost import MemoryUse
from gpuedu.style import COLORS, ink_on, translucent

from .film import CAPACITY, Frame

USED, RESERVED, WASTED, IDLE = (
    COLORS[name] for name in ("memory_used", "memory_reserved", "memory_wasted", "waiting")
)
KINDS = {  # color, hatching (a second cue beside color), name in the legend
    "tokens": (USED, "", "tokens"),
    "reserved": (RESERVED, "/", "reserved for later"),
    "internal": (WASTED, "x", "held and never used"),
    "rounded": (IDLE, ".", "lost by rounding up"),
    "known": (translucent(USED, 0.35), "", "free, still known"),
}
ROWS = 8
HEADING_PX, GRID_PX, GAP_PX, METER_PX, RIBBON_PX, CHAIN_PX, MARGIN_PX = 42, 296, 30, 20, 34, 40, 64
MOST_LABELED = 16  # columns, beyond which a label has no room in its cell
RIBBON = 16  # places of the free queue and links of the chain that fit
STRIPS = (  # from top to bottom, each below a line of words
    ("grid", GRID_PX),
    ("contiguous", METER_PX),
    ("paged", METER_PX),
    ("queue", RIBBON_PX),
    ("chain", CHAIN_PX),
)
PIXELS = HEADING_PX + sum(px for _, px in STRIPS) + GAP_PX * (len(STRIPS) - 1)

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom; a cell is 1 by 1


def memory_map(frame: Frame, contiguous_name: str) -> dict:
    """Both memories at one time, as a Plotly figure without a template.

    Parameters
    ----------
    frame : Frame
        What to show.
    contiguous_name : str
        What the left memory is called.

    Returns
    -------
    dict
        A Plotly figure. Left the pieces in order of address, right the blocks in order of their number,
        both row by row; below, what the slots are for, which blocks are taken next, and the names of the
        newest request's blocks.
    """
    columns = len(frame.blocks) // ROWS
    layout = _layout(frame, contiguous_name, columns)
    data = [
        *_grid(_pieces(frame, columns), columns, "", legend=True),
        *_grid(_blocks(frame, columns), columns, "2", legend=False),
        *_labels(frame, columns),
        *_meters(frame),
        *_ribbon(frame),
        *_chain(frame),
    ]
    return {"data": data, "layout": layout}


def _domains() -> dict[str, list[float]]:
    """Bottom and top of every strip, as shares of the plot's height."""
    domains, top = {}, 1 - HEADING_PX / PIXELS
    for name, px in STRIPS:
        domains[name] = [max(0.0, top - px / PIXELS), top]
        top -= (px + GAP_PX) / PIXELS
    return domains


def _layout(frame: Frame, contiguous_name: str, columns: int) -> dict:
    domains = _domains()
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "fixedrange": True}
    grid = bare | {"range": [ROWS, 0], "domain": domains["grid"]}
    strip = bare | {"range": [1, 0]}
    left, right = _headings(frame, contiguous_name)
    lines = {
        "contiguous": _shares("Pieces", frame.contiguous),
        "paged": _shares("Blocks", frame.paged),
        "queue": _queue_words(frame),
        "chain": _chain_words(frame),
    }
    return {
        "height": PIXELS + MARGIN_PX,
        "barmode": "stack",
        "bargap": 0,
        "margin": {"l": 8, "r": 8, "t": 30, "b": 10},
        # Placed by the figure's edge, not by the plot's: Plotly then keeps room for the rows that it has now
        "legend": {"yref": "container", "x": 0, "y": 1, "yanchor": "top", "itemwidth": 30,
                   "font": {"size": 13}, "traceorder": "normal"},
        "xaxis": bare | {"range": [0, columns], "domain": [0, 0.485], "anchor": "y"},
        "yaxis": grid | {"anchor": "x"},
        "xaxis2": bare | {"range": [0, columns], "domain": [0.515, 1], "anchor": "y2"},
        "yaxis2": grid | {"anchor": "x2"},
        "xaxis3": bare | {"range": [0, 100], "anchor": "y3"},
        "yaxis3": strip | {"range": [-0.5, 0.5], "domain": domains["contiguous"], "anchor": "x3"},
        "xaxis4": bare | {"range": [0, 100], "anchor": "y4"},
        "yaxis4": strip | {"range": [-0.5, 0.5], "domain": domains["paged"], "anchor": "x4"},
        "xaxis5": bare | {"range": [0, RIBBON], "anchor": "y5"},
        "yaxis5": strip | {"domain": domains["queue"], "anchor": "x5"},
        "xaxis6": bare | {"range": [0, RIBBON], "anchor": "y6"},
        "yaxis6": strip | {"domain": domains["chain"], "anchor": "x6"},
        "annotations": [
            _words(left, 0, domains["grid"][1]),
            _words(right, 0.515, domains["grid"][1]),
            *(_words(text, 0, domains[name][1]) for name, text in lines.items()),
        ],
    }  # fmt: skip


def _words(text: str, x: float, y: float) -> dict:
    return {
        "text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left",
        "yanchor": "bottom", "showarrow": False, "align": "left", "font": {"size": 13},
    }  # fmt: skip


def _headings(frame: Frame, contiguous_name: str) -> tuple[str, ...]:
    return tuple(
        f"<b>{name}</b><br>{use.requests} in, {len(waiting)} waiting"
        for name, use, waiting in (
            (contiguous_name, frame.contiguous, frame.contiguous_waiting),
            ("Blocks", frame.paged, frame.paged_waiting),
        )
    )


def _shares(name: str, use: MemoryUse) -> str:
    """A meter's reading."""
    shares = {part: f"{100 * share:.0f} %" for part, share in use.shares.items()}
    kept = f", {shares['reserved']} later" if use.reserved else ""
    return f"<b>{name}</b>: {shares['tokens']} tokens{kept}, {shares['internal']} unused"


def _queue_words(frame: Frame) -> str:
    more = len(frame.free) - RIBBON
    return "<b>Free queue</b>, the next to be taken first" + (f" ({more} more)" if more > 0 else "")


def _chain_words(frame: Frame) -> str:
    if not frame.chain:
        return "<b>Hash chain</b>: none, prefix caching is off"
    found = sum(link.found for link in frame.chain)
    return f"<b>Hash chain</b> of {frame.chain_of}: {found} of {len(frame.chain)} blocks found"


# Cells: slots in order, row by row


def _span(start: float, stop: float, columns: int) -> Iterator[Rectangle]:
    """The rectangles of a run of cells, cut at the ends of rows."""
    row = int(start // columns)
    while start < stop:
        end = min(stop, (row + 1) * columns)
        left = start - row * columns
        yield left, row + 0.1, left + end - start, row + 0.9
        start, row = end, row + 1


def _pieces(frame: Frame, columns: int) -> dict[str, list[Rectangle]]:
    """What each slot of the contiguous memory is for."""
    size = CAPACITY // len(frame.blocks)
    shapes: dict[str, list[Rectangle]] = {kind: [] for kind in KINDS}
    for piece, now, final in frame.pieces.values():
        ends = (
            ("tokens", now),
            ("reserved", final),
            ("internal", max(final, piece.reserved)),
            ("rounded", piece.given),
        )
        start = 0
        for kind, end in ends:
            at = piece.address
            shapes[kind] += _span((at + start) / size, (at + end) / size, columns)
            start = max(start, end)
    return shapes


def _blocks(frame: Frame, columns: int) -> dict[str, list[Rectangle]]:
    """What each slot of each block is for."""
    size = CAPACITY // len(frame.blocks)
    shapes: dict[str, list[Rectangle]] = {kind: [] for kind in KINDS}
    for number, block in enumerate(frame.blocks):
        left, top = number % columns + 0.05, number // columns + 0.1
        right, bottom = left + 0.9, top + 0.8
        if not block.holders:
            if block.name is not None:
                shapes["known"].append((left, top, right, bottom))
            continue
        middle = left + 0.9 * block.filled / size
        shapes["tokens"].append((left, top, middle, bottom))
        if block.filled < size:
            shapes["internal"].append((middle, top, right, bottom))
    return shapes


def _path(rectangles: Iterable[Rectangle]) -> tuple[list[float | None], list[float | None]]:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for left, top, right, bottom in rectangles:
        xs += [round(x, 4) for x in (left, right, right, left, left)] + [None]
        ys += [top, top, bottom, bottom, top, None]
    return xs, ys


def _grid(shapes: dict[str, list[Rectangle]], columns: int, axis: str, *, legend: bool) -> Iterator[dict]:
    """A memory: the frame of every cell, then one area for each kind."""
    xs, ys = _path((c + 0.05, r + 0.1, c + 0.95, r + 0.9) for r in range(ROWS) for c in range(columns))
    yield _area(axis, xs, ys) | {
        "fillcolor": "rgba(0,0,0,0)", "line": {"color": translucent(IDLE, 0.45), "width": 1},
        "showlegend": False,
    }  # fmt: skip
    for kind, (color, hatch, name) in KINDS.items():
        xs, ys = _path(shapes[kind])
        area = _area(axis, xs or [None], ys or [None]) | {
            "name": name, "legendgroup": kind, "showlegend": legend, "fillcolor": color,
            "line": {"color": color, "width": 1},
        }  # fmt: skip
        if hatch:
            area["fillpattern"] = _hatched(color, hatch)
        yield area


def _area(axis: str, xs: list, ys: list) -> dict:
    return {
        "type": "scatter", "mode": "lines", "x": xs, "y": ys, "fill": "toself", "hoverinfo": "skip",
        "xaxis": f"x{axis}", "yaxis": f"y{axis}",
    }  # fmt: skip


def _labels(frame: Frame, columns: int) -> Iterator[dict]:
    """Who holds a piece or a block, or how many do; and what the pointer is told."""
    size = CAPACITY // len(frame.blocks)
    on_tokens, elsewhere = [], []
    for name, (piece, now, final) in frame.pieces.items():
        told = f"{name}: {now} tokens of {final}, {piece.reserved} slots reserved, {piece.given} given"
        (on_tokens if now > size / 2 else elsewhere).append((piece.address / size, name, told))
    yield from _texts("", on_tokens, elsewhere, columns)
    on_tokens, elsewhere = [], []
    for number, block in enumerate(frame.blocks):
        label = (number, _holders(block.holders), _tell(number, block))
        (on_tokens if block.filled > size / 2 else elsewhere).append(label)
    yield from _texts("2", on_tokens, elsewhere, columns)


def _holders(holders: tuple[str, ...]) -> str:
    if len(holders) > 1:
        return f"×{len(holders)}"
    return holders[0] if holders else ""


def _tell(number: int, block) -> str:
    name = "" if block.name is None else f", hash {block.name}"
    if not block.holders:
        return f"block {number}: free{name}"
    tokens = f"tokens {block.first} to {block.first + block.filled - 1}"
    return f"block {number}: {tokens} of {', '.join(block.holders)}{name}"


def _texts(axis: str, on_tokens: list, elsewhere: list, columns: int) -> Iterator[dict]:
    """Labels (cell, text, told); those on tokens have the ink that their color wants."""
    for labels, font in ((on_tokens, {"color": ink_on(USED)}), (elsewhere, {})):
        cells, text, told = zip(*labels, strict=True) if labels else ((), (), ())
        if columns > MOST_LABELED:
            text = ("",) * len(text)
        yield {
            "type": "scatter", "mode": "text", "x": [cell % columns + 0.5 for cell in cells],
            "y": [cell // columns + 0.5 for cell in cells], "text": text, "customdata": told,
            "textfont": {"size": 12 if columns <= 8 else 9} | font, "showlegend": False,
            "hovertemplate": "%{customdata}<extra></extra>", "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        }  # fmt: skip


# The waste meters


def _meters(frame: Frame) -> Iterator[dict]:
    """What the slots of each memory are for, as one bar each."""
    kinds = ("tokens", "reserved", "internal", "external")
    for axis, use in (("3", frame.contiguous), ("4", frame.paged)):
        for kind in kinds:
            color, hatch, name = KINDS.get(kind, ("rgba(0,0,0,0)", "", "held by nobody, or rounded up"))
            marker = {"color": color, "line": {"color": IDLE if kind == "external" else color, "width": 1}}
            if hatch:
                marker["pattern"] = _hatched(color, hatch)
            share = 100 * use.shares[kind]
            yield {
                "type": "bar", "orientation": "h", "xaxis": f"x{axis}", "yaxis": f"y{axis}", "y": [0],
                "x": [share], "marker": marker, "showlegend": False, "name": name,
                "hovertemplate": f"{name}: {share:.1f} %<extra></extra>",
            }  # fmt: skip


def _hatched(color: str, shape: str) -> dict:
    return {
        "shape": shape, "size": 6, "solidity": 0.35, "fgcolor": color, "bgcolor": translucent(color, 0.25),
    }  # fmt: skip


# The free queue and the hash chain


def _ribbon(frame: Frame) -> Iterator[dict]:
    """The free blocks in order; those that the prefix index still knows are tinted."""
    shown = frame.free[:RIBBON]
    known = [i for i, b in enumerate(shown) if frame.blocks[b].name is not None]
    yield from _squares("5", range(len(shown)), translucent(IDLE, 0.12), IDLE)
    yield from _squares("5", known, KINDS["known"][0], USED)
    told = [_tell(b, frame.blocks[b]) for b in shown]
    yield _small("5", [str(b) for b in shown], told, 0.5)


def _chain(frame: Frame) -> Iterator[dict]:
    """The newest request's full blocks: each named by its own tokens and the name before it."""
    links = frame.chain[:RIBBON]
    if not links:
        return
    yield {
        "type": "scatter", "mode": "lines", "x": [0.5, len(links) - 0.5], "y": [0.5, 0.5],
        "line": {"color": IDLE, "width": 2}, "hoverinfo": "skip", "showlegend": False,
        "xaxis": "x6", "yaxis": "y6",
    }  # fmt: skip
    found = [i for i, link in enumerate(links) if link.found]
    made = [i for i, link in enumerate(links) if not link.found]
    yield from _squares("6", made, translucent(COLORS["forward"], 0.25), COLORS["forward"])
    yield from _squares("6", found, translucent(COLORS["accepted"], 0.3), COLORS["accepted"])
    told = [
        f"block {link.block}, hash {link.name}: {'found' if link.found else 'computed'}" for link in links
    ]
    yield _small("6", [link.name for link in links], told, 0.3)
    yield _small("6", [str(link.block) for link in links], told, 0.7)


def _squares(axis: str, places: Iterable[int], fill: str, edge: str) -> Iterator[dict]:
    xs, ys = _path((i + 0.06, 0.06, i + 0.94, 0.94) for i in places)
    if xs:
        yield _area(axis, xs, ys) | {
            "fillcolor": fill, "line": {"color": edge, "width": 1}, "showlegend": False,
        }  # fmt: skip


def _small(axis: str, text: list[str], told: list[str], y: float) -> dict:
    return {
        "type": "scatter", "mode": "text", "x": [i + 0.5 for i in range(len(text))], "y": [y] * len(text),
        "text": text, "customdata": told, "textfont": {"size": 10},
        "hovertemplate": "%{customdata}<extra></extra>", "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        "showlegend": False,
    }  # fmt: skip
