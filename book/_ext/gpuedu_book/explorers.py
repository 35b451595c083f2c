"""``{explorer}``: an explorer as a card on a page, and ``{preset}``: a link to one of its views.

::

    :::{explorer} gpuedu.pipeline_parallel.plot:explorer
    :alt: what the figure shows, for those who do not see it
    The caption, with its takeaway.
    :::

    {preset}`a slow network <pipeline-schedule:slow_network>`
    {preset}`64 microbatches <pipeline-schedule?schedule=1f1b&m=64>`

What every preset shows is computed here, by the code that the page's worker runs, and stands in the
page. The links work from any page of the book; ``[text](#pipeline-schedule)`` leads to the card as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from docutils import nodes
from docutils.parsers.rst import directives
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from sphinx.application import Sphinx
from sphinx.domains import Domain
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from gpuedu.explorer import Choice, Control, Explorer, Integer, Real, Switch, load
from gpuedu.style import template

from .assets import python_megabytes

logger = logging.getLogger(__name__)

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
WORKER = Path(__file__).parents[2] / "_static" / "explorer_worker.mjs"
ICONS = {
    "previous": "M5 4h2v12H5zM16 4v12L8 10z",
    "play": "M6 3.5v13L16.5 10z",
    "pause": "M5.5 4h3.2v12H5.5zM11.3 4h3.2v12h-3.2z",
    "next": "M13 4h2v12h-2zM4 4v12l8-6z",
}


class explorer(nodes.General, nodes.Element):
    """A card; its children are the caption."""


def icon(name: str) -> Markup:
    """One of the icons of the step control."""
    return Markup(
        f'<svg class="explorer-icon-{name}" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">'
        f'<path d="{ICONS[name]}"/></svg>'
    )


def emphasized(text: str) -> Markup:
    """A takeaway as HTML: what stands between ``**`` is its number."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def rounded(value: Any) -> Any:
    """JSON data whose floats have 6 significant digits: far less than a pixel, and half the bytes."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: rounded(v) for key, v in value.items()}
        case list():
            return [rounded(v) for v in value]
    return value


def in_script(data: Any) -> Markup:
    """JSON that may stand inside ``<script>``: nothing in it can end the element."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def slider(control: Real | Integer) -> dict[str, float]:
    """The positions of a slider: the values themselves, or equal ratios on a logarithmic scale."""
    if isinstance(control, Integer):
        return {"low": control.low, "high": control.high, "step": 1}
    if control.scale == "linear":
        return {"low": control.low, "high": control.high, "step": control.step}
    count = math.ceil(math.log(control.high / control.low) / math.log1p(control.step))
    return {"low": 0, "high": count, "step": 1}


def described(control: Control) -> dict[str, Any]:
    """A control as the page's script needs it."""
    spec = {"kind": type(control).__name__.lower()} | asdict(control)
    if isinstance(control, Real | Integer):
        spec["positions"] = slider(control)
    return spec


def card(shown: Explorer, reference: str, alt: str) -> str:
    """The card's HTML, up to its caption."""
    controls = [described(c) for c in shown.controls]
    presets = {p.name: json.loads(shown.show_json(shown.values_of(p))) for p in shown.presets}
    for preset in presets.values():
        preset["figure"] = rounded(preset["figure"])
    first = presets[shown.presets[0].name]
    return TEMPLATES.get_template("explorer.html").render(
        explorer=shown,
        alt=alt,
        controls=controls,
        first=first,
        takeaway=emphasized(first["takeaway"]),
        height=first["figure"]["layout"].get("height", 420),
        payload=in_script({"reference": reference, "controls": controls, "presets": presets}),
        icon=icon,
    )


def parsed(shown: Explorer, query: str) -> dict[str, Any]:
    """The values that a link's query (``p=16&m=64``) stands for; ValueError for one that shows an error."""
    texts = dict(parse_qsl(query, strict_parsing=True))
    kinds = {c.name: c for c in shown.controls}
    if unknown := set(texts) - set(kinds):
        raise ValueError(f"{shown.id}: {sorted(unknown)}: must be among {list(kinds)}")

    def value(control: Control, text: str) -> Any:
        match control:
            case Choice():
                return text
            case Switch():
                return {"true": True, "false": False}.get(text)
            case Real():
                return float(text)
        return int(text)

    values = shown.defaults | {name: value(kinds[name], text) for name, text in texts.items()}
    shown.show(values)
    return values


