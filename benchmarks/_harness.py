"""What every benchmark shares: take samples, say on what machine, write the result as JSON."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def sample(function: Callable[[], Any], repeats: int = 7) -> list[float]:
    """Wall-clock seconds of ``repeats`` calls, after one that is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def row(size: dict[str, Any], samples: dict[str, list[float]]) -> dict[str, Any]:
    """One size: raw samples in seconds, medians, and each rival's median over the first entry's."""
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    ours, *rivals = medians
    return {
        "size": size,
        "samples_s": samples,
        "median_s": medians,
        "times_ours": {name: medians[name] / medians[ours] for name in rivals},
    }


def write(slug: str, packages: Iterable[str], benchmarks: list[dict[str, Any]]) -> Path:
    """Write ``results/<slug>.json`` with the machine, the versions of ``packages`` and ``benchmarks``."""
    report = {
        "slug": slug,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in packages},
        "benchmarks": benchmarks,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
