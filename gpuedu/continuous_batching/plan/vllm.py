"""vLLM's v1 scheduler, rule by rule."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from .decision import Decision, SchedulerConfig
from .sequence import Sequence
from .waiting import waiting_queue


class VLLMScheduler:
    """Decides each iteration by the rules of vLLM's v1 scheduler.

    Parameters
    ----------
    config : SchedulerConfig
        Limits and rules.
    kv : KVCacheManager or BlockCounter
        Whoever has the blocks; empty.

    Notes
    -----
    Each request's computed tokens catch up with its tokens. The running come first, in the order in which
    they were admitted, then the waiting, until the token budget is spent. If there are no blocks for a
    running sequence, the last of the running (by priority: the least important) goes back to the queue
    and starts anew. Where somebody had to go, nobody is admitted in the same iteration. Who cannot be
    admitted holds up everybody behind.

    Left out of vLLM's rules: speculative tokens, encoders, LoRA, remote caches, pipeline stages; and
    asynchronous scheduling, which decides one iteration ahead of the tokens.

    References
    ----------
    vLLM 0.33.0, ``vllm/v1/core/sched/scheduler.py``, ``Scheduler.schedule``.

    Examples
    --------
    >>> from gpuedu.paged_attention.plan.counting import BlockCounter
    >>> scheduler = VLLMScheduler(SchedulerConfig(max_num_batched_tokens=8), BlockCounter(100))
    >>> for name, prompt in ("a", 6), ("b", 5):
    ...     _ = scheduler.add(Sequence(name, prompt, max_tokens=3))
    >>> for _ in range(4):  # a's prompt leaves two tokens to b's
    ...     decision = scheduler.schedule()
    ...     finished = scheduler.update(decision)
    ...     print(decision.num_scheduled_tokens, finished)
    {'a': 6, 'b': 2} []
    {'a': 1, 'b': 3} []
    {'a': 1, 'b': 1} [Sequence('a': 8 of 9 computed)]
    {'b': 1} [Sequence('b': 7 of 8 computed)]
    """

    def __init__(self, config: SchedulerConfig, kv: Any) -> None:
        self.config = config
        self.kv = kv
        self.running: list[Sequence] = []
        self.waiting = waiting_queue(config)
        self._arrived: list[Sequence] = []
        self._sequences: dict[Hashable, Sequence] = {}
        self._capacity = kv.num_free_blocks
        self._watermark_blocks = int(config.watermark * kv.num_blocks)
        self._places = 0

    # Coming and going

    def add(self, sequence: Sequence) -> bool:
        """Put a request into the queue.

        Parameters
        ----------
        sequence : Sequence
            New, with an id that no other has.

        Returns
        -------
        bool
            Whether the decision in force could now be another: False if the request has to wait behind
            somebody, or for a place.

        Raises
        ------
        ValueError
            If the id is taken, or if the request could never be served: its tokens exceed the cache, or,
            without chunked prefill, the budget.
        """
        if sequence.request_id in self._sequences:
            raise ValueError(f"request_id={sequence.request_id!r}: is here already")
        self._check_servable(sequence)
        self._sequences[sequence.request_id] = sequence
        if self.waiting.counts_service:
            self._arrived.append(sequence)  # where it stands depends on what is served until it is let in
            return True
        self.waiting.push(sequence)
        return len(self.running) < self.config.max_num_seqs and self.waiting.peek() is sequence

    def _let_in(self) -> None:
        """Put those who came during the last iteration into a queue that asks what has been served."""
        for sequence in self._arrived:
            self.waiting.push(sequence)
        self._arrived.clear()

    def _check_servable(self, sequence: Sequence) -> None:
        computed = sequence.prompt_tokens + sequence.max_tokens - 1
        blocks = -(-computed // self.kv.block_size)
        if blocks > self._capacity:
            raise ValueError(
                f"request_id={sequence.request_id!r}: prompt_tokens={sequence.prompt_tokens} and "
                f"max_tokens={sequence.max_tokens} need {blocks} blocks of {self.kv.block_size} tokens, "
                f"must be at most the KV cache's {self._capacity}"
            )
        budget = self.config.max_num_batched_tokens
        if not self.config.enable_chunked_prefill and computed > budget:
            raise ValueError(
                f"request_id={sequence.request_id!r}: up to {computed} tokens to compute at once, must be "
                f"at most max_num_batched_tokens={budget} without chunked prefill"
            )

    def abort(self, request_id: Hashable) -> None:
        """Drop a request, wherever it is; KeyError if it is unknown."""
        if request_id not in self._sequences:
            raise KeyError(f"request_id={request_id!r}: is not here")
        self._let_in()
        sequence = self._sequences.pop(request_id)
        if sequence in self.running:
            self.running.remove(sequence)
            self.kv.free(sequence)
        else:
            self.waiting.remove(sequence)
            if sequence.swapped:
                self.kv.free(sequence)

    def has_work(self) -> bool:
        """Whether anybody runs or waits."""
        return bool(self._sequences)

    # One iteration

    def schedule(self) -> Decision:
        """Decide the next iteration: the running first, then whom the queue can send."""
        self._let_in()
        decision = Decision([], [], admitted=[], preempted=[])
        scheduled: dict[Sequence, int] = {}
        budget = self._schedule_running(decision, scheduled)
        if not decision.preempted:
            self._schedule_waiting(decision, scheduled, budget)
        for sequence, tokens in scheduled.items():
            if sequence.decoding:
                decision.decodes.append(sequence)
                decision.context_tokens += sequence.num_computed_tokens
            else:
                decision.chunks.append((sequence, tokens))
        return decision

    def _tokens_wanted(self, sequence: Sequence) -> int:
        """Tokens to compute until the sequence has caught up, as far as one iteration may."""
        wanted = sequence.num_tokens - sequence.num_computed_tokens
        threshold = self.config.long_prefill_token_threshold
        if 0 < threshold < wanted and len(self._sequences) > 1:
            return threshold
        return wanted

    def _schedule_running(self, decision: Decision, scheduled: dict[Sequence, int]) -> int:
        """Give the running their tokens; returns what is left of the budget."""
        budget = self.config.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            tokens = min(self._tokens_wanted(sequence), budget)
            while self.kv.allocate_slots(sequence, tokens) is None:
                victim = self._victim()
                place = self.running.index(victim)
                del self.running[place]
                if place < index:
                    index -= 1
                budget += scheduled.pop(victim, 0)
                self._preempt(victim, decision)
                if victim is sequence:
                    break
            else:
                scheduled[sequence] = tokens
                budget -= tokens
                index += 1
        return budget

    def _victim(self) -> Sequence:
        """Who has to go: by priority the least important and of those the latest, else the last."""
        if self.config.policy == "priority":
            return max(self.running, key=lambda sequence: (sequence.priority, sequence.arrival))
        return self.running[-1]

    def _preempt(self, victim: Sequence, decision: Decision) -> None:
        blocks = self.kv.num_free_blocks
        if self.config.preemption == "swap" and self.kv.swap_out(victim) is not None:
            victim.swapped = True
            decision.swapped_out += self.kv.num_free_blocks - blocks
        else:
            self.kv.free(victim)
            victim.num_computed_tokens = 0
            victim.decoding = False
        victim.num_preemptions += 1
        self.waiting.push_back_preempted(victim)
        decision.preempted.append(victim)

    def _schedule_waiting(self, decision: Decision, scheduled: dict[Sequence, int], budget: int) -> None:
        """Admit from the queue until the budget, the places or the blocks are gone."""
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting.peek()
            tokens = self._try_to_admit(sequence, budget, decision)
            if tokens is None:
                return
            self.waiting.pop()
            self._places += 1
            sequence.place = self._places
            self.running.append(sequence)
            decision.admitted.append(sequence)
            scheduled[sequence] = tokens
            budget -= tokens

    def _try_to_admit(self, sequence: Sequence, budget: int, decision: Decision) -> int | None:
        """Blocks for a waiting sequence; returns the tokens it computes first, None if it must wait."""
        hits, cached = (), 0
        if not sequence.swapped:
            hits, cached = self.kv.get_computed_blocks(sequence)
        computed = sequence.num_computed_tokens + cached
        tokens = sequence.num_tokens - computed
        threshold = self.config.long_prefill_token_threshold
        if 0 < threshold < tokens and len(self._sequences) > 1:
            tokens = threshold
        if tokens > budget and not self.config.enable_chunked_prefill:
            return None
        tokens = min(tokens, budget)
        whole = sequence.num_tokens if self.config.reserve_full_prompt else computed + tokens
        if not self._fits(sequence, whole, hits):
            return None
        if sequence.swapped and not self._swap_in(sequence, decision):
            return None
        if self.kv.allocate_slots(sequence, tokens, hits) is None:
            return None
        sequence.num_computed_tokens = computed
        if not sequence.num_preemptions:
            sequence.num_cached_tokens = cached
        return tokens

    def _fits(self, sequence: Sequence, tokens: int, hits: Collection[int]) -> bool:
        """Whether the free blocks hold so many of its tokens, of which ``hits`` are cached already."""
        kv = self.kv
        needed = -(-tokens // kv.block_size) - len(hits)
        if hits:
            needed += sum(not kv.pool.references[block] for block in hits)  # they leave the free queue
        spare = self._watermark_blocks if self.running else 0
        return needed + spare <= kv.num_free_blocks

    def _swap_in(self, sequence: Sequence, decision: Decision) -> bool:
        """Bring a sequence's blocks back, if whoever has the blocks lets it."""
        free = self.kv.num_free_blocks
        if self.kv.swap_in(sequence) is None:
            return False
        sequence.swapped = False
        decision.swapped_in += free - self.kv.num_free_blocks
        return True

    # What came of it

    def update(
        self,
        decision: Decision,
        steps: int = 1,
        tokens: Mapping[Hashable, int] | None = None,
        stopped: Collection[Hashable] = (),
    ) -> list[Sequence]:
        """Take note of what has been computed.

        Parameters
        ----------
        decision : gpuedu.continuous_batching.plan.Decision
            What :meth:`schedule` returned last.
        steps : int
            How many iterations were computed, at most ``decision.steps``.
        tokens : mapping, optional
            The token that each request produced, by its id; for the engine, with one step.
        stopped : collection
            Ids of requests that end with the token they produced, before ``max_tokens``.

        Returns
        -------
        list of Sequence
            Who is finished, in the order of admission; their blocks are free.
        """
        if not 1 <= steps <= decision.steps:
            raise ValueError(f"steps={steps}: must be from 1 to the decision's {decision.steps}")
        finished = []
        for sequence, computed in [*decision.chunks, *((member, 1) for member in decision.decodes)]:
            sequence.num_computed_tokens += computed
            if sequence.num_computed_tokens == sequence.num_tokens:
                token = None if tokens is None else tokens[sequence.request_id]
                if self._produce(sequence, token) or sequence.request_id in stopped:
                    finished.append(sequence)
        finished.sort(key=lambda sequence: sequence.place)
        for sequence in finished:
            self._finish(sequence)
        return finished

    def _produce(self, sequence: Sequence, token: int | None) -> bool:
        """A sequence has caught up and has one token more; returns whether that was its last."""
        sequence.num_tokens += 1
        sequence.decoding = True
        if token is not None:
            sequence.token_ids.append(token)
        if self.waiting.counts_service:
            self.waiting.charge(sequence.client, 0, 1)
        return sequence.num_tokens - sequence.prompt_tokens >= sequence.max_tokens

    def _finish(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.free(sequence)
        del self._sequences[sequence.request_id]
