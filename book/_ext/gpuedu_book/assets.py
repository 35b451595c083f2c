"""What a page loads besides its own text, copied or built into ``_static``: nothing comes from elsewhere.

Front-end packages come from ``node_modules`` (``npm ci``) into folders that carry their version, so
that a browser may keep them for ever. From the package ``gpuedu`` come the archive that the page's
worker unpacks and the wheel that the labs install.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import gpuedu

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "gpuedu"

# npm package -> the files of it that the pages use
VENDORED = {
    "mathjax": (
        "LICENSE",
        "es5/tex-chtml.js",
        "es5/input/tex/extensions/*.js",
        "es5/output/chtml/fonts/woff-v2/*.woff",
    ),
    "plotly.js-cartesian-dist-min": ("LICENSE", "plotly-cartesian.min.js"),
    "pyodide": (
        "pyodide.mjs",
        "pyodide.asm.mjs",
        "pyodide.asm.wasm",
        "pyodide-lock.json",
        "python_stdlib.zip",
    ),
}
FONTS = "@fontsource-variable"
FONT_FILES = ("LICENSE", "files/*-latin*-wght-*.woff2", "files/*-greek-wght-*.woff2")

# What the themes copy into _static and no page of this book loads
UNUSED = (
    "**/*.map",
    "*webpack-macros.html",
    "images/logo_*",
    "locales",
    "scripts/fontawesome.js*",
    "vendor/fontawesome",
)

# The package's modules that run on the page: the ground floor, the simulator, and each topic's rooms
GROUND_FLOOR = ("__init__", "checks", "hardware", "transformer", "explorer", "style")
SERVING = ("__init__", "workload", "metrics", "step_cost", "simulator")
ROOMS = ("__init__", "plan", "cost", "plot")


def page_modules(package: Path = PACKAGE) -> list[Path]:
    """The package's modules that a page's worker may import, relative to its parent folder."""
    topics = sorted(
        folder
        for folder in package.iterdir()
        if any((folder / room).is_dir() or (folder / f"{room}.py").is_file() for room in ROOMS[1:])
    )
    found = [package / f"{name}.py" for name in GROUND_FLOOR]
    for folder, rooms in ((package / "serving", SERVING), *((topic, ROOMS) for topic in topics)):
        for room in rooms:
            found += [folder / f"{room}.py", *sorted((folder / room).rglob("*.py"))]
    return [path.relative_to(package.parent) for path in found if path.is_file()]


@cache
def archive() -> bytes:
    """The page's modules as a zip that is the same, byte for byte, for the same modules."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for path in page_modules():
            # A ZipInfo without a date has the same one always: 1980-01-01
            source = without_words((ROOT / path).read_text(encoding="utf-8"))
            target.writestr(zipfile.ZipInfo(path.as_posix()), source, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def without_words(source: str) -> str:
    """A module without docstrings and comments, which take half of the archive and nobody reads there."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
    return ast.unparse(tree) + "\n"


@cache
def python_megabytes() -> int:
    """What a page loads to start Python, in MB, as a static host compresses it."""
    folder = ROOT / "node_modules" / "pyodide"
    files = [(folder / name).read_bytes() for name in VENDORED["pyodide"]] + [archive()]
    return round(sum(len(zlib.compress(file)) for file in files) / 1e6)


def npm_version(package: str) -> str:
    """Version of an npm package as it is installed."""
    manifest = ROOT / "node_modules" / package / "package.json"
    if not manifest.is_file():
        raise ExtensionError(f"{manifest.relative_to(ROOT)} is missing: run `npm ci` in {ROOT}")
    return json.loads(manifest.read_text())["version"]


def vendored(package: str) -> str:
    """Folder of an npm package in ``_static``; it carries the version, so its files never change."""
    return f"vendor/{package.removesuffix('.js-cartesian-dist-min')}-{npm_version(package)}"


def urls() -> dict[str, str]:
    """Where a page finds what it loads, relative to ``_static``."""
    digest = hashlib.sha256(archive()).hexdigest()[:12]
    return {
        "mathjax": f"{vendored('mathjax')}/es5/tex-chtml.js",
        "plotly": f"{vendored('plotly.js-cartesian-dist-min')}/plotly-cartesian.min.js",
        "pyodide": f"{vendored('pyodide')}/",
        "archive": f"gpuedu-{gpuedu.__version__}-{digest}.zip",
        "wheel": f"wheels/gpuedu-{gpuedu.__version__}-py3-none-any.whl",
    }


def copy_files(source: Path, patterns: tuple[str, ...], target: Path) -> None:
    """Copy what matches ``patterns`` under ``source`` to the same place under ``target``."""
    for pattern in patterns:
        if not (files := sorted(source.glob(pattern))):
            raise ExtensionError(f"nothing matches {pattern} in {source}: run `npm ci` again")
        for file in files:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def build_wheel(target: Path) -> None:
    """Build the package's wheel in a folder of its own: nothing left over from an earlier build gets in."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, source / name)
        shutil.copytree(
            PACKAGE,
            source / "gpuedu",
            copy_function=shutil.copyfile,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        command = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
        result = subprocess.run(
            [sys.executable, "-c", command, str(source / "dist")],
            cwd=source,
            env={"SOURCE_DATE_EPOCH": "315532800"},  # 1980: a wheel of the same files is the same file
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise ExtensionError(f"the wheel does not build: {result.stderr.strip()[-2000:]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "dist" / target.name, target)


def write_assets(app: Sphinx) -> None:
    """Put everything that pages load into the output."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for package, patterns in VENDORED.items():
        copy_files(ROOT / "node_modules" / package, patterns, static / vendored(package))
    for font in sorted((ROOT / "node_modules" / FONTS).iterdir()):
        copy_files(font, FONT_FILES, static / "vendor" / "fonts" / font.name)
    (static / urls()["archive"]).write_bytes(archive())
    build_wheel(static / urls()["wheel"])


def remove_unused(app: Sphinx, exception: Exception | None) -> None:
    """Take out what the themes copy and no page loads: 6 MB of icons, source maps and templates."""
    if app.builder.format != "html" or exception:
        return
    static = Path(app.outdir) / "_static"
    for pattern in UNUSED:
        for path in sorted(static.glob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def configure(app: Sphinx, config) -> None:
    """MathJax comes from the site itself; templates and the explorers learn the addresses."""
    config.mathjax_path = urls()["mathjax"]
    config.html_context["gpuedu_assets"] = urls()
    # Jupyter Book puts all of _static on each page; here the module that needs a file adds it
    config.html_js_files = []
    config.html_css_files = [file for file in config.html_css_files if "explorer.css" not in file]


def setup(app: Sphinx) -> None:
    """Copy and build assets before pages are written."""
    app.connect("config-inited", configure)
    app.connect("builder-inited", write_assets)
    app.connect("build-finished", remove_unused)
