"""The map: one picture of a cluster with every technique where it acts, from the racks to the SRAM.

``{map}`` shows it whole, as the table of contents of the landing page; :func:`small` draws one level
without words, with one technique's spot marked, for the head of a chapter. Drawings are SVG made of the
page's own colors (``_static/map.css``), the names beside them HTML, so that they stay readable on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from markupsafe import escape
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .elements import Element, chapter_title, element, raw, text
from .techniques import LEVELS, TECHNIQUES, Technique

SIZE = {"cluster": (620, 392), "node": (300, 258), "gpu": (440, 318), "sm": (300, 258)}

SPOTS = {  # where a technique acts on the drawing of its level
    "multimodal": (24, 226),
    "load_balancing": (100, 226),
    "all_reduce": (364, 74),
    "data_parallel": (218, 204),
    "pipeline_parallel": (263, 250),
    "disaggregation": (439, 250),
    "outlook": (570, 250),
    "scaling": (400, 362),
    "training_vs_inference": (458, 362),
    "tensor_parallel": (91, 116),
    "parallel_inference": (213, 116),
    "dynamic_batching": (74, 34),
    "continuous_batching": (218, 34),
    "speculative_decoding": (362, 34),
    "quantization": (52, 134),
    "paged_attention": (52, 222),
    "inference_cost": (388, 178),
    "prefill_decode": (110, 178),
    "inference_libraries": (48, 52),
    "operator_fusion": (184, 132),
    "flash_attention": (150, 204),
}
RADIUS = 15


def box(x: float, y: float, w: float, h: float, kind: str, r: float = 3) -> str:
    """A rounded rectangle of class ``kind``."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "map-link") -> str:
    """A straight line of class ``kind``."""
    return f'<path class="{kind}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'


def label(x: float, y: float, text: str, anchor: str = "middle", kind: str = "map-label") -> str:
    """A word on the drawing."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def cluster() -> Iterator[str]:
    """Racks under a two-layer fabric, requests coming in at the front door."""
    racks = [192 + 88 * i for i in range(5)]
    spines = [276, 364, 452]
    for rack in racks:
        yield from (line(rack + 26, 102, spine, 46) for spine in spines)
        yield line(rack + 26, 118, rack + 26, 136)
        yield box(rack + 4, 102, 44, 16, "map-switch")
    yield from (box(spine - 34, 28, 68, 18, "map-switch") for spine in spines)
    yield label(364, 16, "fabric: InfiniBand or RoCE")
    for rack in racks:
        later = " map-ghost" if rack == racks[-1] else ""
        yield box(rack, 136, 52, 184, f"map-rack{later}", 5)
        for y in range(144, 320, 44):
            yield box(rack + 6, y, 40, 36, f"map-node{later}")
            for k in range(0 if later else 8):
                yield box(rack + 10 + 9 * (k % 4), y + 10 + 9 * (k // 4), 5, 6, "map-gpu")
    yield box(racks[0] + 6, 276, 40, 36, "map-zoomed")
    yield from (line(racks[i] + 46, 250, racks[i + 1] + 6, 250) for i in (0, 2))
    yield f'<path class="map-request" d="M{racks[0]} 332v8H{racks[-1] + 52}v-8"/>'
    yield label(racks[0], 367, "the whole cluster", "start")
    yield from (line(2, 196 + 30 * k, 62 + 8 * (k == 1), 196 + 30 * k, "map-request") for k in range(3))
    yield '<path class="map-switch" d="M100 188L138 226L100 264L62 226Z"/>'
    for x, y, to in ((126, 214, 178), (138, 226, 226), (126, 238, 274)):
        yield line(x, y, 186, to, "map-request")
    yield label(70, 288, "requests")


def node() -> Iterator[str]:
    """Eight GPUs around a switch."""
    yield box(2, 2, 296, 228, "map-rack", 8)
    yield box(22, 105, 256, 22, "map-switch")
    for i in range(4):
        x = 26 + 65 * i
        for k in range(3):
            yield line(x + 16 + 10 * k, 72, x + 16 + 10 * k, 105)
            yield line(x + 16 + 10 * k, 127, x + 16 + 10 * k, 160)
        for y in (22, 160):
            yield box(x, y, 52, 50, "map-node")
            yield box(x + 14, y + 12, 24, 26, "map-gpu")
    yield box(26 + 65 * 3, 160, 52, 50, "map-zoomed")
    yield label(150, 250, "8 GPUs on NVLink")


def gpu() -> Iterator[str]:
    """Memory stacks on both sides of a die of multiprocessors, and the queue that feeds it."""
    for i in range(14):
        yield box(20 + 28.8 * i, 20, 24, 28, "map-slot" if i in (3, 9, 10) else "map-busy")
    yield line(220, 48, 220, 66, "map-request")
    yield label(20, 12, "queue of requests", "start")
    yield box(2, 66, 436, 224, "map-rack", 8)
    for x in (16, 352):
        for y in (80, 148, 216):
            yield box(x, y, 72, 60, "map-memory")
            yield from (line(x, y + 15 * j, x + 72, y + 15 * j, "map-layer") for j in (1, 2, 3))
    for y in range(94, 280, 24):
        yield line(88, y, 132, y, "map-bus")
        yield line(310, y, 352, y, "map-bus")
    yield from (box(132 + 22.5 * i, 80 + 33 * j, 18, 28, "map-gpu") for i in range(8) for j in range(6))
    yield box(132 + 22.5 * 7, 80 + 33 * 5, 18, 28, "map-zoomed")
    yield label(52, 311, "HBM")
    yield label(220, 311, "multiprocessors (SMs)")


def sm() -> Iterator[str]:
    """Four partitions with their tensor cores above the shared memory."""
    yield box(2, 2, 296, 228, "map-rack", 8)
    for i in range(4):
        x = 18 + 68 * i
        yield box(x, 16, 60, 144, "map-node")
        yield from (line(x + 8, 26 + 8 * j, x + 52, 26 + 8 * j, "map-request") for j in range(6))
        yield box(x + 8, 80, 44, 30, "map-slot")
        yield box(x + 8, 118, 44, 34, "map-gpu")
        yield line(x + 30, 160, x + 30, 178, "map-bus")
    yield box(18, 178, 264, 40, "map-memory")
    yield label(150, 250, "registers, tensor cores, SRAM")


DRAWINGS = {"cluster": cluster, "node": node, "gpu": gpu, "sm": sm}
DESCRIPTIONS = {
    "cluster": "Requests enter through a load balancer; racks of nodes hang under a fabric of switches.",
    "node": "Eight GPUs, each tied to one switch by several NVLink connections.",
    "gpu": "A queue feeds a die of streaming multiprocessors, with stacks of HBM on both sides.",
    "sm": "Four partitions with registers and tensor cores over one block of SRAM.",
}


def marker(technique: Technique, ready: bool) -> str:
    """The technique's number where it acts."""
    x, y = SPOTS[technique.slug]
    kind = "map-marker" if ready else "map-marker map-pending"
    return (
        f'<g class="{kind}" data-technique="{technique.slug}"><circle cx="{x}" cy="{y}" r="{RADIUS}"/>'
        f'<text x="{x}" y="{y + 5.5}" text-anchor="middle">{technique.number}</text></g>'
    )


