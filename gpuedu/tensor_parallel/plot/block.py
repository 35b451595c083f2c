"""A transformer block cut over t GPUs as a figure: a plain Plotly dict without a template.

Top to bottom is the way of the forward. Left stand the weights, as the X W of textbooks has them (inputs
down, outputs across), right the activations that are kept (tokens down, width across); between them, where
they happen, the collectives. One y unit is one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from gpuedu.style import COLORS, tint, translucent
from gpuedu.tensor_parallel.plan import BACKWARD, FORWARD, Communication, Sharding, Tensor

LEFT, RIGHT, WIDTH, COLUMN_WIDTH = 0.0, 5.3, 10.0, 4.7  # in x: two columns, or one that is as wide as both
BOX_PX, VECTOR_PX, LABEL_PX, GAP_PX, LINE_PX, HEAD_PX = 42, 9, 17, 9, 17, 24
GAP = 0.16  # between two boxes, in x

LAYOUT = (  # weights, activations with their label; or the site of collectives
    (("attention norm",), {"attention norm input": "x", "attention input": "norm(x)"}),
    "attention_in",
    (("q", "k", "v"), {"queries": "q", "keys": "k", "values": "v"}),
    (("o",), {"attention output": "heads"}),
    "attention_out",
    (("ffn norm",), {"ffn norm input": "x", "ffn input": "norm(x)"}),
    "ffn_in",
    (("gate", "up", "fc1"), {"gate": "gate", "up": "up", "fc1": "fc1"}),
    (("down", "fc2"), {"gate after SiLU": "SiLU", "product": "product", "fc1 after GELU": "GELU"}),
    "ffn_out",
)
NAMES = {"all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter", "all_gather": "all-gather"}


@dataclass(frozen=True)
class _Box:
    """A tensor at its place."""

    tensor: Tensor
    label: str
    x: float
    y: float
    width: float
    height: float
    across: bool  # whether its cuts are vertical, so that pieces lie side by side


def block(sharding: Sharding) -> dict:
    """One layer of ``sharding``: its matrices in t shades, its collectives and their bytes.

    Parameters
    ----------
    sharding : Sharding
        Any.

    Returns
    -------
    dict
        A Plotly figure, without a template. Widths grow with the square root of a tensor's width, heights
        say nothing.
    """
    boxes, bands, height = _arranged(sharding)
    return {
        "data": [
            *_pieces(boxes, sharding.tensor_parallel),
            _copies(boxes),
            _bands(bands),
            _labels(boxes, bands, bool(sharding.activations)),
            _hover(boxes),
        ],
        "layout": {
            "height": height + 76,
            "xaxis": {"range": [-0.05, WIDTH + 0.05], "visible": False, "fixedrange": True},
            "yaxis": {"range": [height, 0], "visible": False, "fixedrange": True},
            "margin": {"l": 13, "r": 13, "t": 60, "b": 16},
            "legend": {"itemwidth": 30, "font": {"size": 13}, "tracegroupgap": 0},
        },
    }


def sent_text(bytes_sent: float) -> str:
    """Bytes in the unit that fits, three digits.

    >>> sent_text(58720256)
    '58.7 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_sent >= size:
            return f"{bytes_sent / size:.3g} {unit}"
    return f"{bytes_sent:.0f} B"


def _arranged(sharding: Sharding) -> tuple[list[_Box], list[tuple], int]:
    """Boxes, bands (x, y, width, height, lines of text, anything sent?) and the height of it all."""
    weights = {w.name: w for w in sharding.weights}
    kept = {a.name: a for a in sharding.activations}
    m = sharding.model
    widest = max(2 * sqrt(m.ffn_hidden_size), 3 * sqrt(m.attention_heads * m.head_dim))
    column = COLUMN_WIDTH if sharding.training else WIDTH
    scale = (column - 2 * GAP) / widest
    boxes: list[_Box] = []
    bands: list[tuple] = []
    y = float(HEAD_PX)
    for row in LAYOUT:
        if isinstance(row, str):
            phases = (FORWARD, BACKWARD) if sharding.training else (FORWARD,)
            texts = [_lines(sharding.at(row, phase), phase is FORWARD) for phase in phases]
            tall = LINE_PX * max(map(len, texts)) + 5
            for x, text, phase in zip((LEFT, RIGHT), texts, phases, strict=False):
                bands.append((x, y, column, tall, text, bool(sharding.at(row, phase))))
            y += tall + GAP_PX
            continue
        names, activations = row
        boxes += _row([(weights[name], name) for name in names if name in weights], LEFT, y, scale)
        shown = [(kept[name], label) for name, label in activations.items() if name in kept]
        boxes += _row(shown, RIGHT, y, scale)
        vector = names[0].endswith("norm") and not shown
        y += LABEL_PX + (VECTOR_PX if vector else BOX_PX) + GAP_PX
    return boxes, bands, round(y)


def _row(labeled: list[tuple[Tensor, str]], x: float, y: float, scale: float) -> Iterator[_Box]:
    """Tensors side by side. Cuts along axis 1 lie one above the other: a weight's inputs, tokens."""
    for tensor, label in labeled:
        width = scale * sqrt(tensor.shape[2] if len(tensor.shape) == 3 else tensor.shape[0])
        height = VECTOR_PX if len(tensor.shape) == 1 else BOX_PX
        yield _Box(tensor, label, x, y + LABEL_PX, width, height, across=tensor.axis != 1)
        x += width + GAP


