"""How long a reader waits for an explorer: measured in Chromium, on the built book, from input to paint.

Run with ``python -m benchmarks.explorer``, after ``make html``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks._harness import row, write
from gpuedu.continuous_batching.cost import BATCHING
from gpuedu.continuous_batching.plot import frontier_explorer

sys.path.append(str(Path(__file__).resolve().parents[1] / "book"))
import serve


@dataclass(frozen=True)
class Card:
    """An explorer and the page on which it stands."""

    page: str
    id: str

    def slider(self, control: str) -> str:
        """Selector of a control's slider."""
        return f'#{self.id} [data-control="{control}"] input[type=range]'

    def choice(self, control: str) -> str:
        """Selector of a control's list."""
        return f"#{self.id}-{control}"


SCHEDULE = Card("training/pipeline_parallel.html", "pipeline-schedule")
MEMORY = Card("acceleration/paged_attention.html", "kv-memory")
SLOTS = Card("acceleration/continuous_batching.html", "batching-slots")
FRONTIER = Card("acceleration/continuous_batching.html", "latency-throughput")
PRESETS = ("gpipe", "1f1b", "interleaved", "zero_bubble", "slow_network", "naive")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# Does `change` to the card, and says after how many seconds the browser has painted what follows from it
TIMED = """
async (change) => {
  const field = document.querySelector(change.selector);
  const shown = new Promise((resolve) => {
    new MutationObserver(resolve).observe(field.closest(".explorer"), { attributeFilter: ["data-values"] });
  });
  const start = performance.now();
  field.focus();
  if (change.value === undefined) field.click();
  else {
    field.value = change.value;
    field.dispatchEvent(new Event(change.event, { bubbles: true }));
  }
  await shown;
  await new Promise(requestAnimationFrame); // just before the paint
  await new Promise((resolve) => setTimeout(resolve)); // and after it
  return (performance.now() - start) / 1000;
}
"""


@contextmanager
def book_page(address: str, card: Card, view: str = "") -> Iterator[Page]:
    """The chapter in a browser that has never seen it, its figure drawn."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{address}{card.page}#{card.id}{view}", wait_until="networkidle")
        page.locator(f"#{card.id}[data-state=ready][data-values]").wait_for()
        page.wait_for_timeout(500)
        yield page
        browser.close()


def preset_switch(address: str) -> dict:
    with book_page(address, SCHEDULE) as page:
        radios = [f'#{SCHEDULE.id} input[value="{preset}"]' for preset in PRESETS]
        seconds = [page.evaluate(TIMED, {"selector": radio}) for _ in range(5) for radio in radios]
    return benchmark("switch to another preset", {"presets": len(PRESETS)}, seconds, 0.150)


def cold_start(address: str) -> dict:
    seconds = []
    for _ in range(5):
        with book_page(address, SCHEDULE) as page:
            change = {"selector": f"#{SCHEDULE.id}-m", "value": "12", "event": "change"}
            seconds.append(page.evaluate(TIMED, change))
    return benchmark("first value that is no preset, from a cold start", {"repeats": 5}, seconds, 4.0)


def moved(address: str, card: Card, view: str, selector: str, values: Iterable[float | str]) -> list[float]:
    """Seconds from each value of a control to its picture; the view is no preset, so Python runs already."""
    event = "input" if "range" in selector else "change"
    with book_page(address, card, view) as page:
        return [
            page.evaluate(TIMED, {"selector": selector, "value": value, "event": event}) for value in values
        ]


def schedule_moves(address: str, stages: int, microbatches: int, target_s: float) -> dict:
    view = f"?schedule=zb_h1&p={stages}&m={microbatches}"
    delays = [step / 20 for step in range(1, 41)]
    seconds = moved(address, SCHEDULE, view, SCHEDULE.slider("transfer"), delays)
    bars = 3 * stages * microbatches
    return benchmark("a slider's move, Python being ready", {"bars": bars}, seconds, target_s)


def serving_moves(address: str) -> list[dict]:
    """Explorers of serving: a move that simulates anew, every value a new one."""
    steps = moved(address, MEMORY, "?block_size=32", MEMORY.slider("step"), range(39))
    draws = moved(address, SLOTS, "?requests=128", SLOTS.slider("mean"), range(50, 90))
    loads = [rate for rate in range(1, 21) if rate not in frontier_explorer.RATES]
    loaded = [
        seconds
        for seqs in (64, 256)
        for seconds in moved(address, FRONTIER, f"?seqs={seqs}", FRONTIER.slider("rate"), loads)
    ]
    batches = moved(address, FRONTIER, "?rate=7", FRONTIER.choice("seqs"), ("8", "16", "64", "128", "256"))
    simulated = len(BATCHING) * frontier_explorer.REQUESTS
    lines = simulated * (len(frontier_explorer.RATES) + 1)
    return [
        benchmark("a step through memory", {"ticks": len(steps)}, steps, 0.300),
        benchmark("another draw of slots", {"requests": 128}, draws, 0.300),
        benchmark("another load on the frontier", {"requests": simulated}, loaded, 0.300),
        benchmark("another frontier", {"requests": lines}, batches, 1.0),
    ]


def benchmark(name: str, size: dict[str, int], seconds: list[float], target_s: float) -> dict:
    """One result; the target is for the 95th percentile, and for the median where samples are few."""
    measured = row(size, {"gpuedu": seconds})
    del measured["times_ours"]  # there is no rival
    p95 = statistics.quantiles(seconds, n=20)[-1] if len(seconds) >= 20 else None
    if p95 is not None:
        measured["p95_s"] = {"gpuedu": p95}
    median = measured["median_s"]["gpuedu"]
    reached = median if p95 is None else p95
    print(
        f"{name}, {size}: median {1e3 * median:.0f} ms, worst {1e3 * max(seconds):.0f} ms,",
        f"p95 {1e3 * p95:.0f} ms," if p95 else "",
        f"target {1e3 * target_s:.0f} ms {'met' if reached < target_s else 'MISSED'}",
    )
    return {"name": name, "target_s": size | {"seconds": target_s}, "rows": [measured]}


def main() -> None:
    if not (serve.SITE / SCHEDULE.page).is_file():
        sys.exit("The book is not built: run `make html`.")
    with serve.server() as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{host.server_port}/"
        results = [
            preset_switch(address),
            cold_start(address),
            schedule_moves(address, 8, 32, 0.150),
            schedule_moves(address, 16, 64, 0.300),
            *serving_moves(address),
        ]
        host.shutdown()
    print(write("explorer", ["playwright"], results).name)


if __name__ == "__main__":
    main()
