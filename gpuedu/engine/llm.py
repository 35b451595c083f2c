"""The engine: requests in, tokens out, one iteration at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from gpuedu.checks import check_count
from gpuedu.continuous_batching.plan import Decision, Scheduler, SchedulerConfig, VLLMScheduler
from gpuedu.continuous_batching.plan import Sequence as Scheduled
from gpuedu.llama import Llama, Tokenizer
from gpuedu.paged_attention.plan import KVCacheManager

from .batch import make_batch
from .kv_cache import PagedKVCache
from .model_runner import ModelRunner
from .outputs import Piece, RequestOutput
from .request import EngineRequest
from .sampler import choose_tokens
from .sampling_params import SamplingParams
from .stream import Stream
from .trace import Trace
from .validation import Prompt, blocks_of, check_attention, check_hashable, check_length, encode


class LLM:
    """Serves a model to many requests at once.

    Parameters
    ----------
    model : Llama
        On the device where it shall run; its linear layers may be quantized ones, its attention is computed
        by the engine.
    tokenizer : Tokenizer, optional
        Without it, prompts are tokens and answers have no text.
    num_blocks : int, optional
        Blocks of the KV cache.
    kv_memory_bytes : int, optional
        Instead of ``num_blocks``: bytes that its tensors may take. Without either, there is room for four
        sequences of the model's context.
    block_size : int
        Tokens in a block.
    enable_prefix_caching : bool
        Whether a prompt finds the blocks of earlier ones that begin like it.
    make_scheduler : callable, optional
        Another scheduler over the same blocks, from the KVCacheManager; ``limits`` must be left out.
    clock : callable
        Seconds, for the trace.
    record : bool
        Whether to keep a :class:`Trace`.
    **limits
        Fields of :class:`~gpuedu.continuous_batching.plan.SchedulerConfig`: ``max_num_seqs``,
        ``max_num_batched_tokens``, ``long_prefill_token_threshold``, ``enable_chunked_prefill``,
        ``policy``.

    Attributes
    ----------
    config : SchedulerConfig or None
        The limits; None with a scheduler of one's own.
    kv : KVCacheManager
        Who holds which block.
    scheduler : Scheduler
        Who runs.
    runner : ModelRunner
        The model, with the tensors of the blocks (``runner.cache``).
    trace : Trace or None
        Finished requests and iterations, with ``record``.

    Raises
    ------
    TypeError, ValueError
        For a size out of range, both sizes of the KV cache at once, memory for less than one block,
        preemption by swapping, or a model with an attention of its own.

    Notes
    -----
    Who runs is decided by :mod:`gpuedu.continuous_batching.plan` and where keys and values lie by
    :mod:`gpuedu.paged_attention.plan`: the very code that the simulator of ``gpuedu.serving`` prices.

    Examples
    --------
    >>> from gpuedu.engine import LLM, SamplingParams
    >>> from gpuedu.tinylm import load
    >>> llm = LLM(*load("draft"), num_blocks=64)
    >>> answers = llm.generate(["My fellow Americans", "The state of"], SamplingParams(max_tokens=5))
    >>> [len(answer.token_ids) for answer in answers], llm.kv.num_free_blocks
    ([5, 5], 64)
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer | None = None,
        *,
        num_blocks: int | None = None,
        kv_memory_bytes: int | None = None,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        make_scheduler: Callable[[KVCacheManager], Scheduler] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        record: bool = False,
        **limits,
    ) -> None:
        if make_scheduler is not None and limits:
            raise ValueError(f"{', '.join(limits)}: must be left out beside make_scheduler")
        if limits.get("preemption", "recompute") != "recompute":
            raise ValueError(f"preemption={limits['preemption']!r}: must be 'recompute' in the engine")
        check_count("block_size", block_size)
        check_attention(model)
        weights = model.embed_tokens.weight
        num_blocks = blocks_of(model, num_blocks, kv_memory_bytes, block_size)
        self.model, self.tokenizer = model, tokenizer
        self.kv = KVCacheManager(num_blocks, block_size, enable_prefix_caching=enable_prefix_caching)
        self.config = SchedulerConfig(**limits) if make_scheduler is None else None
        self.scheduler: Scheduler = (
            VLLMScheduler(self.config, self.kv) if make_scheduler is None else make_scheduler(self.kv)
        )
        cache = PagedKVCache(model.config, num_blocks, block_size, dtype=weights.dtype, device=weights.device)
        self.runner = ModelRunner(model, cache)
        self.trace = Trace() if record else None
        self._clock = clock
        self._started = clock()
        self._requests: dict[Hashable, EngineRequest] = {}
        self._numbered = 0

    # Requests come and go

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: Hashable = None,
        priority: int = 0,
        client: Hashable = "",
        cache_salt: Hashable = None,
        arrival_s: float | None = None,
    ) -> Hashable:
        """Put a request into the queue.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or tokens.
        params : SamplingParams
            What is asked.
        request_id : hashable, optional
            Its name; if not given, a number that counts up, past those that are taken.
        priority, client, cache_salt
            See :class:`gpuedu.continuous_batching.plan.Sequence`.
        arrival_s : float, optional
            When it came, on the clock of :meth:`now`, if that was before this call.

        Returns
        -------
        hashable
            The name.

        Raises
        ------
        TypeError, ValueError
            For an empty prompt, a token that the model does not have, a prompt and answer longer than the
            model's context or than the KV cache, a name that is taken, text without a tokenizer, or a
            client or salt that cannot be hashed. The engine is as it was then.
        """
        ids = encode(prompt, self.tokenizer, self.model.config.shape.vocab_size)
        check_length(ids, params, self.model.config.context_length)
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop={params.stop!r}: needs a tokenizer")
        check_hashable(request_id=request_id, client=client, cache_salt=cache_salt)
        if not isinstance(priority, int):
            raise TypeError(f"priority={priority!r}: must be an int")
        if request_id is None:
            request_id = self._next_number()
        arrival_s = self.now() if arrival_s is None else arrival_s
        sequence = Scheduled(
            request_id,
            len(ids),
            params.max_tokens,
            token_ids=ids,
            priority=priority,
            arrival=arrival_s,
            client=client,
            cache_salt=cache_salt,
        )
        eos_id = None if self.tokenizer is None else self.tokenizer.eos_id
        request = EngineRequest(sequence, params, self.tokenizer, eos_id, arrival_s)
        self.scheduler.add(sequence)  # last of what may fail: it would keep a request that nobody else knows
        self._requests[request_id] = request
        return request_id

    def _next_number(self) -> int:
        """A name for a request without one."""
        while self._numbered in self._requests:
            self._numbered += 1
        self._numbered += 1
        return self._numbered - 1

    def abort(self, request_id: Hashable) -> RequestOutput:
        """Drop a request and free its blocks.

        Parameters
        ----------
        request_id : hashable
            Whose answer nobody wants any more.

        Returns
        -------
        RequestOutput
            What there is of it.

        Raises
        ------
        KeyError
            If there is no such request, or it is finished.
        ValueError
            If the scheduler does not let it go: a static batch keeps its members to the end.
        """
        if request_id not in self._requests:
            raise KeyError(f"request_id={request_id!r}: is not here")
        self.scheduler.abort(request_id)
        request = self._requests.pop(request_id)
        request.finish_reason = "abort"
        return request.output()

    def abort_all(self) -> list[RequestOutput]:
        """Drop every request, as after an interrupted step.

        Returns
        -------
        list of RequestOutput
            What there is of each, in the order in which they came. Members of a static batch are not among
            them: they stay to its end.
        """
        dropped = []
        for name in list(self._requests):
            with suppress(ValueError):
                dropped.append(self.abort(name))
        return dropped

    def has_unfinished(self) -> bool:
        """Whether anybody runs or waits."""
        return bool(self._requests)

    def now(self) -> float:
        """Seconds since this engine was made."""
        return self._clock() - self._started

    # One iteration

    def step(self) -> list[RequestOutput]:
        """Compute one iteration.

        Returns
        -------
        list of RequestOutput
            Of the requests that got a token in it, as far as they are; empty if nobody did.

        Raises
        ------
        RuntimeError
            If the scheduler has requests and lets none of them compute: that would go on forever.
        """
        start = self.now()
        decision = self.scheduler.schedule()
        for sequence in decision.admitted:
            self._requests[sequence.request_id].note_start(start)
        if decision.is_empty:
            if self.scheduler.has_work():
                raise RuntimeError("the scheduler has requests and lets nobody compute")
            return []
        weights = self.model.embed_tokens.weight
        batch = make_batch(decision, self.kv, weights.dtype, weights.device)
        self.runner.cache.copy(self.kv.copies())
        logits = self.runner.execute(batch)
        requests = [self._requests[sequence.request_id] for sequence in batch.sampled]
        tokens = choose_tokens(logits, [request.sampler for request in requests]) if requests else []
        counted = _what_it_held(decision)
        outputs = self._hand_out(decision, requests, tokens, self.now())
        if self.trace is not None:
            self.trace.add_iteration(self.now() - start, *counted)
        return outputs

    def _hand_out(
        self, decision: Decision, requests: list[EngineRequest], tokens: list[int], now: float
    ) -> list[RequestOutput]:
        """Give each request its token, and let the scheduler know who is done."""
        stopped = {
            request.request_id
            for request, token in zip(requests, tokens, strict=True)
            if request.append(token, now)
        }
        produced = {request.request_id: token for request, token in zip(requests, tokens, strict=True)}
        for sequence in self.scheduler.update(decision, 1, produced, stopped):
            request = self._requests.pop(sequence.request_id)
            if self.trace is not None:
                self.trace.requests.append(request.record(now))
        return [request.output() for request in requests]

    # The plain interface

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Answer all prompts.

        Parameters
        ----------
        prompts : sequence of str or sequence of int
            Texts, or tokens.
        params : SamplingParams or sequence of SamplingParams
            For all of them, or one for each.

        Returns
        -------
        list of RequestOutput
            In the order of the prompts.

        Raises
        ------
        ValueError
            See :meth:`add_request`; nothing is computed then. Also if others have requests under way.

        Notes
        -----
        Whoever interrupts it (Ctrl-C) finds the engine idle: its requests are aborted (:meth:`abort_all`),
        but for those of a static batch that has begun.
        """
        if self.has_unfinished():
            raise ValueError("generate: must have the engine to itself; requests are under way")
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts!r}: must be a sequence of prompts")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"params: {len(each)} of them, must be one or {len(prompts)}")
        answers = {}
        try:
            names = [self.add_request(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
            while self.has_unfinished():
                answers |= {output.request_id: output for output in self.step() if output.finished}
        except BaseException:
            self.abort_all()
            raise
        return [answers[name] for name in names]

    def stream(self, prompt: Prompt, params: SamplingParams) -> Stream:
        """Answer a prompt token by token; other requests go on beside it.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or tokens.
        params : SamplingParams
            What is asked.

        Returns
        -------
        Stream
            An iterator over :class:`Piece`, one a token. The request is in the queue from this call on.
            Whoever stops listening (closes or drops the stream, begun or not) aborts it; in a static batch
            that has begun it goes on for nobody.

        Raises
        ------
        TypeError, ValueError
            See :meth:`add_request`.
        """
        request = self._requests[self.add_request(prompt, params)]
        return Stream(self._pieces(request), partial(self._abandon, request))

    def _pieces(self, request: EngineRequest) -> Iterator[Piece]:
        seen = 0
        while seen < len(request.token_ids) or request.finish_reason is None:
            if seen == len(request.token_ids):
                self.step()
                continue
            seen += 1
            last = seen == len(request.token_ids) and request.finish_reason is not None
            text = request.take_text(finished=last)
            yield Piece(request.token_ids[seen - 1], text, request.finish_reason if last else None)

    def _abandon(self, request: EngineRequest) -> None:
        """Abort a request unless it is finished; its name may be another's by now."""
        if request.finish_reason is None:
            with suppress(ValueError):  # a static batch keeps its members to the end
                self.abort(request.request_id)


def _what_it_held(decision: Decision) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """What a step cost is asked about a decision: decodes, their context, chunks and theirs."""
    chunks = tuple((tokens, sequence.num_computed_tokens) for sequence, tokens in decision.chunks)
    return len(decision.decodes), decision.context_tokens, chunks
