"""What a scheduler decides, what it is told, and what every scheduler can do."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from gpuedu.checks import check_amount, check_count

from .sequence import Sequence

POLICIES = ("fcfs", "priority", "vtc", "shortest_predicted")
PREEMPTIONS = ("recompute", "swap")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The limits of one iteration and the rules of the queue; the names are vLLM's.

    Parameters
    ----------
    max_num_seqs : int
        Sequences that run at once.
    max_num_batched_tokens : int
        Tokens that one iteration computes at most.
    long_prefill_token_threshold : int
        Tokens that one sequence computes in one iteration at most, unless it is the only one there is;
        0 means no such limit.
    enable_chunked_prefill : bool
        Whether a prompt that exceeds what is left of the budget is cut, or waits.
    reserve_full_prompt : bool
        Whether a sequence is admitted only if all its tokens fit the free blocks, and not its first
        chunk alone (vLLM's ``scheduler_reserve_full_isl``).
    watermark : float
        Share of the blocks that an admission must leave free while others run.
    policy : str
        ``"fcfs"``, ``"priority"``, ``"vtc"`` (fairness between clients) or ``"shortest_predicted"``.
    preemption : str
        ``"recompute"`` throws the victim's keys and values away; ``"swap"`` moves them to the host,
        as far as there is room.
    starvation_limit : int
        Under ``"shortest_predicted"``: after so many admissions a waiting request goes first.

    Raises
    ------
    TypeError, ValueError
        For a limit out of range or a rule of another name.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int = 0
    enable_chunked_prefill: bool = True
    reserve_full_prompt: bool = True
    watermark: float = 0.0
    policy: str = "fcfs"
    preemption: str = "recompute"
    starvation_limit: int = 256

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "starvation_limit"):
            check_count(name, getattr(self, name))
        check_count("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        check_amount("watermark", self.watermark)
        if self.watermark >= 1:
            raise ValueError(f"watermark={self.watermark}: must be below 1, it is a share of the blocks")
        if self.long_prefill_token_threshold and not self.enable_chunked_prefill:
            raise ValueError(
                f"long_prefill_token_threshold={self.long_prefill_token_threshold}: must be 0 "
                "without chunked prefill"
            )
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: must be one of {', '.join(POLICIES)}")
        if self.preemption not in PREEMPTIONS:
            raise ValueError(f"preemption={self.preemption!r}: must be one of {', '.join(PREEMPTIONS)}")


@dataclass(slots=True)
class Decision:
    """Who computes in the next iteration, and for how many iterations that holds.

    Parameters
    ----------
    chunks : list of (Sequence, int)
        Sequences that compute tokens of their prompt (or, after a preemption, tokens once more), and how
        many each; one that thereby catches up produces a token.
    decodes : list of Sequence
        Sequences that compute the one token they produced last, and produce another.
    context_tokens : int
        Tokens in the cache of all ``decodes`` together, before the first iteration.
    steps : int
        For how many iterations this holds, unless a request arrives that changes it.
    admitted, preempted : list of Sequence
        Who came from the queue, and who went back to it, before the iteration.
    padding : int
        Tokens of one iteration that are computed for nobody: a static batch's padding to its longest
        prompt, or the rows of its members that are finished.
    padding_context : int
        Tokens in the cache that the padding reads, before the first iteration.
    swapped_in, swapped_out : int
        Blocks that move between host and GPU before the iteration.
    """

    chunks: list[tuple[Sequence, int]]
    decodes: Items[Sequence]
    context_tokens: int = 0
    steps: int = 1
    admitted: Items[Sequence] = ()
    preempted: Items[Sequence] = ()
    padding: int = 0
    padding_context: int = 0
    swapped_in: int = 0
    swapped_out: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nobody computes anything."""
        return not self.chunks and not self.decodes

    @property
    def num_scheduled_tokens(self) -> dict[Hashable, int]:
        """Tokens that each request computes in one iteration, by its id."""
        scheduled = {sequence.request_id: 1 for sequence in self.decodes}
        scheduled.update((sequence.request_id, tokens) for sequence, tokens in self.chunks)
        return scheduled


class Scheduler(Protocol):
    """What a simulator or an engine asks of a scheduler.

    The turn is ``schedule``, compute, ``update``; ``add`` may come at any time, ``abort`` between
    ``update`` and ``schedule``.
    """

    running: Items[Sequence]
    waiting: Collection[Sequence]

    def add(self, sequence: Sequence) -> bool:
        """Put a request into the queue; whether the decision in force could now be another."""

    def abort(self, request_id: Hashable) -> None:
        """Drop a request, wherever it is; KeyError if it is unknown."""

    def schedule(self) -> Decision:
        """Decide the next iteration."""

    def update(
        self,
        decision: Decision,
        steps: int = 1,
        tokens: Mapping[Hashable, int] | None = None,
        stopped: Collection[Hashable] = (),
    ) -> list[Sequence]:
        """Take note of what has been computed; returns who is finished."""

    def has_work(self) -> bool:
        """Whether anybody runs or waits."""