def drawing(level: str, ready: set[str]) -> str:
    """One level with the numbers of its techniques."""
    w, h = SIZE[level]
    markers = (marker(t, t.slug in ready) for t in TECHNIQUES if t.level == level)
    return (
        f'<svg class="map-drawing" viewBox="0 0 {w} {h}" role="img" aria-label="{DESCRIPTIONS[level]}">'
        f"{''.join(DRAWINGS[level]())}{''.join(markers)}</svg>"
    )


def small(technique: Technique) -> str:
    """The technique's level alone, without words, its spot marked."""
    w, h = SIZE[technique.level]
    x, y = SPOTS[technique.slug]
    where = f"{LEVELS[technique.level]}: {technique.place}"
    return (
        f'<svg class="map-small" viewBox="0 0 {w} {h - 24}" role="img" aria-label="{where}">'
        f"{''.join(DRAWINGS[technique.level]())}"
        f'<circle class="map-spot" cx="{x}" cy="{y}" r="26"/>'
        f'<circle class="map-dot" cx="{x}" cy="{y}" r="9"/></svg>'
    )


class Map(SphinxDirective):
    """The whole map: four levels, each a drawing and the list of its techniques."""

    def run(self) -> list[nodes.Node]:
        """Build the levels; chapters that stand are links."""
        ready = {t.slug for t in TECHNIQUES if t.docname in self.env.found_docs}
        levels = [self._level(level, title, ready) for level, title in LEVELS.items()]
        return [element("div", *levels, class_="map wide")]

    def _level(self, level: str, title: str, ready: set[str]) -> Element:
        names = [self._name(t, t.slug in ready) for t in TECHNIQUES if t.level == level]
        return element(
            "section",
            text("h3", title),
            raw(drawing(level, ready)),
            element("ul", *names, class_="map-names"),
            class_=f"map-panel map-of-{level}",
        )

    def _name(self, technique: Technique, ready: bool) -> Element:
        return element(
            "li",
            text("span", technique.number, class_="map-number", aria_hidden="true"),
            chapter_title(technique, ready),
            text("span", technique.place, class_="map-place"),
            class_="map-name" if ready else "map-name map-pending",
            data_technique=technique.slug,
        )


def setup(app: Sphinx) -> dict:
    """Register the directive and its style."""
    app.add_directive("map", Map)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
