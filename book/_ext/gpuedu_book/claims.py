"""The claims ledger: ``book/claims.yml`` checked, and shown by ``{claims}`` and ``{verdicts}``.

::

    ```{claims} pipeline_parallel
    ```

shows the claims of one technique, or of one part of the book, or without an argument all of them. A
number in a verdict is computed when the book is built: ``{{name}}`` in the ledger stands for what the
function named like the claim in ``verdicts/<slug>.py`` returns under that name.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .elements import chapter_title, element, text
from .techniques import BY_SLUG, PARTS

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
LEDGER = ROOT / "book" / "claims.yml"
IDS = tuple(f"C{number:02d}" for number in range(1, 61))
KINDS = ("causal", "comparison", "quantitative", "structural", "taxonomy")
VERDICTS = {  # verdict -> its mark and what it says
    "holds": ("●", "holds"),
    "conditions": ("◐", "holds under conditions"),
    "imprecise": ("○", "imprecise"),
    "pending": ("·", "pending"),
}
DECIDED = ("truth", "flips", "preset", "checks")


@dataclass(frozen=True)
class Claim:
    """One claim of the source, in our own words, and what became of it."""

    id: str
    section: str
    slug: str
    kind: str
    claim: str
    verdict: str = "pending"
    truth: str = ""
    flips: str = ""
    preset: str = ""
    checks: tuple[str, ...] | list[str] = ()

    def filled(self, field: str) -> str:
        """A field's text with its computed numbers."""
        text = getattr(self, field)
        names = re.findall(r"\{\{(\w+)\}\}", text)
        if not names:
            return text
        numbers = getattr(import_module(f"{__package__}.verdicts.{self.slug}"), self.id.lower())()
        if missing := set(names) - set(numbers):
            raise ValueError(f"{self.id}: {field} names {sorted(missing)}: must be among {sorted(numbers)}")
        return re.sub(r"\{\{(\w+)\}\}", lambda match: str(numbers[match[1]]), text)


def read(path: Path = LEDGER) -> tuple[Claim, ...]:
    """The ledger's claims; TypeError for an entry with a field that no claim has."""
    return tuple(Claim(**entry) for entry in yaml.safe_load(path.read_text()))


