"""What stands in several files of the repository agrees; and the package's modules keep their places."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import plotly.offline
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpuedu
from gpuedu_book import assets

ROOT = Path(__file__).resolve().parents[2]
CODE = ("gpuedu", "book", "tests", "benchmarks")
LABS = sorted((ROOT / "labs").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
PACKAGE_JSON = json.loads((ROOT / "package.json").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def pins(name: str) -> dict[str, str]:
    """Package -> version of a file of requirements; every line is an exact pin, for some systems perhaps."""
    lines = [line.partition(" ;")[0] for line in (ROOT / name).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), lines
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_one_version() -> None:
    changelog = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {
        "pyproject.toml": PROJECT["project"]["version"],
        "package.json": PACKAGE_JSON["version"],
        "package-lock.json": json.loads((ROOT / "package-lock.json").read_text())["version"],
        "CITATION.cff": CITATION["version"],
        "CHANGELOG.md": changelog and changelog[1],
    }
    assert set(versions.values()) == {gpuedu.__version__}, versions


def test_one_address_for_the_repository_and_one_for_the_site() -> None:
    repository, site = CONFIG["repository"]["url"], CONFIG["html"]["baseurl"]
    assert site.endswith("/")
    assert PROJECT["project"]["urls"] == {"Book": site, "Repository": repository}
    assert CITATION["repository-code"] == repository
    assert CITATION["url"] == site


def test_plotly_in_the_page_is_the_one_in_the_package() -> None:
    bundle = PACKAGE_JSON["dependencies"]["plotly.js-cartesian-dist-min"]
    assert bundle == plotly.offline.get_plotlyjs_version()


def test_front_end_is_pinned_without_addresses() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all("resolved" not in entry and entry["integrity"] for entry in packages.values())
    wanted = PACKAGE_JSON["dependencies"] | PACKAGE_JSON.get("devDependencies", {})
    assert wanted == {name: packages[f"node_modules/{name}"]["version"] for name in wanted}


def test_pins_are_exact_and_each_stands_once() -> None:
    assert not pins("requirements.txt").keys() & pins("constraints.txt").keys()


def test_everything_imported_is_pinned_as_direct() -> None:
    direct = pins("requirements.txt").keys()
    sources = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    own = {path.stem for path in sources} | {path.parent.name for path in sources}
    distributions = packages_distributions()
    for path in sources:
        for name in imported(path) - sys.stdlib_module_names - own - {"google"}:  # Colab's own
            needed = {canonicalize_name(found) for found in distributions.get(name, [])}
            assert needed & direct, f"{path.relative_to(ROOT)} imports {name}"


def test_ranges_allow_what_is_pinned() -> None:
    pinned = pins("requirements.txt") | pins("constraints.txt")
    ranges = [Requirement(r) for extra in PROJECT["project"]["optional-dependencies"].values() for r in extra]
    for requirement in ranges:
        if requirement.name != "gpuedu":
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_ranges_allow_what_colab_has() -> None:
    colab = pins("tests/colab/requirements.txt")
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"]["labs"]):
        if version := colab.get(canonicalize_name(requirement.name)):
            assert version in requirement.specifier, requirement


def test_core_has_no_dependency() -> None:
    assert PROJECT["project"]["dependencies"] == []


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("module", assets.page_modules(), ids=str)
def test_page_modules_need_the_standard_library_alone(module: Path) -> None:
    assert imported(ROOT / module) <= sys.stdlib_module_names | {"gpuedu"}


def test_archive_holds_what_its_modules_import() -> None:
    with zipfile.ZipFile(io.BytesIO(assets.archive())) as archive:
        names = set(archive.namelist())
    assert {"gpuedu/__init__.py", "gpuedu/explorer.py", "gpuedu/pipeline_parallel/plot/gantt.py"} <= names
    graph = grimp.build_graph("gpuedu", cache_dir=None)
    held = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names}
    for module in held:
        assert graph.find_modules_directly_imported_by(module) <= held, module


def test_no_circle_among_the_modules() -> None:
    graph = grimp.build_graph("gpuedu", cache_dir=None)
    order = TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules})
    order.prepare()  # raises CycleError


def test_wheel_holds_the_package_alone(site: Path) -> None:
    with zipfile.ZipFile(site / "_static" / assets.urls()["wheel"]) as wheel:
        folders = {name.split("/")[0] for name in wheel.namelist()}
    assert folders == {"gpuedu", f"gpuedu-{gpuedu.__version__}.dist-info"}


@pytest.mark.parametrize("lab", LABS, ids=lambda path: path.stem)
def test_labs_start_with_the_same_cell_and_this_wheel(lab: Path) -> None:
    first, *_ = (bootstrap_cell(path) for path in LABS)
    assert bootstrap_cell(lab) == first
    assert f"{CONFIG['html']['baseurl']}_static/{assets.urls()['wheel']}" in first


def bootstrap_cell(lab: Path) -> str:
    """Source of the lab's first code cell."""
    cells = json.loads(lab.read_text())["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
