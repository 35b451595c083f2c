"""The slots explorer: a backlog in static and in continuous batches, side by side."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from gpuedu.continuous_batching.cost import SlotChart, slot_chart, static_occupancy
from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    SchedulerConfig,
    Sequence,
    StaticBatching,
)
from gpuedu.explorer import Choice, Explorer, Integer, Preset, Step, Table
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.workload import TRAFFIC, Exponential, Fixed, Lengths, Uniform, draw

from .slot_figure import slot_figure

LENGTHS = {
    "exponential": "Exponential",
    "uniform": "Uniform",
    "fixed": "All equal",
    "azure_conversation": "Azure, conversation",
    "azure_code": "Azure, code",
}


def _lengths(lengths: str, mean: int) -> Lengths:
    match lengths:
        case "exponential":
            return Exponential(mean)
        case "uniform":
            return Uniform(1, 2 * mean - 1)
        case "fixed":
            return Fixed(mean)
    return TRAFFIC[lengths].output


@lru_cache(maxsize=64)
def _charts(lengths: str, batch: int, requests: int, mean: int, seed: int) -> dict[str, SlotChart]:
    random = Random(seed)
    distribution = _lengths(lengths, mean)
    outputs = [draw(distribution, random) for _ in range(requests)]

    def backlog() -> list[Sequence]:
        return [Sequence(number, 1, tokens) for number, tokens in enumerate(outputs)]

    config = SchedulerConfig(max_num_seqs=batch, max_num_batched_tokens=batch)
    continuous = LeapingVLLMScheduler(config, BlockCounter(2**30))
    return {
        "static": slot_chart(StaticBatching(batch, respond_early=True), backlog(), batch),
        "continuous": slot_chart(continuous, backlog(), batch),
    }


@lru_cache(maxsize=64)
def _derived(lengths: str, batch: int, mean: int) -> float:
    return static_occupancy(_lengths(lengths, mean), batch)


def _moments(charts: dict[str, SlotChart]) -> list[int]:
    """Iterations after which somebody has come or gone in either chart."""
    return sorted({span.end for chart in charts.values() for span in chart.spans})


def explorer_steps(*, step: int | None, **values) -> int:
    """The last step: the moments at which a request ends, less one."""
    return len(_moments(_charts(**values))) - 1


def _until(step: int | None, charts: dict[str, SlotChart]) -> int | None:
    return None if step is None else _moments(charts)[step]


def explorer_figure(*, step: int | None, **values) -> dict:
    """Both charts, through ``step`` where one is given."""
    charts = _charts(**values)
    derived = _derived(values["lengths"], values["batch"], values["mean"])
    return slot_figure(charts, derived=derived, until=_until(step, charts))


def explorer_takeaway(*, step: int | None, **values) -> str:
    """One sentence: how full the slots are, and how much sooner the same tokens are there."""
    charts = _charts(**values)
    static, continuous = charts["static"], charts["continuous"]
    derived = _derived(values["lengths"], values["batch"], values["mean"])
    return (
        f"Static batches leave **{100 * (1 - static.occupancy):.0f} %** of the slots to nobody "
        f"(derived: {100 * (1 - derived):.0f} %), continuous ones {100 * (1 - continuous.occupancy):.0f} %: "
        f"the same tokens in {continuous.iterations} instead of {static.iterations} iterations, "
        f"**{static.iterations / continuous.iterations:.2f} times** as fast if an iteration always takes "
        "the same."
    )


def explorer_table(*, step: int | None, **values) -> Table:
    """Every request: how it was batched, its slot, its iterations."""
    rows = tuple(
        (name, span.request_id, span.slot, span.start, span.prefilled, span.end)
        for name, chart in _charts(**values).items()
        for span in chart.spans
    )
    return Table(("batching", "request", "slot", "start", "prompt done", "end"), rows)


def explorer_unused(*, lengths: str, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = ("mean",) if lengths.startswith("azure") else ()
    return (*unused, "seed") if lengths == "fixed" else unused


explorer = Explorer(
    id="batching-slots",
    title="Slots by iterations",
    controls=(
        Choice("lengths", "Lengths of answers", LENGTHS, "exponential"),
        Integer("batch", "Slots B", 2, 16, 8, help="sequences that run at once"),
        Integer("requests", "Requests", 8, 128, 64, help="all there from the beginning"),
        Integer("mean", "Mean length", 2, 100, 20, unit="tokens"),
        Integer("seed", "Draw", 0, 20, 1, help="another draw from the same distribution"),
        Step("step", "Step through", help="one request that ends"),
    ),
    presets=(
        Preset("exponential", "Unequal lengths"),
        Preset("equal", "Equal lengths", {"lengths": "fixed"}),
        Preset("uniform", "Less unequal", {"lengths": "uniform"}),
        Preset("large", "A larger batch", {"batch": 16, "requests": 128}),
        Preset("chat", "Chat", {"lengths": "azure_conversation"}),
        Preset("code", "Code", {"lengths": "azure_code", "requests": 128}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    steps=explorer_steps,
    unused=explorer_unused,
)  # fmt: skip
