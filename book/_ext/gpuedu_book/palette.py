"""The colors of :mod:`gpuedu.style` on the page: ``palette.css``, a variable for each, and ``{legend}``."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gpuedu.style import COLORS, GRID, INK, PAPER

from .elements import element

MEANINGS = {
    "forward": "forward passes; prefill",
    "backward": "backward passes, of them the input gradients; decode",
    "weight_gradient": "weight gradients",
    "communication": "communication",
    "waiting": "waiting: bubbles, idle slots (hatched)",
    "memory_used": "memory in use",
    "memory_reserved": "memory reserved",
    "memory_wasted": "memory wasted",
    "accepted": "accepted",
    "rejected": "rejected",
}


def variable(name: str) -> str:
    """CSS variable of a color."""
    return f"--c-{name.replace('_', '-')}"


def palette() -> str:
    """What every mode shares, then each mode: the reader's choice, else the system's, and light on paper."""
    shared = "".join(f"  {variable(name)}: {color};\n" for name, color in COLORS.items())
    light, dark = mode("light"), mode("dark")
    return (
        f"html {{\n{shared}{light}}}\n\n"
        f'html[data-theme="dark"] {{\n{dark}}}\n\n'
        f'@media (prefers-color-scheme: dark) {{\nhtml[data-theme="auto"] {{\n{dark}}}\n}}\n\n'
        f"@media print {{\nhtml[data-theme] {{\n{light}}}\n}}\n"
    )


def mode(name: str) -> str:
    """What one mode sets."""
    named = {"paper": PAPER[name], "ink": INK[name], "line": GRID[name]}
    colors = "".join(f"  --gpuedu-{key}: {value};\n" for key, value in named.items())
    return f"  color-scheme: {name};\n{colors}"


def write(app: Sphinx) -> None:
    """Put the file where pages load it from."""
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        (static / "palette.css").write_text(palette())


class Legend(SphinxDirective):
    """Every color with its meaning."""

    def run(self) -> list[nodes.Node]:
        """One swatch a color."""
        return [element("ul", *(self._entry(name) for name in COLORS), class_="legend")]

    def _entry(self, name: str) -> nodes.Node:
        swatch = element("span", class_="swatch", style=f"background: var({variable(name)})")
        return element("li", swatch, nodes.Text(MEANINGS[name]))


def setup(app: Sphinx) -> dict:
    """Register the directive and the file; Jupyter Book itself adds the styles that stand in ``_static``."""
    app.add_directive("legend", Legend)
    app.connect("builder-inited", write)
    app.add_css_file("palette.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
