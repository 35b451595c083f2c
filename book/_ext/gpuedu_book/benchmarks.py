"""``{benchmarks}``: what ``benchmarks/results/*.json`` holds, as tables, in the order of the chapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .elements import Element, element, text
from .techniques import TECHNIQUES

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def duration(seconds: float) -> str:
    """Seconds with two digits that count, in the unit that suits them."""
    unit, scale = next(((u, k) for u, k in (("s", 1), ("ms", 1e3)) if seconds * k >= 1), ("µs", 1e6))
    digits = 0 if seconds * scale >= 10 else 1
    return f"{seconds * scale:.{digits}f}\N{NO-BREAK SPACE}{unit}"


def ratio(times: float) -> str:
    """A factor with two digits that count."""
    return f"{times:.{0 if times >= 10 else 1}f}\N{MULTIPLICATION SIGN}"


def cells(row: dict[str, Any]) -> dict[str, str]:
    """What one size took, by entry: the median, and how many times ours it is."""
    ratios = row.get("times_ours", {})
    return {
        name: duration(seconds) + (f" ({ratio(ratios[name])})" if name in ratios else "")
        for name, seconds in row["median_s"].items()
    }


def table(rows: list[dict[str, Any]]) -> Element:
    """Entries from top to bottom, growing sizes from left to right."""
    entries = list(dict.fromkeys(name for row in rows for name in row["median_s"]))
    columns = [cells(row) for row in rows]
    sizes = [row["size"] for row in rows]
    varying = [key for key in sizes[0] if len({size[key] for size in sizes}) > 1]
    head = [
        element(
            "tr", text("th", key, scope="row"), *(text("th", f"{size[key]:,}", scope="col") for size in sizes)
        )
        for key in varying
    ]
    body = [
        element("tr", text("th", name, scope="row"), *(text("td", c.get(name, "")) for c in columns))
        for name in entries
    ]
    inner = element("table", element("thead", *head), element("tbody", *body), class_="table benchmark")
    return element("div", inner, class_="pst-scrollable-table-container")


def fixed(rows: list[dict[str, Any]]) -> str:
    """What is the same in all sizes, in words."""
    first = rows[0]["size"]
    return ", ".join(f"{v:,} {k}" for k, v in first.items() if all(row["size"][k] == v for row in rows))


def verdict(benchmark: dict[str, Any]) -> str:
    """The target and what was measured at its size, in words; nothing where there is no target."""
    if not (target := dict(benchmark.get("target_s", {}))):
        return ""
    limit = target.pop("seconds")
    row = next(row for row in benchmark["rows"] if target.items() <= row["size"].items())
    measured = next(iter(row["median_s"].values()))
    size = ", ".join(f"{value:,} {key}" for key, value in target.items())
    outcome = "met" if measured < limit else "missed"
    return f"Target: under {duration(limit)} at {size}. Measured: {duration(measured)}, {outcome}."


class Benchmarks(SphinxDirective):
    """One section a technique that has been measured."""

    def run(self) -> list[nodes.Node]:
        """Build the sections; a sentence where nothing has been measured."""
        measured = [t for t in TECHNIQUES if (RESULTS / f"{t.slug}.json").is_file()]
        if not measured:
            return [nodes.paragraph("", "Nothing has been measured yet: make bench does it.")]
        return [self._section(technique) for technique in measured]

    def _section(self, technique) -> nodes.section:
        path = RESULTS / f"{technique.slug}.json"
        self.env.note_dependency(str(path))
        report = json.loads(path.read_text())
        section = nodes.section("", nodes.title("", technique.title), ids=[nodes.make_id(technique.slug)])
        for benchmark in report["benchmarks"]:
            section += list(self._benchmark(benchmark))
        machine, versions = report["machine"], report["versions"]
        section += text(
            "p",
            f"Measured on {machine['processor']}, {machine['cores']} cores, {machine['system']}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + ".",
            class_="benchmark-machine",
        )
        return section

    def _benchmark(self, benchmark: dict[str, Any]) -> Iterator[nodes.Node]:
        rows = benchmark["rows"]
        name = benchmark["name"][0].upper() + benchmark["name"][1:]
        samples = min(len(s) for row in rows for s in row["samples_s"].values())
        words = [f"{fixed(rows)}; median of {samples} runs or more.", verdict(benchmark)]
        yield text("h3", name)
        yield text("p", " ".join(filter(None, words)))
        yield table(rows)


def setup(app: Sphinx) -> dict:
    """Register the directive."""
    app.add_directive("benchmarks", Benchmarks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
