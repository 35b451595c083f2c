"""What deciding costs: leaping against one decision an iteration, and a move of an explorer.

Run with ``python -m benchmarks.continuous_batching``. The rival is the scheduler that one writes first: it
looks at every sequence in every iteration, as vLLM's does.
"""

from __future__ import annotations

from benchmarks._harness import row, sample, write
from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    SchedulerConfig,
    Sequence,
    VLLMScheduler,
)
from gpuedu.continuous_batching.plot import frontier, slots
from gpuedu.continuous_batching.plot.frontier_explorer import _point
from gpuedu.continuous_batching.plot.slots_explorer import _charts
from gpuedu.explorer import Explorer
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.workload import TRAFFIC, AllAtOnce, Request, make_requests

TRAFFIC_NAME = "azure_conversation"


def backlog(count: int) -> list[Request]:
    """Requests of a real trace's lengths, all there at once."""
    traffic = TRAFFIC[TRAFFIC_NAME]
    return make_requests(count, AllAtOnce(), traffic.prompt, traffic.output)


def drain(kind: type, requests: list[Request], seqs: int) -> int:
    """Work off a backlog; returns the iterations it took."""
    config = SchedulerConfig(max_num_seqs=seqs, max_num_batched_tokens=8192)
    scheduler = kind(config, BlockCounter(2**30))
    for request in requests:
        scheduler.add(Sequence(request.request_id, request.prompt_tokens, request.output_tokens))
    iterations = 0
    while scheduler.has_work():
        decision = scheduler.schedule()
        scheduler.update(decision, decision.steps)
        iterations += decision.steps
    return iterations


def decisions() -> dict:
    """Both schedulers over the same backlog, for batches of doubled size."""
    rows = []
    for seqs in (32, 64, 128, 256):
        requests = backlog(4 * seqs)
        assert drain(LeapingVLLMScheduler, requests, seqs) == drain(VLLMScheduler, requests, seqs)
        samples = {
            name: sample(lambda kind=kind, requests=requests, seqs=seqs: drain(kind, requests, seqs), 5)
            for name, kind in (("leaping", LeapingVLLMScheduler), ("one by one", VLLMScheduler))
        }
        size = {"max_num_seqs": seqs, "requests": len(requests), "lengths": TRAFFIC_NAME}
        rows.append(row(size, samples))
    return {"name": "work off a backlog: decisions alone", "rows": rows}


def cold(explorer: Explorer, values: dict) -> None:
    """One move with nothing remembered, as the page's worker answers it."""
    _point.cache_clear()
    _charts.cache_clear()
    explorer.show_json(values, table=False)


def moves() -> list[dict]:
    """Seconds of one move of each explorer, in CPython."""
    benchmarks = []
    for explorer in (slots, frontier):
        rows = []
        for preset in explorer.presets:
            values = explorer.values_of(preset)
            seconds = sample(lambda explorer=explorer, values=values: cold(explorer, values), 5)
            rows.append(row({"explorer": explorer.id, "preset": preset.name}, {"gpuedu": seconds}))
        benchmarks.append({"name": f"a move of the explorer {explorer.id}", "rows": rows})
    return benchmarks


def main() -> None:
    """Measure and write the result."""
    print(write("continuous_batching", [], [decisions(), *moves()]))


if __name__ == "__main__":
    main()
