"""The built site as a whole: its links lead somewhere, it asks no other host, and its pages are light."""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

import gpuedu
from gpuedu_book.privacy import POLICY

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
# What each element makes a browser load
LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data"}
CSS_URL = re.compile(r"""url\(\s*(["']?)(.*?)\1\s*\)""")
PAGE_LIMIT_BYTES = 1_500_000
ARCHIVE_LIMIT_BYTES = 300_000


@cache
def parse(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


def pages(site: Path) -> dict[str, BeautifulSoup]:
    """Every page by its path in the site."""
    return {str(path.relative_to(site)): parse(path) for path in sorted(site.rglob("*.html"))}


def loaded(page: BeautifulSoup) -> Iterator[str]:
    """Addresses of what ``page`` loads, as they are written."""
    for element, attribute in LOADED.items():
        for found in page.find_all(element):
            if found.get(attribute) and found.get("rel") not in (["canonical"], ["prev"], ["next"]):
                yield found[attribute]


def targets(page: BeautifulSoup) -> Iterator[str]:
    """Addresses that ``page`` loads or leads to."""
    yield from loaded(page)
    yield from (link["href"] for link in page.find_all("a", href=True))


def test_internal_links_lead_somewhere(site: Path) -> None:
    broken = []
    for name, page in pages(site).items():
        for target in targets(page):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = site / unquote(urlsplit(urljoin(f"/{name}", target)).path).lstrip("/")
            path = path / "index.html" if path.is_dir() else path
            fragment = unquote(parts.fragment).split("?")[0]  # a linked view of an explorer follows its id
            if not path.is_file():
                broken.append(f"{name}: {target}")
            elif fragment and path.suffix == ".html" and parse(path).find(id=fragment) is None:
                broken.append(f"{name}: {target} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    foreign = [
        f"{name}: {target}"
        for name, page in pages(site).items()
        for target in loaded(page)
        if urlsplit(target).scheme not in ("", "data") or urlsplit(target).netloc
    ]
    assert not foreign, "\n".join(foreign)


def test_inline_scripts_name_no_host(site: Path) -> None:
    for name, page in pages(site).items():
        for script in page.find_all("script", src=False):
            hosts = re.findall(r"https?://[\w.-]+", script.get_text())
            assert not hosts, f"{name}: {hosts}"


def test_style_sheets_load_what_is_there(site: Path) -> None:
    broken = []
    for sheet in site.rglob("*.css"):
        for _, target in CSS_URL.findall(sheet.read_text()):
            # The theme names its icon font; nothing on a page uses it, so it is not in the site
            if target.startswith(("data:", "#")) or "vendor/fontawesome" in target:
                continue
            if urlsplit(target).netloc or not (sheet.parent / urlsplit(target).path).is_file():
                broken.append(f"{sheet.relative_to(site)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_theme_icon_is_drawn(site: Path) -> None:
    drawn = set(re.findall(r"\.(fa-[\w-]+) \{\s*--icon", (site / "_static" / "icons.css").read_text()))
    used = {
        name
        for page in pages(site).values()
        for icon in page.select(".fa-solid, .fas, .far, .fab")
        for name in icon["class"]
        if name.startswith("fa-") and name not in ("fa-solid", "fa-lg")
    }
    assert used
    assert used <= drawn


def test_policy_stands_first_on_every_page(site: Path) -> None:
    for name, page in pages(site).items():
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        assert policy and policy["content"] == POLICY, name
        assert not policy.find_all_previous(["script", "link", "style"]), name


def test_policy_is_the_one_that_was_decided() -> None:
    decided = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:"
    )
    assert POLICY.startswith(decided)


def test_every_page_says_what_it_is_built_from(site: Path) -> None:
    repository = CONFIG["repository"]["url"]
    for name, page in pages(site).items():
        edition = page.select_one(".edition")
        assert edition and f"version {gpuedu.__version__}" in edition.get_text(), name
        if (ROOT / ".git").exists():
            assert edition.find("a", href=re.compile(rf"^{repository}/commit/[0-9a-f]+$")), name
        report = edition.find("a", string=re.compile("Report an error"))
        assert report["href"].startswith(f"{repository}/issues/new?"), name


def test_archive_of_the_page_is_small(site: Path) -> None:
    (archive,) = (site / "_static").glob("gpuedu-*.zip")
    assert archive.stat().st_size < ARCHIVE_LIMIT_BYTES


def test_python_starts_from_byte_code(site: Path) -> None:
    (library,) = (site / "_static" / "vendor").glob("pyodide-*/python_stdlib.zip")
    names = set(zipfile.ZipFile(library).namelist())
    assert {"asyncio/__init__.pyc", "typing.pyc", "tomllib/__init__.py"} <= names
    assert not {name for name in names if name.endswith(".py") and f"{name}c" in names}


def transferred_bytes(site: Path, path: str) -> int:
    """What a host that compresses sends for ``path``; fonts are compressed already."""
    body = (site / path).read_bytes()
    return len(body) if path.endswith((".woff", ".woff2", ".png")) else len(gzip.compress(body))


@pytest.mark.browser
def test_pages_open_without_trouble_and_are_light(site: Path, site_url: str, page) -> None:
    sent: set[str] = set()
    page.on("response", lambda response: sent.add(urlsplit(response.url).path.lstrip("/")))
    for name in pages(site):
        sent.clear()
        page.goto(name)
        page.wait_for_load_state("networkidle")
        weight = sum(transferred_bytes(site, path) for path in sent if (site / path).is_file())
        assert weight < PAGE_LIMIT_BYTES, f"{name}: {weight} bytes of {sorted(sent)}"
        assert not any("pyodide" in path for path in sent), f"{name} starts the worker unasked"


@pytest.mark.browser
def test_search_finds_a_page(page) -> None:
    page.goto("index.html")
    field = page.get_by_role("searchbox").first
    field.fill("pipeline")
    field.press("Enter")
    page.locator("#search-results li a").first.wait_for()
    assert "search.html?q=pipeline" in page.url


@pytest.mark.browser
def test_unknown_address_gets_the_404_page(page, troubles: list[str]) -> None:
    response = page.goto("no/such/page.html")
    assert response is not None and response.status == 404
    page.get_by_role("main").get_by_role("link").first.click()
    assert page.url.endswith("/index.html")
    assert all("404" in trouble for trouble in troubles), troubles
    troubles.clear()
