"""One replica: a scheduler, what its iterations cost, and what it is computing now."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from math import inf

from gpuedu.continuous_batching.plan import Decision, Scheduler, Sequence
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.step_cost import StepCost

TICKS = 10**12
"""Ticks in a second. Whole numbers, so that many iterations at once end on the same tick as one by one."""


def to_ticks(seconds: float) -> int:
    """Seconds as ticks."""
    return round(seconds * TICKS)


@dataclass(slots=True)
class Usage:
    """What a replica did, summed over time.

    Parameters
    ----------
    busy_ticks : int
        Time in which it computed.
    slot_ticks : int
        Time summed over the sequences that computed for somebody.
    padding_ticks : int
        Time summed over the rows that computed for nobody.
    kv_ticks : float
        Time summed over the share of the KV cache in use; within a leap it is taken to grow evenly.
    in_system_ticks : int
        Time summed over the requests waiting or running.
    iterations, decisions, prompt_tokens, output_tokens, preemptions : int
        Counts; prompt tokens as often as they were computed.
    """

    busy_ticks: int = 0
    slot_ticks: int = 0
    padding_ticks: int = 0
    kv_ticks: float = 0.0
    in_system_ticks: int = 0
    iterations: int = 0
    decisions: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0


class Gaps:
    """The longest of the latest iterations, for every starting point: a stack that decreases."""

    __slots__ = ("_durations", "_numbers")

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._durations: list[int] = []

    def push(self, number: int, duration: int) -> None:
        """Decision ``number`` had iterations of at most this duration."""
        durations = self._durations
        while durations and durations[-1] <= duration:
            durations.pop()
            self._numbers.pop()
        durations.append(duration)
        self._numbers.append(number)

    def longest_after(self, number: int) -> int:
        """Longest duration in decisions later than ``number``; 0 if there are none."""
        index = bisect_right(self._numbers, number)
        return self._durations[index] if index < len(self._numbers) else 0


@dataclass(slots=True)
class Iterations:
    """Every decision that was carried out, as columns: who computed how much, from when to when."""

    replica: array = field(default_factory=lambda: array("q"))
    start_s: array = field(default_factory=lambda: array("d"))
    end_s: array = field(default_factory=lambda: array("d"))
    steps: array = field(default_factory=lambda: array("q"))
    decodes: array = field(default_factory=lambda: array("q"))
    chunk_tokens: array = field(default_factory=lambda: array("q"))
    padding: array = field(default_factory=lambda: array("q"))
    context_tokens: array = field(default_factory=lambda: array("q"))
    waiting: array = field(default_factory=lambda: array("q"))
    kv_usage: array = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)


class Replica:
    """A server: its scheduler and what an iteration costs.

    Parameters
    ----------
    scheduler : Scheduler
        Decides; with nothing in it.
    step_cost : StepCost
        Prices.

    Raises
    ------
    ValueError
        If the scheduler is not empty.
    """

    def __init__(self, scheduler: Scheduler, step_cost: StepCost) -> None:
        if scheduler.has_work():
            raise ValueError("scheduler: must be empty")
        self.scheduler = scheduler
        self.step_cost = step_cost
        self.outstanding = 0
        """Requests waiting or running."""
        self.outstanding_tokens = 0
        """Prompt and output tokens of those, all of each."""
        self.answers_at_the_end = not getattr(scheduler, "respond_early", True)
        """Whether nobody sees a token before the whole answer: a static batch that responds late."""
        self.usage = Usage()
        self.gaps = Gaps()
        self.decision: Decision | None = None
        self.steps = 0
        self.start = 0  # tick of the current decision
        self.version = 0  # of the event that ends it
        self.asked = False  # an event will ask for a decision
        self.in_rhythm = 0  # sequences that produce a token in every iteration now
        self.last_tick = 0
        self._first = 0  # ticks of the decision's first iteration
        self._growth = 0  # ticks by which each is longer than the one before
        self._lines: dict[int, tuple[int, int]] = {}  # by rows, where the line has no end
        self.fruitless = 0  # preemptions since somebody produced a token
        self._kv_usage = 0.0  # in the decision's first iteration

    def begin(self, now: int, leap: bool) -> bool:
        """Ask for a decision and price it; False if there is nothing to do."""
        decision = self.scheduler.schedule()
        if decision.is_empty:
            if self.scheduler.has_work():
                raise RuntimeError("the scheduler has requests and lets nobody compute")
            self.decision = None
            return False
        self.decision = decision
        self._kv_usage = 0.0 if self.scheduler.kv is None else self.scheduler.kv.usage
        self.start = now
        self.steps = decision.steps if leap else 1
        self._price(decision)
        self._watch_progress(decision)
        return True

    def _price(self, decision: Decision) -> None:
        """Ticks of the first iteration and their growth; fewer steps where the line ends."""
        rows = len(decision.decodes)
        context = decision.context_tokens
        if decision.chunks:
            chunks = [(tokens, sequence.num_computed_tokens) for sequence, tokens in decision.chunks]
            if decision.padding:
                chunks = self._padded(chunks)
            self._first = to_ticks(self.step_cost.seconds(rows, context, chunks))
            self._growth = 0
        else:
            rows += decision.padding
            context += decision.padding_context
            line = self._lines.get(rows)
            if line is None:
                line = self._line(rows, context)
            intercept, slope = line
            self._first = intercept + slope * context
            self._growth = slope * rows
        swapped = decision.swapped_in + decision.swapped_out
        if swapped:
            self._first += to_ticks(self.step_cost.swap_seconds(swapped))
            self.steps = 1
        if self._growth < 0:  # a table that falls: not beyond where it would reach 0
            self.steps = min(self.steps, max(1, -(-self._first // -self._growth)))
        if self._first <= 0:
            raise ValueError(f"step_cost={self.step_cost!r}: must take longer than a picosecond")

    @staticmethod
    def _padded(chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """A static batch computes every prompt at the longest one's length."""
        longest = max(tokens for tokens, _ in chunks)
        return [(longest, 0)] * len(chunks)

    def _line(self, rows: int, context: int) -> tuple[int, int]:
        intercept_s, slope_s, last = self.step_cost.line(rows, context)
        line = to_ticks(intercept_s), to_ticks(slope_s)
        if last < inf:
            self.steps = min(self.steps, int((last - context) // rows) + 1)
        elif self._is_straight(rows, line):
            self._lines[rows] = line
        return line

    def _is_straight(self, rows: int, line: tuple[int, int]) -> bool:
        """Whether the same line holds at an empty cache, and so everywhere."""
        intercept_s, slope_s, last = self.step_cost.line(rows, 0)
        return last == inf and (to_ticks(intercept_s), to_ticks(slope_s)) == line

    def _watch_progress(self, decision: Decision) -> None:
        """Raise if sequences only push each other out of the cache."""
        if decision.decodes:
            self.fruitless = 0
        elif decision.preempted:
            self.fruitless += 1
        if self.fruitless > 1000:
            raise RuntimeError(
                "sequences preempt each other and none gets on; admit less: reserve_full_prompt, watermark"
            )

    def end_of(self, steps: int) -> int:
        """Tick at which so many iterations of the decision are over."""
        return self.start + steps * self._first + self._growth * (steps * (steps - 1) // 2)

    def cut(self, now: int) -> bool:
        """End the decision with the iteration under way at ``now``; whether that is earlier than planned."""
        low, high = 1, self.steps
        while low < high:
            middle = (low + high) // 2
            if self.end_of(middle) >= now:
                high = middle
            else:
                low = middle + 1
        sooner = low < self.steps
        self.steps = low
        return sooner

    def kv_usage(self) -> float:
        """Share of the KV cache in use over the decision under way, on average."""
        kv = self.scheduler.kv
        if self.steps == 1 or not isinstance(kv, BlockCounter):
            return self._kv_usage
        return self._kv_usage + kv.blocks_for_iterations(self.steps - 1) / kv.num_blocks / 2

    def finish(self, now: int) -> list[Sequence]:
        """The decision is carried out; returns who is finished."""
        decision, steps, usage = self.decision, self.steps, self.usage
        elapsed = now - self.start
        usage.kv_ticks += elapsed * self.kv_usage()
        finished = self.scheduler.update(decision, steps)
        usage.decisions += 1
        usage.iterations += steps
        usage.busy_ticks += elapsed
        rows = len(decision.decodes)
        usage.slot_ticks += elapsed * (rows + len(decision.chunks))
        if decision.chunks:
            usage.prompt_tokens += sum(tokens for _, tokens in decision.chunks)
        elif decision.padding:
            usage.padding_ticks += elapsed * decision.padding
        usage.output_tokens += rows * steps
        self.gaps.push(usage.decisions, self._first + max(0, self._growth * (steps - 1)))
        return finished

    def count_until(self, now: int) -> None:
        """Sum what is in the system up to ``now``."""
        self.usage.in_system_ticks += self.outstanding * (now - self.last_tick)
        self.last_tick = now
