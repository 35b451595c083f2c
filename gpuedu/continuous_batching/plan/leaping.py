"""The same decisions for many iterations at once: what lets a simulator leap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from heapq import heapify, heappop, heappush

from gpuedu.paged_attention.plan.counting import BlockCounter

from .decision import Decision, SchedulerConfig
from .sequence import Sequence
from .vllm import VLLMScheduler


class LeapingVLLMScheduler(VLLMScheduler):
    """Decides as :class:`VLLMScheduler`, at a cost that does not grow with the batch or with time.

    Parameters
    ----------
    config : SchedulerConfig
        Limits and rules.
    kv : BlockCounter
        Counts the blocks; empty.

    Raises
    ------
    TypeError
        For a KV cache that does not tell how many iterations fit.

    Notes
    -----
    Sequences that decode run in lockstep: one token each, every iteration. They are not touched until one
    of them is finished or preempted; a common counter of iterations stands for all their progress, a heap
    says who is finished first, and ``BlockCounter`` how long the free blocks last. Whatever breaks
    the step (too few blocks, a budget smaller than the batch) dissolves the group: the rules of
    :class:`VLLMScheduler` decide that iteration one sequence at a time, and the group forms again.

    While a sequence is in the group, its counts are those from when it joined.

    Examples
    --------
    >>> scheduler = LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(100))
    >>> for name, output in ("a", 50), ("b", 20):
    ...     _ = scheduler.add(Sequence(name, prompt_tokens=10, max_tokens=output))
    >>> while scheduler.has_work():
    ...     decision = scheduler.schedule()
    ...     print(decision.steps, len(decision.decodes), scheduler.update(decision, decision.steps))
    1 0 []
    19 2 [Sequence('b': 29 of 30 computed)]
    30 1 [Sequence('a': 59 of 60 computed)]
    """

    def __init__(self, config: SchedulerConfig, kv: BlockCounter) -> None:
        if not hasattr(kv, "iterations_that_fit"):
            raise TypeError(f"kv={kv!r}: must be a BlockCounter or like one; VLLMScheduler takes any manager")
        super().__init__(config, kv)
        self._group: dict[Sequence, int] = {}  # member: the iteration after which it joined
        self._last_place = 0  # no member was admitted later than this
        self._others: list[Sequence] = []  # running, but not in the group
        self._iterations = 0
        self._finishes: list[tuple[int, int, Sequence]] = []
        self._members_of: Counter[Hashable] = Counter()  # by client, where the queue counts service
        self._leaps = False
        self._beside: list[tuple[Sequence, int]] = []  # who decodes in this decision without the group
        self._context_tokens = 0  # in the cache of all members together

    # The group

    def _join(self, sequence: Sequence) -> None:
        self._group[sequence] = self._iterations
        self._last_place = max(self._last_place, sequence.place)
        self.kv.join(sequence)
        self._context_tokens += sequence.num_computed_tokens
        left = sequence.max_tokens - sequence.num_tokens + sequence.prompt_tokens
        heappush(self._finishes, (self._iterations + left, sequence.place, sequence))
        if self.waiting.counts_service:
            self._members_of[sequence.client] += 1

    def _leave(self, sequence: Sequence) -> None:
        gone = self._iterations - self._group.pop(sequence)
        sequence.num_computed_tokens += gone
        sequence.num_tokens += gone
        self.kv.leave(sequence)
        self._context_tokens -= sequence.num_computed_tokens
        if self.waiting.counts_service:
            self._members_of[sequence.client] -= 1

    def _dissolve(self) -> None:
        for sequence in list(self._group):
            self._leave(sequence)
        self._finishes.clear()
        self._last_place = 0

    def abort(self, request_id: Hashable) -> None:
        """Drop a request, wherever it is; KeyError if it is unknown."""
        sequence = self._sequences.get(request_id)
        if sequence in self._group:
            self._leave(sequence)
            self._finishes = [entry for entry in self._finishes if entry[2] is not sequence]
            heapify(self._finishes)
        elif sequence in self._others:
            self._others.remove(sequence)
        super().abort(request_id)

    # One decision

    def schedule(self) -> Decision:
        """Decide the next iteration, and for how many it holds."""
        self._let_in()
        chunks = self._chunks_beside_the_group()
        self._leaps = chunks is not None
        if not self._leaps:
            self._dissolve()
            return super().schedule()
        decision = Decision(chunks, [], self._context_tokens, admitted=[])
        scheduled = dict(chunks)
        self.kv.advance(1)
        for sequence, tokens in chunks:
            self.kv.allocate_slots(sequence, tokens)
        budget = self.config.max_num_batched_tokens - len(self._group) - sum(scheduled.values())
        if self.waiting:
            scheduled.clear()
            self._schedule_waiting(decision, scheduled, budget)
            self._others += scheduled
            chunks += scheduled.items()
        decision.decodes = list(self._group)
        self._beside = [chunk for chunk in chunks if chunk[0].decoding]
        if self._beside:
            decision.decodes += [sequence for sequence, _ in self._beside]
            decision.context_tokens += sum(sequence.num_computed_tokens for sequence, _ in self._beside)
            decision.chunks = [chunk for chunk in chunks if not chunk[0].decoding]
        if self._group and not chunks:
            decision.steps = self._steps()
        return decision

    def _chunks_beside_the_group(self) -> list[tuple[Sequence, int]] | None:
        """What the other running sequences compute; None if the group cannot simply go on beside them."""
        budget = self.config.max_num_batched_tokens - len(self._group)
        if budget < 0:
            return None
        needed = self.kv.blocks_for_iterations(1)
        chunks = []
        if self._others:
            wanted = [(sequence, self._tokens_wanted(sequence)) for sequence in self._others]
            behind = self._others[0].place > self._last_place
            if not behind and sum(tokens for _, tokens in wanted) > budget:
                return None
            for sequence, tokens in wanted:
                tokens = min(tokens, budget)
                if tokens == 0:
                    break
                budget -= tokens
                needed += self.kv.blocks_to_allocate(sequence, tokens)
                chunks.append((sequence, tokens))
        return chunks if needed <= self.kv.num_free_blocks else None

    def _steps(self) -> int:
        """For how many iterations the group goes on: until a member is finished or a block is lacking."""
        finishes = self._finishes
        while finishes[0][2] not in self._group:
            heappop(finishes)
        full = len(self.running) >= self.config.max_num_seqs
        if self.waiting and not (self.waiting.order_is_fixed or full):
            return 1
        left = finishes[0][0] - self._iterations
        return 1 + self.kv.iterations_that_fit(left - 1) if left > 1 else 1

    def only_places_run_out(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether requests wait for nothing but a place, and those who have one never for each other.

        Parameters
        ----------
        prompt_tokens : int
            Of each, at most.
        tokens : int
            Of prompt and answer of each, at most.

        Returns
        -------
        bool
            Whether places are given in the order of arrival, and ``max_num_seqs`` requests of that size are
            within the token budget and the blocks in every iteration. It says nothing where it is False.
        """
        config, kv = self.config, self.kv
        blocks = config.max_num_seqs * -(-tokens // kv.block_size)
        return (
            config.policy == "fcfs"
            and config.enable_chunked_prefill
            and config.max_num_seqs * prompt_tokens <= config.max_num_batched_tokens
            and blocks + self._watermark_blocks <= kv.num_free_blocks
            and not 0 < config.long_prefill_token_threshold < prompt_tokens
        )

    # What came of it

    def update(
        self,
        decision: Decision,
        steps: int = 1,
        tokens: Mapping[Hashable, int] | None = None,
        stopped: Collection[Hashable] = (),
    ) -> list[Sequence]:
        """Take note of what has been computed; see :meth:`VLLMScheduler.update`."""
        if tokens is not None or stopped:
            raise ValueError("tokens, stopped: must be left out, a leaping scheduler knows only counts")
        if not self._leaps:
            finished = super().update(decision, steps)
            self._form_group()
            return finished
        if not 1 <= steps <= decision.steps:
            raise ValueError(f"steps={steps}: must be from 1 to the decision's {decision.steps}")
        finished = self._advance(steps)
        if decision.chunks or self._beside:
            finished += self._advance_others([*decision.chunks, *self._beside])
        for sequence in finished:
            self._finish(sequence)
        return finished

    def _advance(self, steps: int) -> list[Sequence]:
        """Let the group compute; whose last token it was leaves it."""
        if steps > 1:
            self.kv.advance(steps - 1)
        self._iterations += steps
        self._context_tokens += steps * len(self._group)
        if self.waiting.counts_service:
            for client, members in self._members_of.items():
                self.waiting.charge(client, 0, steps * members)
        finished, finishes = [], self._finishes
        while finishes and finishes[0][0] <= self._iterations:
            sequence = heappop(finishes)[2]
            if sequence in self._group:
                self._leave(sequence)
                finished.append(sequence)
        return finished

    def _advance_others(self, chunks: list[tuple[Sequence, int]]) -> list[Sequence]:
        """Let those beside the group compute; who has caught up joins it, or is finished at once."""
        finished = []
        for sequence, computed in chunks:
            sequence.num_computed_tokens += computed
            if sequence.num_computed_tokens == sequence.num_tokens:
                self._others.remove(sequence)
                if self._produce(sequence, None):
                    finished.append(sequence)
                else:
                    self._join(sequence)
        return finished

    def _form_group(self) -> None:
        """After an iteration decided one by one: who is ready to decode runs in lockstep again."""
        self._others = []
        for sequence in self.running:
            if sequence.decoding and sequence.num_tokens - sequence.num_computed_tokens == 1:
                self._join(sequence)
            else:
                self._others.append(sequence)
