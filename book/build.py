"""Build the book so that no stale page is ever served.

Notebooks run through a cache that is valid only for the exact package, requirements and Python they
ran with; a change of anything that pages are made of has every page read again; and the new site takes
the old one's place only when it is complete and without a warning. ``python book/build.py --help``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# What an executed cell can depend on besides its own text: a change runs every notebook again
EXECUTION = ("gpuedu", "benchmarks/results", "requirements.txt", "constraints.txt")
# What a page can depend on besides its own text and its cells: a change has every page read again
READING = ("_config.yml", "_toc.yml", "package-lock.json", "pyproject.toml", "book", "labs", "tests")
READ = "pages-as-read.json"  # what the pages kept in the work folder were read from

JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def files(root: Path, names: Iterable[str]) -> list[Path]:
    """The files under ``names``, without what Python and Jupyter leave behind."""
    found: list[Path] = []
    for name in names:
        path = root / name
        found += [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sorted(f for f in found if not {"__pycache__", ".ipynb_checkpoints"} & set(f.parts))


def digest(root: Path, paths: Iterable[Path], *extra: str) -> str:
    """Hash of the names and contents of ``paths`` and of the words in ``extra``."""
    total = hashlib.sha256(repr(extra).encode())
    for path in paths:
        total.update(f"\0{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def commit(root: Path) -> str:
    """The git commit, with "+" if files differ from it: pages show it. Empty outside a repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def build(root: Path, output: Path) -> int:
    """Build the book of the repository at ``root`` into ``output / "html"``; 0 if that site is current."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second build waits for the first
        return build_alone(root, output)


def build_alone(root: Path, output: Path) -> int:
    """What :func:`build` does while no other build writes to ``output``."""
    executed_with = digest(root, files(root, EXECUTION), sys.executable, sys.version)
    inputs = files(root, READING)
    pages = [f for f in inputs if f.suffix == ".md" and f.is_relative_to(root / "book")]
    read_with = digest(root, sorted(set(inputs) - set(pages)), executed_with)
    contents = {str(f.relative_to(root / "book")): digest(root, [f]) for f in pages}
    shown = commit(root)
    everything = digest(root, pages, read_with, shown)

    site, stamp = output / "html", output / "html.stamp"
    if site.is_dir() and stamp.is_file() and stamp.read_text() == everything:
        print(f"{site}: nothing has changed since it was built")
        return 0

    # Jupyter Book keeps its execution cache and the pages as it read them beside the HTML
    work = output / "work" / executed_with / "_build"
    for other in (output / "work").glob("*"):
        if other.name != executed_with:
            shutil.rmtree(other)
    forget_outdated(work, read_with, contents)
    shutil.rmtree(work / "html", ignore_errors=True)

    command = ["build", str(root / "book"), "--path-output", str(work.parent)]
    command += ["--config", str(root / "_config.yml"), "--toc", str(root / "_toc.yml")]
    result = subprocess.run(
        [sys.executable, "-c", JUPYTER_BOOK, *command, "-n", "-W", "--keep-going"],
        env=os.environ | {"PYTHONPATH": str(root), "GPUEDU_COMMIT": shown},
    )
    if result.returncode != 0:
        kept = f" {site} is still the last good one." if site.is_dir() else ""
        print(f"The book was not built.{kept} What came out is in {work / 'html'}", file=sys.stderr)
        return result.returncode

    (work / READ).write_text(json.dumps([read_with, contents]))
    stamp.unlink(missing_ok=True)
    shutil.rmtree(output / "html.old", ignore_errors=True)
    if site.is_dir():
        site.rename(output / "html.old")
    (work / "html").rename(site)
    stamp.write_text(everything)
    shutil.rmtree(output / "html.old", ignore_errors=True)
    print(f"{site}: built")
    return 0


def forget_outdated(work: Path, read_with: str, contents: dict[str, str]) -> None:
    """Remove from ``work`` the pages as last read that are not as they would be read now.

    All of them if the last build failed or was stopped: a page that was read with a warning would pass
    in silence the next time. (Sphinx itself goes by the time of a file, which a copy can bring along.)
    """
    read = work / READ
    read_before, contents_before = json.loads(read.read_text()) if read.is_file() else (None, {})
    read.unlink(missing_ok=True)
    if read_before != read_with:
        shutil.rmtree(work / ".doctrees", ignore_errors=True)
    for page, content in contents_before.items():
        if contents.get(page) != content:
            (work / ".doctrees" / page).with_suffix(".doctree").unlink(missing_ok=True)


def main() -> int:
    """Build this repository's book, or the one at ``--root``."""
    parser = argparse.ArgumentParser(description="Build the book into OUTPUT/html.")
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=here, help="the repository (default: this one)")
    parser.add_argument("--output", type=Path, help="where to build (default: _build in the repository)")
    options = parser.parse_args()
    root = options.root.resolve()
    return build(root, (options.output or root / "_build").resolve())


if __name__ == "__main__":
    sys.exit(main())
