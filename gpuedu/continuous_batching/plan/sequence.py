"""A request as the scheduler sees it: tokens that there are, tokens that are computed."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Tokens

from gpuedu.checks import check_count


class Sequence:
    """One request on its way: the same object for the simulator and for the engine.

    Parameters
    ----------
    request_id : object
        Its name.
    prompt_tokens : int
        Tokens of the prompt, at least 1.
    max_tokens : int
        Tokens that it may produce, at least 1. The simulator lets it produce all of them; the engine may
        stop it before.
    token_ids : sequence of int or None
        The prompt's tokens, for the engine and for prefix caching; None where only their number counts.
    priority : int
        Smaller is served first, as in vLLM.
    arrival : float
        When it came, in seconds; orders requests of one priority.
    client : object
        Who sent it, for fairness between clients.
    predicted_tokens : int or None
        Output tokens that somebody predicted, for shortest-predicted-first; None means ``max_tokens``.
    cache_salt : object
        Keeps its cached blocks apart from those of other salts.

    Raises
    ------
    TypeError, ValueError
        For a count that is no int or too small, and for ``token_ids`` of another length than
        ``prompt_tokens``.

    Notes
    -----
    As in vLLM's v1 scheduler there is no prefill phase and no decode phase: ``num_computed_tokens``
    catches up with ``num_tokens``, and when it has, there is one token more. The last token of all is
    never computed, so a finished sequence has computed ``prompt_tokens + max_tokens - 1``.

    Examples
    --------
    >>> sequence = Sequence("a", prompt_tokens=5, max_tokens=2)
    >>> sequence.num_tokens, sequence.num_computed_tokens, sequence.num_output_tokens
    (5, 0, 0)
    """

    __slots__ = (
        "arrival",
        "cache_salt",
        "client",
        "decoding",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_tokens",
        "place",
        "predicted_tokens",
        "priority",
        "prompt_tokens",
        "record",
        "request_id",
        "swapped",
        "token_ids",
    )

    def __init__(
        self,
        request_id: Hashable,
        prompt_tokens: int,
        max_tokens: int,
        *,
        token_ids: Tokens[int] | None = None,
        priority: int = 0,
        arrival: float = 0.0,
        client: Hashable = "",
        predicted_tokens: int | None = None,
        cache_salt: Hashable = None,
    ) -> None:
        check_count("prompt_tokens", prompt_tokens)
        check_count("max_tokens", max_tokens)
        if token_ids is not None and len(token_ids) != prompt_tokens:
            raise ValueError(f"token_ids: {len(token_ids)} of them, must be prompt_tokens={prompt_tokens}")
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.token_ids = None if token_ids is None else list(token_ids)
        self.priority = priority
        self.arrival = arrival
        self.client = client
        self.predicted_tokens = max_tokens if predicted_tokens is None else predicted_tokens
        self.cache_salt = cache_salt
        self.num_tokens = prompt_tokens
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # found in the prefix cache when it was admitted first
        self.num_preemptions = 0
        self.decoding = False  # has produced the one token that it computes next
        self.swapped = False
        self.place = 0  # counts admissions: orders the running
        self.record = None  # whoever drives the scheduler may keep notes here

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced so far."""
        return self.num_tokens - self.prompt_tokens

    def __repr__(self) -> str:
        return f"Sequence({self.request_id!r}: {self.num_computed_tokens} of {self.num_tokens} computed)"