def _outline(box: _Box, piece: int) -> tuple[list[float | None], list[float | None]]:
    """The corners of one piece, closed and followed by a gap."""
    share, n = piece / box.tensor.pieces, box.tensor.pieces
    x0, x1, y0, y1 = box.x, box.x + box.width, box.y, box.y + box.height
    if box.across:
        x0, x1 = box.x + share * box.width, box.x + (piece + 1) / n * box.width
    else:
        y0, y1 = box.y + share * box.height, box.y + (piece + 1) / n * box.height
    return [x0, x1, x1, x0, x0, None], [y0, y0, y1, y1, y0, None]


def _area(polygons: list[tuple[list, list]]) -> dict:
    return {
        "type": "scatter", "mode": "lines", "fill": "toself", "hoverinfo": "skip",
        "x": [x for xs, _ in polygons for x in xs], "y": [y for _, ys in polygons for y in ys],
    }  # fmt: skip


def _pieces(boxes: list[_Box], ranks: int) -> Iterator[dict]:
    """For each rank the pieces that it alone holds, one shade a rank."""
    color = COLORS["memory_used"]
    for rank in range(ranks):
        own = [_outline(box, rank) for box in boxes if box.tensor.copies == 1]
        yield _area(own) | {
            "name": f"GPU 0 to {ranks - 1}, dark to light" if ranks > 1 else "GPU 0",
            "showlegend": rank == 0, "line": {"color": color, "width": 1},
            "fillcolor": tint(color, 0.8 * rank / max(1, ranks - 1)),
        }  # fmt: skip


def _copies(boxes: list[_Box]) -> dict:
    """What several ranks hold alike, hatched."""
    color = COLORS["memory_wasted"]
    shared = [_outline(b, i) for b in boxes if b.tensor.copies > 1 for i in range(b.tensor.pieces)]
    return _area(shared) | {
        "name": "the same on several GPUs", "showlegend": bool(shared), "line": {"color": color, "width": 1},
        "fillpattern": {"shape": "/", "size": 6, "solidity": 0.25, "fgcolor": color,
                        "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip


def _bands(bands: list[tuple]) -> dict:
    """Where something is sent."""
    color = COLORS["communication"]
    sent = [(x, x + wide, y, y + tall) for x, y, wide, tall, _, sends in bands if sends]
    corners = [([x0, x1, x1, x0, x0, None], [y0, y0, y1, y1, y0, None]) for x0, x1, y0, y1 in sent]
    return _area(corners) | {
        "name": "collectives, and what each GPU sends", "fillcolor": translucent(color, 0.25),
        "line": {"color": color, "width": 1.5}, "showlegend": bool(sent),
    }  # fmt: skip


def _lines(communications: tuple[Communication, ...], forward: bool) -> list[str]:
    arrow = "▼" if forward else "▲"
    if not communications:
        return [f"{arrow} nothing sent"]
    return [
        f"{arrow} {'re-gather' if c.again else NAMES[c.collective.value]} {sent_text(c.bytes_sent)}"
        for c in communications
    ]


def _labels(boxes: list[_Box], bands: list[tuple], training: bool) -> dict:
    """Every text in one trace."""
    texts = [(LEFT, HEAD_PX / 2, "<b>weights</b>, forward ▼")]
    if training:
        texts.append((RIGHT, HEAD_PX / 2, "<b>activations</b>, backward ▲"))
    texts += [(box.x, box.y - LABEL_PX / 2, box.label) for box in boxes]
    for x, y, _, tall, lines, _ in bands:
        first = y + tall / 2 - LINE_PX * (len(lines) - 1) / 2
        texts += [(x + 0.08, first + LINE_PX * i, line) for i, line in enumerate(lines)]
    return {
        "type": "scatter", "mode": "text", "x": [t[0] for t in texts], "y": [t[1] for t in texts],
        "text": [t[2] for t in texts], "textposition": "middle right", "textfont": {"size": 12.5},
        "hoverinfo": "skip", "showlegend": False, "cliponaxis": False,
    }  # fmt: skip


def _hover(boxes: list[_Box]) -> dict:
    """Points without a mark that say what a box is."""
    return {
        "type": "scatter", "mode": "none", "showlegend": False,
        "x": [b.x + b.width / 2 for b in boxes], "y": [b.y + b.height / 2 for b in boxes],
        "text": [f"{b.tensor.name}: {shape_text(b.tensor.shape)}<br>{held_text(b.tensor)}" for b in boxes],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as it is written.

    >>> shape_text((1, 2048, 8192))
    '1 × 2048 × 8192'
    """
    return " × ".join(map(str, shape))


def held_text(tensor: Tensor) -> str:
    """What one GPU holds of ``tensor``, in words."""
    local = f"each GPU {shape_text(tensor.local_shape)}"
    if tensor.copies == 1:
        return local
    return f"{local}, {tensor.copies} GPUs the same"
