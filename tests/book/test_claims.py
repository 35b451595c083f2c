"""The claims ledger is whole, what exists decides its verdicts, and the build insists on it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sphinx.application import Sphinx

from gpuedu_book import claims
from gpuedu_book.techniques import BY_SLUG

ROOT = Path(__file__).resolve().parents[2]
LEDGER = claims.read()
DECIDED = [claim for claim in LEDGER if claim.verdict != "pending"]


def chapters() -> set[str]:
    """Slugs whose chapter is in the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    return {slug for slug, technique in BY_SLUG.items() if technique.docname in files}


def test_ledger_has_nothing_to_complain_of() -> None:
    assert list(claims.problems(LEDGER, chapters())) == []


def test_ledger_stands_in_order() -> None:
    assert tuple(claim.id for claim in LEDGER) == claims.IDS
    assert len(claims.IDS) == 60


def test_ledger_holds_every_section_of_the_source() -> None:
    sections = {part.strip() for claim in LEDGER for part in claim.section.split(",")}
    named = {"1.1", "1.2", "2.1.1", "2.1.2", "2.1.3", "2.2.1", "2.2.2", "2.2.3", "3.1.1", "3.1.2"}
    named |= {"3.2.1", "3.2.2", "3.3.1", "3.3.2", "3.3.3", "4", "5.1", "5.2", "5.3", "5.4"}
    named |= {"abstract", "summary"}
    assert named <= sections


SOUND = next(claim for claim in DECIDED if claim.slug == "pipeline_parallel")
PENDING = next(claim for claim in LEDGER if claim.verdict == "pending" and claim.slug not in chapters())


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (LEDGER[1:], "C01 is missing"),
        ((*LEDGER, LEDGER[4]), "C05 stands there 2 times"),
        ((*LEDGER, replace(LEDGER[4], id="C61")), "C61: must be one of C01 to C60"),
        ((replace(SOUND, slug="pipelines"),), "slug='pipelines': must be one of"),
        ((replace(SOUND, verdict="true"),), "verdict='true': must be one of"),
        ((replace(SOUND, kind="moral"),), "kind='moral': must be one of"),
        ((replace(SOUND, truth=""),), "is decided and has no truth"),
        ((replace(SOUND, flips=""),), "is decided and has no flips"),
        ((replace(SOUND, preset=""),), "is decided and has no preset"),
        ((replace(SOUND, checks=()),), "is decided and has no checks"),
        ((replace(SOUND, checks=["tests/test_style.py::test_nothing"]),), "there is no such test"),
        ((replace(SOUND, verdict="pending", truth="", flips="", preset="", checks=()),), "the chapter on"),
        ((replace(PENDING, truth="So it is."),), "is pending and has a truth"),
    ],
)
def test_a_broken_ledger_is_found_out(broken: tuple[claims.Claim, ...], complaint: str) -> None:
    assert any(complaint in problem for problem in claims.problems(broken, chapters()))


FILES = {
    "tests/test_x.py": "def test_it(): ...\ndef helper(): ...\nclass T:\n    def test_within(self): ...\n",
    "book/page.md": "(the-check)=\n## Check\n\n```{code-cell}\n:name: the-cell\n```\n\nSee the-word.\n",
    "labs/lab.ipynb": json.dumps({"cells": [{"id": "cell-1", "metadata": {"tags": ["slow"]}}]}),
    "notes.txt": "the-check",
}


@pytest.mark.parametrize(
    ("check", "exists"),
    [
        ("tests/test_x.py::test_it", True),
        ("tests/test_x.py::test_within", True),
        ("tests/test_x.py::test_other", False),
        ("tests/test_x.py::helper", False),
        ("tests/test_x.py", False),
        ("tests/test_y.py::test_it", False),
        ("book/page.md::the-check", True),
        ("book/page.md::the-cell", True),
        ("book/page.md::the-word", False),
        ("labs/lab.ipynb::cell-1", True),
        ("labs/lab.ipynb::slow", True),
        ("labs/lab.ipynb::cell-2", False),
        ("notes.txt::the-check", False),
    ],
)
def test_a_check_exists_or_does_not(tmp_path: Path, check: str, exists: bool) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert claims.check_exists(check, tmp_path) is exists


# Names with a digit in them, which are no numbers
NAMES = re.compile(r"1F1B|GPT-3 175B|Llama 3 8B|DeepSeek-V3")


@pytest.mark.parametrize("claim", DECIDED, ids=lambda claim: claim.id)
def test_numbers_in_verdicts_are_computed_or_cited(claim: claims.Claim) -> None:
    for text in (claim.truth, claim.flips):
        for sentence in re.split(r"(?<=[.:;]) ", text):
            if "{cite}" not in sentence:
                assert not re.search(r"\d", NAMES.sub("", sentence)), sentence


@pytest.mark.parametrize("claim", DECIDED, ids=lambda claim: claim.id)
def test_every_number_of_a_verdict_is_filled_in(claim: claims.Claim) -> None:
    assert "{{" not in claim.filled("truth") + claim.filled("flips")


def test_a_number_that_nobody_computes_is_an_error() -> None:
    with pytest.raises(ValueError, match="C11: truth names \\['nobody'\\]: must be among"):
        replace(SOUND, id="C11", truth="It is {{nobody}}.").filled("truth")


@pytest.mark.parametrize("ledger", ["sound", "broken"])
def test_a_broken_ledger_fails_the_build(tmp_path: Path, monkeypatch, ledger: str) -> None:
    broken = tuple(replace(c, checks=["tests/gone.py::test_it"]) if c is SOUND else c for c in LEDGER)
    monkeypatch.setattr(claims, "read", lambda: broken if ledger == "broken" else LEDGER)
    (tmp_path / "conf.py").write_text("extensions = ['gpuedu_book.elements', 'gpuedu_book.claims']")
    (tmp_path / "index.rst").write_text("Start\n=====\n\n.. claims:: scaling\n\n.. verdicts::\n")
    warnings = io.StringIO()
    app = Sphinx(
        str(tmp_path),
        str(tmp_path),
        str(tmp_path / "out"),
        str(tmp_path / "trees"),
        "html",
        warning=warnings,
        warningiserror=True,
        status=None,
        keep_going=True,
    )
    app.build()
    assert (app.statuscode != 0) is (ledger == "broken")
    assert ("there is no such test" in warnings.getvalue()) is (ledger == "broken")
    shown = re.findall(r'<article id="(c\d\d)"', (tmp_path / "out" / "index.html").read_text())
    assert shown == [claim.id.lower() for claim in LEDGER if claim.slug == "scaling"]


@pytest.mark.browser
def test_ledger_shows_all_or_one_verdict(page) -> None:
    page.goto("claims.html")
    shown = page.locator(".claim:visible")
    assert shown.count() == 60
    for verdict in claims.VERDICTS:
        page.locator(f".verdicts .verdict-{verdict}").click()
        assert shown.count() == sum(claim.verdict == verdict for claim in LEDGER)
    page.locator(".verdicts .verdict-all").click()
    assert shown.count() == 60


@pytest.mark.browser
def test_every_decided_claim_leads_to_its_view(page) -> None:
    page.goto("claims.html")
    for claim in DECIDED:
        link = page.locator(f"#{claim.id.lower()} a", has_text="in the explorer")
        assert re.search(r"#[\w-]+\?\w+=", link.get_attribute("href")), claim.id
