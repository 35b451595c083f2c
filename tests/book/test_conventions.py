"""One idea, one name, five places: what the design asks of every technique in the table of contents."""

from __future__ import annotations

import ast
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import gpuedu
from gpuedu.explorer import Explorer
from gpuedu_book import chapter, claims, techniques
from gpuedu_book.techniques import BY_SLUG, LEVELS, PARTS, TECHNIQUES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
FILES = [entry["file"] for part in TOC["parts"] for entry in part["chapters"]]
SLUGS = [technique.slug for technique in TECHNIQUES if technique.docname in FILES]

HEADINGS = [
    "The mechanism",
    "The check",
    "In practice",
    "What this leaves out",
    "Claims on trial",
    "Exercises",
    "In five lines",
]

each_technique = pytest.mark.parametrize("slug", SLUGS)


def chapter_text(slug: str) -> str:
    """Source of a chapter."""
    return (ROOT / "book" / f"{BY_SLUG[slug].docname}.md").read_text()


def section(slug: str, heading: str) -> str:
    """Text of one section of a chapter."""
    return re.split(r"^## ", chapter_text(slug).partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


def lab_cells(slug: str) -> list[dict]:
    """Cells of a lab, their source as one string."""
    cells = json.loads((ROOT / chapter.lab_file(slug)).read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


# The list of techniques


def test_the_book_has_the_techniques_of_its_design() -> None:
    assert len(TECHNIQUES) == len(BY_SLUG) == 21
    assert SLUGS, "no chapter is in the table of contents"
    assert {t.part for t in TECHNIQUES} == {part.name for part in PARTS}
    assert {t.level for t in TECHNIQUES} == set(LEVELS)


def test_every_chapter_in_the_table_of_contents_is_a_technique() -> None:
    folders = {part.name for part in PARTS}
    chapters = [name for name in FILES if name.split("/")[0] in folders]
    assert chapters == [BY_SLUG[slug].docname for slug in SLUGS], "chapters stand in the order of the book"


def test_an_unknown_slug_is_an_error() -> None:
    with pytest.raises(ValueError, match="slug='pipelines': must be one of all_reduce"):
        techniques.find("pipelines")


CARRIED_OUT_BY_THE_ENGINE = ("continuous_batching",)  # its plan runs in gpuedu.engine, a layer above run


@each_technique
def test_its_five_places_exist(slug: str) -> None:
    places = [
        f"book/{BY_SLUG[slug].docname}.md",
        f"labs/{slug}.ipynb",
        f"gpuedu/{slug}/__init__.py",
        f"tests/{slug}",
        f"benchmarks/{slug}.py",
        f"benchmarks/results/{slug}.json",
    ]
    rooms = ("plan", "cost", "plot", *(() if slug in CARRIED_OUT_BY_THE_ENGINE else ("run",)))
    modules = [f"gpuedu/{slug}/{part}" for part in rooms]  # a file or a folder
    places += [m if (ROOT / m).is_dir() else f"{m}.py" for m in modules]
    assert [place for place in places if not (ROOT / place).exists()] == []


# The chapter


@each_technique
def test_chapter_has_its_parts_in_order(slug: str) -> None:
    text = chapter_text(slug)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    opening = text.partition("\n## ")[0]
    directives = re.findall(r"^`{3,}\{(\w[\w-]*)\}", opening, re.MULTILINE)
    assert [d for d in directives if d != "code-cell"] == ["chapter", "predict", "explorer"]


@each_technique
def test_chapter_opens_with_a_question_whose_answer_is_computed(slug: str) -> None:
    predict = re.compile(r"^`{3,}\{predict\} (.+)\n((?::.+\n)+)", re.MULTILINE)
    question, options = predict.search(chapter_text(slug)).groups()
    answer = re.search(r"^:answer: (.+)$", options, re.MULTILINE)[1]
    assert "?" in question
    assert f'glue("{answer}"' in chapter_text(slug)


@each_technique
def test_mechanism_is_as_long_as_it_should_be_and_shows_the_code(slug: str) -> None:
    mechanism = section(slug, "The mechanism")
    words = chapter.WORDS_PER_MINUTE * chapter.reading_minutes(mechanism)
    assert 1100 <= words <= 3700  # to the minute: CHAPTER asks for 1,500 to 3,500, formulas counted
    included = re.findall(r"^`{3}\{literalinclude\} (\S+)$", mechanism, re.MULTILINE)
    assert included
    assert all(Path(path).parts[:4] == ("..", "..", "gpuedu", slug) for path in included)


@each_technique
def test_check_is_executed(slug: str) -> None:
    assert "```{code-cell}" in section(slug, "The check")


@each_technique
def test_practice_is_cited(slug: str) -> None:
    assert len(re.findall(r"\{cite", section(slug, "In practice"))) >= 3


@each_technique
def test_claims_are_on_trial(slug: str) -> None:
    assert f"```{{claims}} {slug}\n" in section(slug, "Claims on trial")
    assert all(claim.verdict != "pending" for claim in claims.read() if claim.slug == slug)


@each_technique
def test_chapter_has_exercises_with_closed_solutions(slug: str) -> None:
    exercises = section(slug, "Exercises")
    labels = re.findall(r"^`{3,}\{exercise\}.*\n:label: (\S+)$", exercises, re.MULTILINE)
    solutions = re.findall(r"^`{3,}\{solution\} (\S+)\n:class: dropdown$", exercises, re.MULTILINE)
    assert len(labels) >= 3
    assert labels == solutions


@each_technique
def test_chapter_ends_with_five_lines_and_further_reading(slug: str) -> None:
    summary = section(slug, "In five lines")
    assert len(re.findall(r"^- ", summary, re.MULTILINE)) == 5
    assert "**Further reading.**" in summary


@each_technique
def test_chapter_holds_no_note_to_ourselves(slug: str) -> None:
    assert not re.search(r"TODO|FIXME|XXX|\b[A-Z]{2,}_[A-Z]+\b", re.sub(r"`[^`]*`", "", chapter_text(slug)))


@each_technique
def test_explorer_tells_a_story(slug: str) -> None:
    reference = re.search(r"^`{3,}\{explorer\} (\S+)$", chapter_text(slug), re.MULTILINE)[1]
    module, _, name = reference.partition(":")
    assert module == f"gpuedu.{slug}.plot"
    explorer = getattr(import_module(module), name)
    assert isinstance(explorer, Explorer)
    assert 3 <= len(explorer.presets) <= 6


# The lab


@each_technique
def test_lab_begins_with_the_bootstrap_cell(slug: str) -> None:
    code = next(cell for cell in lab_cells(slug) if cell["cell_type"] == "code")
    assert code["source"].strip() == (ROOT / "labs" / "bootstrap.txt").read_text().strip()
    assert {"bootstrap", "nbval-ignore-output"} <= set(code["metadata"]["tags"])


def test_bootstrap_cell_names_this_version_and_this_site() -> None:
    cell = (ROOT / "labs" / "bootstrap.txt").read_text()
    values = dict(re.findall(r'^([A-Z]+) = "(.+)"$', cell, re.MULTILINE))
    version, wheel = values["VERSION"], values["WHEEL"]
    assert version == gpuedu.__version__
    assert wheel == f"{CONFIG['html']['baseurl']}_static/wheels/gpuedu-{version}-py3-none-any.whl"
    assert "--no-deps" in cell  # torch and numpy stay as they are


@each_technique
def test_lab_closes_the_loop(slug: str) -> None:
    text = "\n".join(cell["source"] for cell in lab_cells(slug) if cell["cell_type"] == "markdown")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    loop = ["Predict", "Run", "Compare", "Exercises", "What to take away"]
    assert [heading for heading in headings if heading in loop] == loop


@each_technique
def test_lab_is_stored_with_its_outputs(slug: str) -> None:
    code = [cell for cell in lab_cells(slug) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) >= 5
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]


@each_technique
def test_lab_carries_no_library(slug: str) -> None:
    notebook = json.loads((ROOT / chapter.lab_file(slug)).read_text())
    assert "widgets" not in notebook["metadata"]  # plotly's widget would bring all of its JavaScript along


@each_technique
def test_lab_has_exercises_that_are_checked(slug: str) -> None:
    tags = [tag for cell in lab_cells(slug) for tag in cell["metadata"].get("tags", ())]
    assert tags.count("exercise") == tags.count("check") >= 3
    text = "\n".join(cell["source"] for cell in lab_cells(slug) if cell["cell_type"] == "markdown")
    assert text.count("<summary>Solution</summary>") == tags.count("exercise")


@each_technique
def test_colab_opens_this_lab_from_this_repository(slug: str) -> None:
    repository, branch = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
    address = chapter.colab_url(slug, repository, branch)
    owner_and_name = repository.removeprefix("https://github.com/")
    assert (
        address
        == f"https://colab.research.google.com/github/{owner_and_name}/blob/{branch}/labs/{slug}.ipynb"
    )


def test_card_of_a_chapter_links_colab_and_the_file(site: Path) -> None:
    for slug in SLUGS:
        page = (site / f"{BY_SLUG[slug].docname}.html").read_text()
        assert chapter.colab_url(slug, CONFIG["repository"]["url"], CONFIG["repository"]["branch"]) in page
        downloads = re.findall(rf'href="(?:\.\./)*(_downloads/\w+/{slug}\.ipynb)"', page)
        assert (site / downloads[0]).read_bytes() == (ROOT / "labs" / f"{slug}.ipynb").read_bytes()


# The package


def public_modules(slug: str) -> list[str]:
    """Modules of a technique that say ``__all__``, or have no underscore in their name."""
    files = sorted((ROOT / "gpuedu" / slug).rglob("*.py"))
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]
    return [name for name in names if "._" not in name]


