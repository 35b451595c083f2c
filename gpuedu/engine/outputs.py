"""What a client gets back."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestOutput:
    """An answer, finished or under way.

    Parameters
    ----------
    request_id : hashable
        Whose it is.
    prompt_token_ids : list of int
        What was asked.
    token_ids : list of int
        The answer so far, with the token that stopped it.
    text : str or None
        The answer so far, without what stopped it; None without a tokenizer.
    finish_reason : str or None
        ``"stop"``, ``"length"`` (``max_tokens`` reached) or ``"abort"``; None if it goes on.
    num_cached_tokens : int
        Tokens of the prompt found in the prefix cache.
    num_preemptions : int
        How often it had to start anew.
    """

    request_id: Hashable
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str | None
    finish_reason: str | None
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def finished(self) -> bool:
        """Whether this is all."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class Piece:
    """One token of a streamed answer.

    Parameters
    ----------
    token_id : int
        The token.
    text : str
        Text that became certain with it: empty while a character is incomplete or a stop text possible.
    finish_reason : str or None
        With the last token: why it is the last.
    """

    token_id: int
    text: str
    finish_reason: str | None = None
