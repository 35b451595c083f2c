"""``{benchmarks}``: what ``benchmarks/results/*.json`` holds, as tables, in the order of the chapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
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
            "tr",
            text("th", key, scope="row"),
            *(text("th", number(size[key]), scope="col") for size in sizes),
        )
        for key in varying
    ]
    body = [
        element("tr", text("th", name, scope="row"), *(text("td", c.get(name, "")) for c in columns))
        for name in entries
    ]
    inner = element("table", element("thead", *head), element("tbody", *body), class_="table benchmark")
    return element("div", inner, class_="pst-scrollable-table-container")


def number(value: int | str) -> str:
    """A size's value: whole numbers in groups of three digits."""
    return f"{value:,}" if isinstance(value, int) else value


def words(size: dict[str, int | str]) -> str:
    """A size in words."""
    return ", ".join(f"{number(v)} {k}" if isinstance(v, int) else v for k, v in size.items())


def fixed(rows: list[dict[str, Any]]) -> str:
    """What is the same in all sizes, in words."""
    first = rows[0]["size"]
    return words({k: v for k, v in first.items() if all(row["size"][k] == v for row in rows)})


def outcome(measured: float, limit: float) -> str:
    """Whether a target was met."""
    return "met" if measured <= limit else "missed"


def on_time(rows: list[dict[str, Any]], target: dict[str, Any]) -> str:
    """A target in seconds, for the 95th percentile where there is one, else for the median."""
    limit, size = target["seconds"], {k: v for k, v in target.items() if k != "seconds"}
    (row,) = of_size(rows, size)
    median = next(iter(row["median_s"].values()))
    percentile = next(iter(row.get("p95_s", {}).values()), None)
    said = duration(median) + (f", 95 % within {duration(percentile)}" if percentile else "")
    return (
        f"Target: under {duration(limit)} at {words(size)}. "
        f"Measured: {said}, {outcome(percentile or median, limit)}."
    )


def beside(rows: list[dict[str, Any]], target: dict[str, Any]) -> str:
    """A target in a rival's time."""
    rival, limit, size = target["of"], target["at_most"], target["size"]
    measured = max(1 / row["times_ours"][rival] for row in of_size(rows, size))
    where = f" at {words(size)}" if size else ", at every size"
    return (
        f"Target: at most {limit} times {rival}'s time{where}. "
        f"Measured: {measured:.2f}, {outcome(measured, limit)}."
    )


def growth(rows: list[dict[str, Any]], limit: float) -> str:
    """A target for what twice the size costs; the fastest runs, since what disturbs others is not growth."""
    times = [min(next(iter(row["samples_s"].values()))) for row in rows]
    measured = max(b / a for a, b in pairwise(times))
    return (
        f"Target: twice the size takes at most {limit} times as long. "
        f"Measured, fastest runs: {measured:.2f}, {outcome(measured, limit)}."
    )


def rate(rows: list[dict[str, Any]], target: dict[str, Any]) -> str:
    """A target in operations a second."""
    (row,) = of_size(rows, target["size"])
    measured = row["size"]["operations"] / next(iter(row["median_s"].values()))
    limit = target["operations_per_s"]
    return (
        f"Target: at least {limit:,.0f} operations/s at {words(target['size'])}. "
        f"Measured: {measured:,.0f}, {outcome(limit, measured)}."
    )


def dearer(rows: list[dict[str, Any]], limit: float) -> str:
    """A target for what one operation costs at the largest size, in its cost at the smallest."""
    first, last = (next(iter(r["median_s"].values())) / r["size"]["operations"] for r in (rows[0], rows[-1]))
    return (
        f"Target: an operation at the largest size is at most {limit} times as dear as at the smallest. "
        f"Measured: {last / first:.2f}, {outcome(last / first, limit)}."
    )


def memory(rows: list[dict[str, Any]], limit: float) -> str:
    """A target for the most memory a process held."""
    peak = max(row["peak_bytes"] for row in rows)
    return f"Target: under {limit / 1e9:g} GB of memory. Measured: {peak / 1e9:.2f}, {outcome(peak, limit)}."


VERDICTS = {
    "target_s": on_time,
    "target_ratio": beside,
    "target_growth": growth,
    "target_rate": rate,
    "target_dearer": dearer,
    "target_bytes": memory,
}


def of_size(rows: list[dict[str, Any]], size: dict[str, int | str]) -> list[dict[str, Any]]:
    """The rows of a size that is named by some of its numbers."""
    return [row for row in rows if size.items() <= row["size"].items()]


class Benchmarks(SphinxDirective):
    """One section a technique that has been measured, and one for the explorers of all."""

    def run(self) -> list[nodes.Node]:
        """Build the sections; a sentence where nothing has been measured."""
        titles = {t.slug: t.title for t in TECHNIQUES} | {
            "serving": "The serving simulator",
            "engine": "The inference engine",
            "explorer": "The explorers, in the browser",
        }
        measured = {slug: title for slug, title in titles.items() if (RESULTS / f"{slug}.json").is_file()}
        if not measured:
            return [nodes.paragraph("", "Nothing has been measured yet: make bench does it.")]
        return [self._section(slug, title) for slug, title in measured.items()]

    def _section(self, slug: str, title: str) -> nodes.section:
        path = RESULTS / f"{slug}.json"
        self.env.note_dependency(str(path))
        report = json.loads(path.read_text())
        section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(slug)])
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
        said = [*filter(None, [fixed(rows)]), f"medians of {samples} runs or more."]
        yield text("h3", name)
        verdicts = [say(rows, benchmark[key]) for key, say in VERDICTS.items() if key in benchmark]
        sizes = "; ".join(said)
        yield text("p", " ".join([sizes[0].upper() + sizes[1:], *verdicts]))
        yield table(rows)


def setup(app: Sphinx) -> dict:
    """Register the directive."""
    app.add_directive("benchmarks", Benchmarks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
