"""What the engine keeps of a request beside what the scheduler does."""

from __future__ import annotations

from collections.abc import Hashable

from gpuedu.continuous_batching.plan import Sequence
from gpuedu.llama import Tokenizer
from gpuedu.serving.metrics import RequestRecord

from .detokenizer import Detokenizer
from .outputs import RequestOutput
from .sampler import Sampler
from .sampling_params import SamplingParams


class EngineRequest:
    """A request under way: its tokens, its text, when things happened.

    Parameters
    ----------
    sequence : Sequence
        The scheduler's side of it.
    params : SamplingParams
        What is asked.
    tokenizer : Tokenizer or None
        For its text.
    eos_id : int or None
        The token that ends a text.
    arrival_s : float
        When it came.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        eos_id: int | None,
        arrival_s: float,
    ) -> None:
        self.sequence, self.params = sequence, params
        self.sampler = Sampler(params)
        self.prompt_token_ids = list(sequence.token_ids)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, params.stop)
        self._stop_ids = frozenset(params.stop_ids)
        if eos_id is not None and not params.ignore_eos:
            self._stop_ids |= {eos_id}
        self._arrival_s = arrival_s
        self._start_s: float | None = None
        self._times: tuple[float, float] | None = None  # of the first token and the latest
        self._worst_gap_s = 0.0

    @property
    def request_id(self) -> Hashable:
        """Its name."""
        return self.sequence.request_id

    def note_start(self, now: float) -> None:
        """It has been admitted; the first time counts."""
        if self._start_s is None:
            self._start_s = now

    def append(self, token: int, now: float) -> bool:
        """Take a token; whether it is the last although ``max_tokens`` would allow more."""
        self.token_ids.append(token)
        first, latest = self._times or (now, now)
        self._worst_gap_s = max(self._worst_gap_s, now - latest)
        self._times = first, now
        stopped = token in self._stop_ids
        if self._detokenizer is not None and not stopped:  # a stop token is no part of the text
            stopped = self._detokenizer.append(token)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and self._detokenizer is not None:
            self._detokenizer.finish()
        return stopped

    def take_text(self, finished: bool) -> str:
        """Text that is certain and has not been taken yet."""
        return "" if self._detokenizer is None else self._detokenizer.take(finished)

    def output(self) -> RequestOutput:
        """As far as it is."""
        return RequestOutput(
            self.request_id,
            self.prompt_token_ids,
            list(self.token_ids),
            None if self._detokenizer is None else self._detokenizer.text,
            self.finish_reason,
            self.sequence.num_cached_tokens,
            self.sequence.num_preemptions,
        )

    def record(self, now: float) -> RequestRecord:
        """What the serving metrics read, of a finished request."""
        first, latest = self._times
        return RequestRecord(
            self.request_id,
            self._arrival_s,
            self._start_s,
            first,
            max(latest, now),
            len(self.prompt_token_ids),
            len(self.token_ids),
            self._worst_gap_s,
            self.sequence.num_preemptions,
            self.sequence.num_cached_tokens,
        )
