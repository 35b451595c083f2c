"""What the book's directives build their HTML from: any element around docutils nodes, and chapter links."""

from __future__ import annotations

from html import escape

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from .techniques import Technique


class Element(nodes.General, nodes.TextElement):
    """An HTML element with ``tag`` and ``attrs`` around its children."""


def element(tag: str, *children: nodes.Node, **attrs: str) -> Element:
    """``<tag attrs>children</tag>``; ``class_`` stands for ``class``, ``_`` within a name for ``-``."""
    node = Element("", "", *children)
    node["tag"] = tag
    node["attrs"] = {name.rstrip("_").replace("_", "-"): value for name, value in attrs.items()}
    return node


def text(tag: str, content: object, **attrs: str) -> Element:
    """``<tag attrs>content</tag>``."""
    return element(tag, nodes.Text(str(content)), **attrs)


def raw(html: str) -> nodes.raw:
    """HTML as it is."""
    return nodes.raw("", html, format="html")


def chapter_title(technique: Technique, ready: bool) -> Element:
    """A chapter's title: a link once the chapter stands, else marked as in preparation."""
    if not ready:
        note = text("span", " (in preparation)", class_="visually-hidden")
        return element("span", nodes.Text(technique.title), note, class_="in-preparation")
    link = pending_xref(
        "",
        nodes.inline("", technique.title),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{technique.docname}",
        refexplicit=True,
    )
    return element("span", link)


def visit_element(translator, node: Element) -> None:
    """Open the tag."""
    attrs = "".join(f' {name}="{escape(value)}"' for name, value in node["attrs"].items())
    translator.body.append(f"<{node['tag']}{attrs}>")


def depart_element(translator, node: Element) -> None:
    """Close the tag, unless it is one that has no end."""
    translator.body.append("\n" if node["tag"] == "br" else f"</{node['tag']}>\n")


def setup(app: Sphinx) -> dict:
    """Register the node."""
    app.add_node(Element, html=(visit_element, depart_element))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
