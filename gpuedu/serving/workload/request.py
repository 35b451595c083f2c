"""One request: when it comes, how long it is."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf

HASHED_TOKENS = 512
"""Tokens of a prompt that one of its ``hash_ids`` stands for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Parameters
    ----------
    request_id : int or str
        Its name, unlike any other's.
    arrival_s : float
        When it comes, in seconds.
    prompt_tokens : int
        Tokens of the prompt, at least 1.
    output_tokens : int
        Tokens of the answer, at least 1.
    priority : int
        Smaller is served first.
    client : object
        Who asks.
    hash_ids : tuple of int
        The prompt's blocks of 512 tokens by their content, as in Mooncake's traces, with or without the
        part of a block at its end; empty if unknown.
    predicted_output_tokens : int, optional
        What somebody guessed ``output_tokens`` to be.

    Raises
    ------
    TypeError, ValueError
        For a count that is no int of at least 1, a time that is negative or not finite, or too few or too
        many ``hash_ids``.

    Examples
    --------
    >>> Request(0, 0.5, prompt_tokens=1020, output_tokens=129).output_tokens
    129
    """

    request_id: int | str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    client: Hashable = ""
    hash_ids: tuple[int, ...] = ()
    predicted_output_tokens: int | None = None

    def __post_init__(self) -> None:
        prompt, output, arrival = self.prompt_tokens, self.output_tokens, self.arrival_s
        if type(prompt) is not int or type(output) is not int:
            raise TypeError(
                f"request_id={self.request_id!r}: prompt_tokens={prompt!r}, output_tokens={output!r}: "
                "must be ints"
            )
        if prompt < 1 or output < 1:
            raise ValueError(
                f"request_id={self.request_id!r}: prompt_tokens={prompt}, output_tokens={output}: "
                "must be at least 1"
            )
        if self.hash_ids and not 0 <= len(self.hash_ids) - prompt // HASHED_TOKENS <= 1:
            raise ValueError(
                f"request_id={self.request_id!r}: {len(self.hash_ids)} hash_ids, must be one for every "
                f"{HASHED_TOKENS} of its prompt_tokens={prompt}"
            )
        if not 0 <= arrival < inf:
            raise ValueError(
                f"request_id={self.request_id!r}: arrival_s={arrival!r}: must be finite and not negative"
            )
