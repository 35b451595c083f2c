"""What is known of each request when it is over: columns that a simulator fills, or an engine."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import nan


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request; times in seconds on one clock.

    Parameters
    ----------
    request_id : object
        Its name.
    arrival_s, start_s, first_token_s, finish_s : float
        When it came, when it was admitted first, when its first and its last token were there.
    prompt_tokens, output_tokens : int
        Its lengths.
    worst_gap_s : float
        Longest time between two of its tokens; 0 for a single one.
    preemptions : int
        How often it had to go back to the queue.
    cached_tokens : int
        Tokens of the prompt found in the prefix cache.
    replica : int
        Who served it.
    """

    request_id: Hashable
    arrival_s: float
    start_s: float
    first_token_s: float
    finish_s: float
    prompt_tokens: int
    output_tokens: int
    worst_gap_s: float = 0.0
    preemptions: int = 0
    cached_tokens: int = 0
    replica: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to first token: from arrival, waiting included."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first, on average; NaN for a single token."""
        return _tpot(self.first_token_s, self.finish_s, self.output_tokens)

    @property
    def latency_s(self) -> float:
        """End to end: from arrival to the last token."""
        return self.finish_s - self.arrival_s


def _tpot(first_s: float, finish_s: float, output_tokens: int) -> float:
    return (finish_s - first_s) / (output_tokens - 1) if output_tokens > 1 else nan


_FLOATS = ("arrival_s", "start_s", "first_token_s", "finish_s", "worst_gap_s")
_INTS = ("prompt_tokens", "output_tokens", "preemptions", "cached_tokens", "replica")


class RequestLog:
    """Finished requests as columns: an ``array`` each, by the names of :class:`RequestRecord`.

    Parameters
    ----------
    records : iterable of RequestRecord
        To begin with.

    Examples
    --------
    >>> log = RequestLog([RequestRecord("a", 0.0, 0.0, 0.5, 2.5, prompt_tokens=9, output_tokens=5)])
    >>> log.ttft_s()[0], log.tpot_s()[0], log.latency_s()[0], len(log)
    (0.5, 0.5, 2.5, 1)
    """

    __slots__ = ("request_id", *_FLOATS, *_INTS)

    def __init__(self, records: Iterable[RequestRecord] = ()) -> None:
        self.request_id: list[Hashable] = []
        for name in _FLOATS:
            setattr(self, name, array("d"))
        for name in _INTS:
            setattr(self, name, array("q"))
        for record in records:
            self.append(record)

    def append(self, record: RequestRecord) -> None:
        """One more."""
        for name in self.__slots__:
            getattr(self, name).append(getattr(record, name))

    def __len__(self) -> int:
        return len(self.request_id)

    def __getitem__(self, index: int) -> RequestRecord:
        return RequestRecord(**{name: getattr(self, name)[index] for name in self.__slots__})

    def __iter__(self) -> Iterator[RequestRecord]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestLog):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None

    def ttft_s(self) -> array:
        """Time to first token of each."""
        pairs = zip(self.first_token_s, self.arrival_s, strict=True)
        return array("d", (first - arrival for first, arrival in pairs))

    def tpot_s(self) -> array:
        """Time per output token of each that has more than one."""
        rows = zip(self.first_token_s, self.finish_s, self.output_tokens, strict=True)
        return array("d", (_tpot(*row) for row in rows if row[2] > 1))

    def latency_s(self) -> array:
        """End-to-end latency of each."""
        pairs = zip(self.finish_s, self.arrival_s, strict=True)
        return array("d", (finish - arrival for finish, arrival in pairs))