GROUND_FLOOR = ["gpuedu.hardware", "gpuedu.transformer", "gpuedu.explorer", "gpuedu.style"]
MODULES = GROUND_FLOOR + [name for slug in SLUGS for name in public_modules(slug)]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_says_what_it_is(name: str) -> None:
    tree = ast.parse(Path(import_module(name).__file__).read_text())
    assert ast.get_docstring(tree), name
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    nodes = [node for scope in (tree, *classes) for node in scope.body]
    public = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    assert silent == []


def rooms() -> list[object]:
    """Functions that the plan and cost rooms of every technique offer to the world."""
    modules = [import_module(f"gpuedu.{slug}.{room}") for slug in SLUGS for room in ("plan", "cost")]
    return [f for m in modules for name in m.__all__ if inspect.isfunction(f := getattr(m, name))]


@pytest.mark.parametrize("function", rooms(), ids=lambda f: f.__qualname__)
def test_every_function_of_plan_and_cost_is_documented_in_full(function) -> None:
    sections = re.findall(r"^(\w+)\n-+$", inspect.getdoc(function), re.MULTILINE)
    assert "Parameters" in sections
    assert {"Returns", "Raises"} & set(sections)
    assert "Examples" in sections
    documented = inspect.getdoc(function).partition("Parameters\n")[2].partition("\n\n")[0]
    names = set(re.findall(r"\*{0,2}(\w+)(?=[,\s:])", documented))
    assert set(inspect.signature(function).parameters) <= names
