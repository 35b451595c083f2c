"""No stale page is ever served: ``book/build.py`` on a tiny book of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "book" / "build.py"

FILES = {
    "_config.yml": """
        title: Tiny
        html: {home_page_in_navbar: false}
        execute: {execute_notebooks: cache, raise_on_error: true}
        sphinx:
          config:
            extensions: [jupyter_book, sphinx_external_toc, sphinx_comments, myst_nb]
            html_theme: basic
            html_theme_options: {}
            use_jupyterbook_latex: false
        """,
    "_toc.yml": """
        format: jb-book
        root: index
        chapters: [{file: live}]
        """,
    "gpuedu/__init__.py": "VALUE = 'one potato'",
    "requirements.txt": "",
    "book/index.md": "# Start\n\nPlain text.",
}
LIVE = """\
---
file_format: mystnb
kernelspec: {{name: python3, display_name: Python 3}}
---
# Live

```{{code-cell}} python3
import os, gpuedu
open(os.environ["RUNS"], "a").write("x")
{code}
```
"""


class TinyBook:
    """A repository with a book of two pages; the cell of one shows a value of the package."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = root / "_build" / "html"

    def restore(self) -> None:
        for name, text in FILES.items():
            self.write(name, "\n".join(line.removeprefix(" " * 8) for line in text.splitlines()) + "\n")
        self.cell("print(gpuedu.VALUE)")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cell(self, code: str) -> None:
        self.write("book/live.md", LIVE.format(code=code))

    def build(self) -> int:
        command = [sys.executable, str(BUILD), "--root", str(self.root)]
        environment = os.environ | {"RUNS": str(self.root / "runs")}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.output = result.stdout + result.stderr
        return result.returncode

    def page(self, name: str) -> str:
        return (self.site / name).read_text()

    def pages(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.site.rglob("*.html")}

    def runs(self) -> int:
        return len((self.root / "runs").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TinyBook:
    """A tiny book that was built once."""
    book = TinyBook(tmp_path_factory.mktemp("tiny"))
    book.restore()
    assert book.build() == 0, book.output
    assert "one potato" in book.page("live.html")
    return book


@pytest.fixture
def book(built: TinyBook) -> TinyBook:
    """The tiny book with its first text; its site is what the last successful build left."""
    built.restore()
    return built


def test_an_unchanged_book_is_not_built_again(book: TinyBook) -> None:
    assert book.build() == 0
    start = time.monotonic()
    assert book.build() == 0
    assert time.monotonic() - start < 5
    assert "nothing has changed" in book.output


def test_only_what_changed_is_executed(book: TinyBook) -> None:
    assert book.build() == 0, book.output
    before = book.runs()
    book.write("book/index.md", "# Start\n\nOther text.\n")
    assert book.build() == 0, book.output
    assert "Other text" in book.page("index.html")
    assert "one potato" in book.page("live.html")
    assert book.runs() == before
    book.cell("print('three potato')")
    os.utime(book.root / "book" / "live.md", (0, 0))  # as a copy from elsewhere may bring along
    assert book.build() == 0, book.output
    assert "three potato" in book.page("live.html")
    assert book.runs() == before + 1


def test_a_change_of_the_package_shows(book: TinyBook) -> None:
    assert book.build() == 0, book.output
    book.write("gpuedu/__init__.py", "VALUE = 'two potato'\n")
    assert book.build() == 0, book.output
    assert "two potato" in book.page("live.html")
    assert "one potato" not in book.page("live.html")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("book/live.md", LIVE.format(code="print('four potato'); 1 / 0")),
        # A warning of the kind that Sphinx gives when it reads a page, and not when it writes it
        ("book/index.md", "# Start\n\n{nowhere}`x`"),
    ],
    ids=["failing cell", "warning"],
)
def test_a_failed_build_keeps_the_old_site_and_fails_again(book: TinyBook, name: str, text: str) -> None:
    before = book.pages()
    book.write(name, text)
    for _ in range(2):
        assert book.build() != 0
        assert book.pages() == before


def test_a_deleted_page_disappears(book: TinyBook) -> None:
    (book.root / "book" / "live.md").unlink()
    book.write("_toc.yml", "format: jb-book\nroot: index\n")
    assert (book.site / "live.html").is_file()
    assert book.build() == 0, book.output
    assert not (book.site / "live.html").exists()
    assert "live.html" not in book.page("index.html")