class ExplorerDirective(SphinxDirective):
    """The argument is ``module:attribute``, the content the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Compute the presets and make the card."""
        if not self.options.get("alt") or not self.content:
            raise self.error("explorer: give an :alt: text and a caption")
        reference = self.arguments[0]
        try:
            shown = load(reference)
            html = card(shown, reference, self.options["alt"])
        except (ImportError, AttributeError, ValueError) as error:
            raise self.error(f"explorer {reference}: {error}") from error
        node = explorer(html=html, ids=[shown.id], names=[shown.id])
        self.set_source_info(node)
        self.state.document.note_explicit_target(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        domain = self.env.get_domain("explorer")
        if other := domain.places.get(shown.id):
            raise self.error(f"explorer {shown.id}: is already on page {other[0]}")
        domain.places[shown.id] = (self.env.docname, reference)
        return [node]


class PresetRole(XRefRole):
    """A link to a view; its target is ``explorer-id:preset`` or ``explorer-id?control=value&...``."""

    def process_link(self, env, refnode, has_explicit_title, title, target):
        """Leave the target to the domain; without a title it is the preset's label."""
        refnode["refdomain"] = "explorer"
        refnode["titled"] = has_explicit_title
        return title, target


class ExplorerDomain(Domain):
    """Which page each explorer is on."""

    name = "explorer"
    label = "Explorers"
    initial_data: ClassVar = {"places": {}}

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """From an explorer's id to its page and its reference."""
        return self.data["places"]

    def clear_doc(self, docname: str) -> None:
        """Forget the explorers of a page that is read again."""
        self.data["places"] = {id: place for id, place in self.places.items() if place[0] != docname}

    def merge_domaindata(self, docnames: list[str], otherdata: Mapping[str, Any]) -> None:
        """Take over what another process read."""
        self.places.update({id: place for id, place in otherdata["places"].items() if place[0] in docnames})

    def view(self, target: str) -> tuple[str, str, str]:
        """Page, fragment and label of a view; ValueError for one that does not exist."""
        if not (match := re.fullmatch(r"([^:?]+)([:?])(.+)", target)):
            raise ValueError(f"{target!r}: must be explorer-id:preset or explorer-id?control=value")
        id, mark, query = match.groups()
        if id not in self.places:
            raise ValueError(f"{id!r}: must be one of the explorers {sorted(self.places)}")
        docname, reference = self.places[id]
        shown = load(reference)
        if mark == "?":
            parsed(shown, query)
            return docname, f"{id}?{query}", target
        labels = {p.name: p.label for p in shown.presets}
        if query not in labels:
            raise ValueError(f"{target!r}: must be one of {list(labels)}")
        return docname, f"{id}?preset={query}", labels[query]

    def resolve_xref(self, env, fromdocname, builder, typ, target, node, contnode):
        """The link to a view; a warning, and the text alone, for a view that does not exist."""
        try:
            docname, fragment, label = self.view(target)
        except ValueError as error:
            logger.warning("preset: %s", error, location=node)
            return contnode
        text = contnode if node["titled"] else nodes.inline("", label)
        return make_refnode(builder, fromdocname, docname, fragment, text)


def visit_explorer(translator, node: explorer) -> None:
    """Open the card."""
    translator.body.append(node["html"])


def depart_explorer(translator, node: explorer) -> None:
    """Close the caption and the card."""
    translator.body.append("</figcaption></figure>\n")


def add_scripts(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """On a page with explorers: Plotly, our script, and what all cards of the page share."""
    if doctree is None or not next(doctree.findall(explorer), None):
        return
    urls = context["gpuedu_assets"]
    app.add_css_file("explorer.css")
    app.add_js_file(urls["plotly"], loading_method="defer")
    app.add_js_file("explorer_python.js", loading_method="defer")
    app.add_js_file("explorer.js", loading_method="defer")
    version = hashlib.sha256(WORKER.read_bytes()).hexdigest()[:8]
    page = {
        "worker": f"{WORKER.name}?v={version}",
        "pyodide": urls["pyodide"],
        "archive": urls["archive"],
        "megabytes": python_megabytes(),
        "templates": {mode: template(mode) for mode in ("light", "dark")},
    }
    context["body"] += f'<script type="application/json" id="explorer-page">{in_script(page)}</script>\n'


def setup(app: Sphinx) -> dict:
    """Register the directive, the role and the page's scripts."""
    app.add_node(explorer, html=(visit_explorer, depart_explorer))
    app.add_directive("explorer", ExplorerDirective)
    app.add_role("preset", PresetRole(innernodeclass=nodes.inline))
    app.add_domain(ExplorerDomain)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
