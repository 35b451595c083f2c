"""Static batching: a batch begins together and ends with its longest member."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping

from gpuedu.checks import check_count
from gpuedu.paged_attention.plan.counting import BlockCounter

from .decision import Decision
from .sequence import Sequence


class StaticBatching:
    """Serves whole batches: nobody is admitted until the last member is finished.

    Parameters
    ----------
    batch_size : int
        Members at most; fewer if fewer wait when the last batch ends.
    kv : BlockCounter, optional
        Blocks for prompt and output of every member, reserved for the whole batch; None: there is room.
    respond_early : bool
        Whether a request counts as finished with its own last token (tokens are streamed), or when the
        batch ends and all answers leave together.

    keep_rows : bool
        Whether rows of finished members go on computing for nobody, and prompts are padded to the longest,
        as in a padded tensor; without it the batch shrinks, as in our engine, and only its slots are empty.

    Raises
    ------
    TypeError, ValueError
        If ``batch_size`` is no int of at least 1.

    Notes
    -----
    With ``keep_rows`` the batch is a rectangle, as ``generate`` of Hugging Face's transformers computes it:
    prompts are padded to the longest of them, and the row of a finished member goes on computing for nobody
    until the end. Both show as ``Decision.padding``.

    References
    ----------
    Yu et al. Orca. OSDI 2022, section 3, on request-level scheduling.

    Examples
    --------
    >>> scheduler = StaticBatching(2)
    >>> for name, output in ("a", 3), ("b", 1), ("c", 2):
    ...     _ = scheduler.add(Sequence(name, prompt_tokens=4, max_tokens=output))
    >>> while scheduler.has_work():
    ...     decision = scheduler.schedule()
    ...     print(decision.num_scheduled_tokens, decision.padding, decision.steps)
    ...     _ = scheduler.update(decision, decision.steps)
    {'a': 4, 'b': 4} 0 1
    {'a': 1} 1 2
    {'c': 4} 0 1
    {'c': 1} 0 1
    """

    def __init__(
        self,
        batch_size: int,
        kv: BlockCounter | None = None,
        *,
        respond_early: bool = False,
        keep_rows: bool = True,
    ) -> None:
        check_count("batch_size", batch_size)
        self.batch_size = batch_size
        self.kv = kv
        self.respond_early = respond_early
        self.keep_rows = keep_rows
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._capacity = None if kv is None else kv.num_free_blocks
        self._sequences: dict[Hashable, Sequence] = {}
        self._rows = 0
        self._positions = 0  # in every row: the longest prompt, and the tokens since
        self._done: list[Sequence] = []
        self._begun = False

    def add(self, sequence: Sequence) -> bool:
        """Put a request into the queue; whether it can change the decision in force: never."""
        if sequence.request_id in self._sequences:
            raise ValueError(f"request_id={sequence.request_id!r}: is here already")
        if self.kv is not None:
            blocks = -(-self._reserved_tokens(sequence) // self.kv.block_size)
            if blocks > self._capacity:
                raise ValueError(
                    f"request_id={sequence.request_id!r}: prompt_tokens={sequence.prompt_tokens} and "
                    f"max_tokens={sequence.max_tokens} need {blocks} blocks of {self.kv.block_size} "
                    f"tokens, must be at most the KV cache's {self._capacity}"
                )
        self._sequences[sequence.request_id] = sequence
        self.waiting.append(sequence)
        return False

    def abort(self, request_id: Hashable) -> None:
        """Drop a request that waits; KeyError if it is unknown, ValueError if its batch has begun."""
        if request_id not in self._sequences:
            raise KeyError(f"request_id={request_id!r}: is not here")
        sequence = self._sequences[request_id]
        if sequence not in self.waiting:
            raise ValueError(f"request_id={request_id!r}: its batch has begun, nobody leaves before the end")
        self.waiting.remove(sequence)
        del self._sequences[request_id]

    def has_work(self) -> bool:
        """Whether a batch runs or anybody waits."""
        return bool(self._sequences)

    def schedule(self) -> Decision:
        """Go on with the batch until a member is finished; without a batch, begin one."""
        if not self.running:
            return self._begin()
        live = self.running
        context = sum(sequence.num_computed_tokens for sequence in live)
        decision = Decision([], list(live), context, steps=self._left(live[-1]))
        if self.keep_rows:
            decision.padding = self._rows - len(live)
            decision.padding_context = self._rows * self._positions - context
        return decision

    def _begin(self) -> Decision:
        batch: list[Sequence] = []
        while self.waiting and len(batch) < self.batch_size:
            sequence = self.waiting[0]
            reserved = self._reserved_tokens(sequence)
            if self.kv is not None and self.kv.allocate_slots(sequence, reserved) is None:
                break
            batch.append(self.waiting.popleft())
        self._rows = len(batch)
        self._positions = max((sequence.prompt_tokens for sequence in batch), default=0)
        self.running = sorted(batch, key=lambda sequence: -sequence.max_tokens)
        prompts = [(sequence, sequence.prompt_tokens) for sequence in batch]
        padding = self._rows * self._positions - sum(tokens for _, tokens in prompts) if self.keep_rows else 0
        return Decision(prompts, [], admitted=batch, padding=padding)

    @staticmethod
    def _reserved_tokens(sequence: Sequence) -> int:
        return sequence.prompt_tokens + sequence.max_tokens - 1

    @staticmethod
    def _left(sequence: Sequence) -> int:
        return sequence.max_tokens - sequence.num_output_tokens

    def update(
        self,
        decision: Decision,
        steps: int = 1,
        tokens: Mapping[Hashable, int] | None = None,
        stopped: Collection[Hashable] = (),
    ) -> list[Sequence]:
        """Take note of what has been computed; see :meth:`VLLMScheduler.update`."""
        if not 1 <= steps <= decision.steps:
            raise ValueError(f"steps={steps}: must be from 1 to the decision's {decision.steps}")
        for sequence, computed in decision.chunks:
            sequence.num_computed_tokens += computed
            sequence.num_tokens += 1
            sequence.decoding = True
        for sequence in decision.decodes:
            sequence.num_computed_tokens += steps
            sequence.num_tokens += steps
        if not decision.chunks:
            self._positions += steps
        if tokens is not None:
            for sequence in self.running:
                sequence.token_ids.append(tokens[sequence.request_id])
        return self._retire(stopped)

    def _retire(self, stopped: Collection[Hashable]) -> list[Sequence]:
        """Whose last token it was; with the batch's end, whose answers leave."""
        over = [s for s in self.running if self._left(s) == 0 or s.request_id in stopped]
        if not over:
            return []
        self.running = [sequence for sequence in self.running if sequence not in over]
        self._done += over
        answers = over if self.respond_early else []
        if not self.running:
            answers = over if self.respond_early else self._done
            if self.kv is not None:
                for sequence in self._done:
                    self.kv.free(sequence)
            self._done = []
        for sequence in answers:
            del self._sequences[sequence.request_id]
        return answers
