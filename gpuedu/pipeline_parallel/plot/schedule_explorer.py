"""The schedule explorer: its controls, its presets, and what it shows for them.

Its functions take every control by keyword; plans and prices are memoized, so that a step through one
costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Table
from gpuedu.pipeline_parallel.cost import Timeline, peak_activations, timeline
from gpuedu.pipeline_parallel.plan import (
    Schedule,
    dualpipe_v,
    gpipe,
    interleaved_1f1b,
    naive,
    one_f_one_b,
    validate,
    zb_auto,
    zb_h1,
    zb_h2,
    zb_v,
)
from gpuedu.pipeline_parallel.plot.gantt import gantt

NAMES = {
    "naive": "Naive",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved 1F1B",
    "zb_h1": "ZB-H1",
    "zb_h2": "ZB-H2",
    "zb_v": "ZB-V",
    "dualpipe_v": "DualPipeV",
    "zb_auto": "Zero-bubble search",
}


@lru_cache(maxsize=64)
def _plan(schedule, p, m, chunks, memory, f, i, w, transfer) -> Schedule:
    simple = {"naive": naive, "gpipe": gpipe, "1f1b": one_f_one_b, "zb_h1": zb_h1, "zb_h2": zb_h2}
    simple |= {"zb_v": zb_v, "dualpipe_v": dualpipe_v}
    match schedule:
        case "interleaved":
            plan = interleaved_1f1b(p, m, chunks)
        case "zb_auto":
            plan = zb_auto(p, m, memory, f, i, w, transfer)
        case _:
            plan = simple[schedule](p, m)
    validate(plan)
    return plan


@lru_cache(maxsize=64)
def _price(schedule, p, m, chunks, memory, f, i, w, transfer) -> Timeline:
    # Only the search looks at times; every other plan is one cache entry whatever a pass costs.
    times = (f, i, w, transfer) if schedule == "zb_auto" else (1, 1, 1, 0)
    plan = _plan(schedule, p, m, chunks, memory, *times)
    return timeline(plan, forward=f, backward_input=i, backward_weight=w, transfer=transfer)


def explorer_figure(*, step: int | None, **values) -> dict:
    """The Gantt figure for the explorer's values, through ``step`` where one is given.

    A step lasts to the next moment at which something begins: what begins with it can be seen.
    """
    priced = _price(**values)
    ends = [*_moments(priced)[1:], float(priced.makespan)]
    return gantt(priced, until=None if step is None else ends[step])


def explorer_steps(*, step: int | None, **values) -> int:
    """The last step: the moments at which something begins, less one."""
    return len(_moments(_price(**values))) - 1


def _moments(priced: Timeline) -> Sequence[float]:
    """When something begins; sums of the same times in another order differ in their last digits."""
    starts = sorted(float(start) for starts in priced.starts for start in starts)
    return list({round(start, 9): start for start in reversed(starts)}.values())[::-1]


def explorer_unused(*, schedule: str, p: int, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    if schedule != "interleaved":
        unused.append("chunks")
    if schedule != "zb_auto":
        unused.append("memory")
    if p == 1:
        unused.append("transfer")
    return tuple(unused)


def explorer_takeaway(*, step: int | None, **values) -> str:
    """One sentence: the bubble, the memory, and what the network adds."""
    priced = _price(**values)
    peaks = peak_activations(priced.schedule)
    holds = max(peaks)
    rank = peaks.index(holds)
    share = 100 * float(priced.bubble_share)
    text = (
        f"{NAMES[values['schedule']]}: the busiest GPU waits **{share:.1f} %** of the step, "
        f"and rank {rank} holds **{_plural(float(holds), 'microbatch', 'microbatches')}**."
    )
    if values["transfer"] and values["p"] > 1:
        added = float(priced.makespan - _price(**values | {"transfer": 0.0}).makespan)
        text += f" Of its {float(priced.makespan):.4g} units of time, the network adds **{added:.4g}**."
    return text


def _plural(count: float, one: str, many: str) -> str:
    return f"{count:.3g} {one if count == 1 else many}"


def explorer_table(*, step: int | None, **values) -> Table:
    """Every action drawn: rank, kind, microbatch, chunk, start and end."""
    priced = _price(**values)
    rows = (
        (a.stage, a.kind.value, a.microbatch, a.chunk, round(float(start), 4), round(float(stop), 4))
        for actions, starts, ends in zip(priced.schedule.actions, priced.starts, priced.ends, strict=True)
        for a, start, stop in zip(actions, starts, ends, strict=True)
    )
    return Table(("rank", "pass", "microbatch", "chunk", "start", "end"), tuple(rows))


explorer = Explorer(
    id="pipeline-schedule",
    title="The schedule explorer",
    controls=(
        Choice("schedule", "Schedule", NAMES, "gpipe"),
        Integer("p", "Stages p", 1, 16, 4, help="GPUs in the pipeline, one stage each"),
        Integer("m", "Microbatches m", 1, 64, 8, help="pieces the batch is cut into"),
        Integer("chunks", "Chunks per stage v", 1, 4, 2, help="model chunks on each GPU; interleaved only"),
        Real("memory", "Memory limit", 1, 32, 8, 0.5, unit="microbatches",
             help="activations a rank may hold; zero-bubble search only"),
        Real("f", "Forward F", 0.25, 4, 1, 0.25, help="time of a forward pass through one stage"),
        Real("i", "Input gradient I", 0.25, 4, 1, 0.25, help="time of the gradient of a stage's input"),
        Real("w", "Weight gradient W", 0.25, 4, 1, 0.25, help="time of the gradient of its weights"),
        Real("transfer", "Transfer per hop", 0, 2, 0, 0.05, help="delay from one stage to the next"),
        Step("step", "Step through", help="one moment at which something begins"),
    ),
    presets=(
        Preset("naive", "Naive", {"schedule": "naive"}),
        Preset("gpipe", "GPipe", {"schedule": "gpipe"}),
        Preset("1f1b", "1F1B", {"schedule": "1f1b"}),
        Preset("interleaved", "Interleaved", {"schedule": "interleaved", "chunks": 2}),
        Preset("zero_bubble", "Zero-bubble", {"schedule": "zb_h2"}),
        Preset("slow_network", "Slow network", {"schedule": "1f1b", "transfer": 0.5}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    steps=explorer_steps,
    unused=explorer_unused,
)  # fmt: skip
