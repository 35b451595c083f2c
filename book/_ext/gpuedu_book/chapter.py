"""``{chapter}``: the head of a chapter, and ``{parts}``: all chapters, for the landing page.

::

    ```{chapter} pipeline_parallel
    :prerequisites: What a forward and a backward pass are.
    ```
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .cluster_map import small
from .elements import Element, chapter_title, element, raw, text
from .techniques import PARTS, TECHNIQUES, Technique, find

WORDS_PER_MINUTE = 220
SHORT = {"cluster": "cluster", "node": "node", "gpu": "GPU", "sm": "SM"}


def reading_minutes(source: str) -> int:
    """Minutes to read a page's prose: its words outside front matter, code and directive options."""
    prose = re.sub(r"\A---\n.*?\n---\n", "", source, flags=re.DOTALL)
    code = re.compile(r"^(`{3,})\{(code-cell|literalinclude)\}.*?^\1$", re.DOTALL | re.MULTILINE)
    prose = code.sub("", prose)
    prose = re.sub(r"^:\w[\w-]*:.*$", "", prose, flags=re.MULTILINE)
    return max(1, round(len(re.findall(r"[^\W_][\w'’-]*", prose)) / WORDS_PER_MINUTE))


def lab_file(slug: str) -> str:
    """Path of a technique's lab in the repository."""
    return f"labs/{slug}.ipynb"


def colab_url(slug: str, repository: str, branch: str) -> str:
    """Address at which Colab opens the lab from the repository."""
    owner_and_name = urlsplit(repository).path.strip("/")
    return f"https://colab.research.google.com/github/{owner_and_name}/blob/{branch}/{lab_file(slug)}"


class Chapter(SphinxDirective):
    """Part, source section, spot on the map, what to know before, reading time and the lab."""

    required_arguments = 1
    option_spec: ClassVar = {"prerequisites": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Build the head."""
        try:
            technique = find(self.arguments[0])
        except ValueError as error:
            raise self.error(f"chapter: {error}") from error
        if "prerequisites" not in self.options:
            raise self.error("chapter: say in :prerequisites: what the reader should know")
        part = next(p for p in PARTS if p.name == technique.part)
        minutes = reading_minutes(Path(self.env.doc2path(self.env.docname)).read_text())
        known, messages = self.state.inline_text(self.options["prerequisites"], self.lineno)
        place = element(
            "p",
            text("span", f"Chapter {technique.number}"),
            text("span", part.title),
            text("span", f"source: section {technique.section}"),
            text("span", f"{minutes} minutes to read"),
            class_="chapter-place",
        )
        facts = element(
            "div",
            element("p", text("strong", "You should know"), nodes.Text(" "), *known),
            self._lab(technique),
            class_="chapter-facts",
        )
        levels = [text("strong" if level == technique.level else "span", SHORT[level]) for level in SHORT]
        spot = element(
            "figure",
            raw(small(technique)),
            element("figcaption", *levels, nodes.Text(f": {technique.place}")),
            class_="chapter-spot",
        )
        return [element("div", place, facts, spot, class_="chapter-head"), *messages]

    def _lab(self, technique: Technique) -> Element:
        options = self.config.html_theme_options
        address = colab_url(technique.slug, options["repository_url"], options["repository_branch"])
        file = f"/../{lab_file(technique.slug)}"
        words = nodes.inline("", "download it")
        download = download_reference("", "", words, reftarget=file, refdoc=self.env.docname)
        return element(
            "p",
            text("strong", "The lab"),
            nodes.Text(" predicts, runs and compares on your own machine: "),
            text("a", "open it in Colab", href=address),
            nodes.Text(" or "),
            download,
            nodes.Text("."),
            class_="chapter-lab",
        )


class Parts(SphinxDirective):
    """Every part with its chapters; those that stand are links."""

    def run(self) -> list[nodes.Node]:
        """One section a part."""
        parts = [self._part(number, part) for number, part in enumerate(PARTS, 1)]
        return [element("div", *parts, class_="parts wide")]

    def _part(self, number: int, part) -> Element:
        chapters = [self._chapter(t) for t in TECHNIQUES if t.part == part.name]
        return element(
            "section",
            element("h3", text("span", f"Part {number}", class_="part-number"), nodes.Text(part.title)),
            text("p", part.summary, class_="part-summary"),
            element("ol", *chapters, class_="part-chapters"),
            class_="part",
        )

    def _chapter(self, technique: Technique) -> Element:
        ready = technique.docname in self.env.found_docs
        return element(
            "li",
            text("span", technique.number, class_="map-number", aria_hidden="true"),
            chapter_title(technique, ready),
            text("span", technique.question, class_="part-question"),
            class_="part-chapter" if ready else "part-chapter map-pending",
        )


def setup(app: Sphinx) -> dict:
    """Register the directives."""
    app.add_directive("chapter", Chapter)
    app.add_directive("parts", Parts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