def problems(claims: tuple[Claim, ...], chapters: Container[str], root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the ledger, where ``chapters`` are the slugs that have one."""
    count = Counter(claim.id for claim in claims)
    yield from (f"{id} is missing" for id in IDS if id not in count)
    yield from (f"{id} stands there {n} times" for id, n in count.items() if n > 1)
    yield from (f"{id}: must be one of {IDS[0]} to {IDS[-1]}" for id in count if id not in IDS)
    for claim in claims:
        for problem in problems_of(claim, chapters, root):
            yield f"{claim.id}: {problem}"


def problems_of(claim: Claim, chapters: Container[str], root: Path) -> Iterator[str]:
    """What is wrong with one claim."""
    for name, allowed in (("slug", BY_SLUG), ("kind", KINDS), ("verdict", VERDICTS)):
        if getattr(claim, name) not in allowed:
            yield f"{name}={getattr(claim, name)!r}: must be one of {', '.join(allowed)}"
    if claim.verdict == "pending":
        if claim.slug in chapters:
            yield f"is pending, and the chapter on {claim.slug} stands"
        yield from (f"is pending and has a {name}" for name in DECIDED if getattr(claim, name))
        return
    yield from (f"is decided and has no {name}" for name in DECIDED if not getattr(claim, name))
    for check in claim.checks:
        if not check_exists(check, root):
            yield f"checks: {check!r}: there is no such test, cell or label"


def check_exists(check: str, root: Path = ROOT) -> bool:
    """Whether ``file::name`` is a test function, a labeled place in a page, or a cell of a notebook."""
    file, _, name = check.partition("::")
    path = root / file
    if not name or not path.is_file():
        return False
    text = path.read_text()
    match path.suffix:
        case ".py":
            functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
            return name.startswith("test_") and any(f.name == name for f in functions)
        case ".md":
            label = re.escape(name)
            return bool(re.search(rf"^(\({label}\)=|:(name|label): {label})$", text, re.MULTILINE))
        case ".ipynb":
            cells = json.loads(text)["cells"]
            return any(name == c.get("id") or name in c["metadata"].get("tags", ()) for c in cells)
    return False


def marked(mark: str) -> nodes.Node:
    """A verdict's mark, which the words beside it repeat."""
    return text("span", mark, aria_hidden="true")


class Claims(SphinxDirective):
    """The claims of a technique or of a part, each with its verdict."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One article a claim, in the ledger's order."""
        self.env.note_dependency(str(LEDGER))
        name = self.arguments[0] if self.arguments else None
        parts = [part.name for part in PARTS]
        if name is not None and name not in BY_SLUG and name not in parts:
            raise self.error(f"claims {name!r}: must be a technique's slug or one of {', '.join(parts)}")
        chosen = [c for c in read() if name in (None, c.slug, BY_SLUG[c.slug].part)]
        return [self._article(claim) for claim in chosen]

    def _article(self, claim: Claim) -> nodes.Node:
        mark, says = VERDICTS[claim.verdict]
        technique = BY_SLUG[claim.slug]
        here = technique.docname == self.env.docname
        chapter = chapter_title(technique, technique.docname in self.env.found_docs)
        head = element(
            "p",
            text("a", claim.id, href=f"#{claim.id.lower()}", class_="claim-id"),
            text("span", f"source: {claim.section}", class_="claim-section"),
            text("span", claim.kind, class_="claim-kind"),
            *([] if here else [chapter]),
            element("span", marked(mark), nodes.Text(f" {says}"), class_="claim-verdict"),
            class_="claim-head",
        )
        body = [element("p", *self._prose(claim, "claim"), class_="claim-text")]
        if claim.verdict != "pending":
            body += [
                self._labeled("What is true", self._prose(claim, "truth")),
                self._labeled("What flips it", self._prose(claim, "flips")),
                self._labeled("Decided by", [node for check in claim.checks for node in self._check(check)]),
                self._labeled("See it", self._inline(f"{{preset}}`in the explorer <{claim.preset}>`")),
            ]
        return element("article", head, *body, id=claim.id.lower(), class_=f"claim verdict-{claim.verdict}")

    def _labeled(self, label: str, content: list[nodes.Node]) -> nodes.Node:
        return element("p", text("span", label, class_="claim-label"), element("span", *content))

    def _prose(self, claim: Claim, field: str) -> list[nodes.Node]:
        try:
            return self._inline(claim.filled(field))
        except (ImportError, AttributeError, ValueError) as error:
            raise self.error(f"{claim.id}: {error}") from error

    def _inline(self, source: str) -> list[nodes.Node]:
        parsed, messages = self.state.inline_text(source, self.lineno)
        return [*parsed, *messages]

    def _check(self, check: str) -> list[nodes.Node]:
        """The check's name, a link to its file in the repository, on a line of its own."""
        file, _, name = check.partition("::")
        options = self.config.html_theme_options
        address = f"{options['repository_url']}/blob/{options['repository_branch']}/{file}"
        words = re.sub(r"^test_(c\d\d_)?", "", name).replace("_", " ")
        return [nodes.reference("", words, refuri=address), element("br")]


class Verdicts(SphinxDirective):
    """How many claims have which verdict; each count shows only its own claims when followed."""

    def run(self) -> list[nodes.Node]:
        """One link a verdict, and one back to all."""
        self.env.note_dependency(str(LEDGER))
        count = Counter(claim.verdict for claim in read())
        links = [self._link("all", "", len(IDS), "claims")]
        links += [self._link(name, mark, count[name], says) for name, (mark, says) in VERDICTS.items()]
        # What a link leads to stands before the claims, so that the style sheet can hide those that follow
        targets = [
            element("span", id=f"verdict-{name}", class_="verdict-target") for name in ("all", *VERDICTS)
        ]
        return [*targets, element("nav", *links, class_="verdicts", aria_label="Claims by verdict")]

    def _link(self, verdict: str, mark: str, count: int, says: str) -> nodes.Node:
        return element(
            "a",
            marked(mark),
            text("strong", count),
            nodes.Text(f" {says}"),
            href=f"#verdict-{verdict}",
            class_=f"verdict-{verdict}",
        )


def check_ledger(app: Sphinx, env, docnames: list[str]) -> None:
    """Warn, and so fail the build, for everything that is wrong with the ledger."""
    chapters = {slug for slug, technique in BY_SLUG.items() if technique.docname in env.found_docs}
    for problem in problems(read(), chapters):
        logger.warning("claims.yml: %s", problem)


def setup(app: Sphinx) -> dict:
    """Register the directives and the check."""
    app.add_directive("claims", Claims)
    app.add_directive("verdicts", Verdicts)
    app.connect("env-before-read-docs", check_ledger)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
