"""An answer token by token, for somebody who may go away."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator

from .outputs import Piece


class Stream(Iterator[Piece]):
    """The pieces of one answer; to close it, or to drop it, says that nobody wants the rest.

    Parameters
    ----------
    pieces : iterable of Piece
        Makes them.
    abandon : callable
        Called once: after the last piece, after an error, or when nobody listens any more.

    Notes
    -----
    The generator alone would not do: closed before its first piece it has run no line of its body, so that no
    ``finally`` of it is ever reached.

    Examples
    --------
    >>> stream = Stream((Piece(token, "") for token in (5, 6)), lambda: print("nobody listens"))
    >>> next(stream).token_id
    5
    >>> stream.close()
    nobody listens
    >>> list(stream)
    []
    """

    def __init__(self, pieces: Generator[Piece], abandon: Callable[[], object]) -> None:
        self._pieces = pieces
        self._abandon = weakref.finalize(self, abandon)
        self._abandon.atexit = False

    def __next__(self) -> Piece:
        """The next piece, as soon as there is one."""
        try:
            return next(self._pieces)
        except BaseException:
            self._abandon()
            raise

    def close(self) -> None:
        """Listen no more."""
        self._pieces.close()
        self._abandon()
