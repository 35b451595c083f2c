"""Tokens to text as they come, and the search for texts that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

from gpuedu.llama import Tokenizer

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for bytes that make no character yet."""


class Detokenizer:
    """The text of a growing list of tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    stop : sequence of str
        Texts before which the answer ends.

    Notes
    -----
    A token may be part of a character, and a token's text may depend on the token before: only the last few
    tokens are decoded each time, once with and once without the new one, and the difference is new text.
    Text that may turn out to be the beginning of a stop text is held back from :meth:`take`.

    Examples
    --------
    >>> from gpuedu.tinylm import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> words = Detokenizer(tokenizer, stop=["years"])
    >>> for token in tokenizer.encode("Four score and seven years ago"):
    ...     if words.append(token):
    ...         break
    >>> words.text
    'Four score and seven '
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._before = 0  # tokens from here on give the new ones their surroundings
        self._decoded = 0  # tokens up to here are in the text
        self._taken = 0
        self.text = ""

    def append(self, token: int) -> bool:
        """Take one token more; whether a stop text is complete, and then the text ends before it."""
        self._tokens.append(token)
        tail = self._tokenizer.decode(self._tokens[self._before :])
        if tail.endswith(INCOMPLETE):
            return False
        return self._grow(tail)

    def finish(self) -> None:
        """No token will come: bytes that make no character stay as they are."""
        if self._decoded < len(self._tokens):
            self._grow(self._tokenizer.decode(self._tokens[self._before :]))

    def take(self, finished: bool) -> str:
        """Text since the last call, but for what could still become a stop text."""
        held_back = 0 if finished else max((len(stop) - 1 for stop in self._stop), default=0)
        end = max(self._taken, len(self.text) - held_back)
        piece, self._taken = self.text[self._taken : end], end
        return piece

    def _grow(self, tail: str) -> bool:
        known = self._tokenizer.decode(self._tokens[self._before : self._decoded])
        searched = max(0, len(self.text) - max((len(stop) - 1 for stop in self._stop), default=0))
        self.text += tail[len(known) :]
        self._before, self._decoded = self._decoded, len(self._tokens)
        found = [place for stop in self._stop if (place := self.text.find(stop, searched)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)
