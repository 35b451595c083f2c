"""What paging replaced: each request's keys and values in one contiguous piece, reserved beforehand."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from gpuedu.checks import check_count

from .buddy import BuddyAllocator


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``.

    Parameters
    ----------
    count : int
        At least 1.

    Returns
    -------
    int

    Examples
    --------
    >>> [power_of_two(n) for n in (1, 5, 8)]
    [1, 8, 8]
    """
    return 1 << (count - 1).bit_length()


RESERVATIONS: dict[str, Callable[[int, int, int], int]] = {
    "max": lambda prompt, output, longest: longest,
    "pow2": lambda prompt, output, longest: min(longest, prompt + power_of_two(output)),
    "oracle": lambda prompt, output, longest: prompt + output,
}
"""Slots reserved for a request of ``prompt`` and ``output`` tokens where ``longest`` are allowed.

``max``: always the longest. ``pow2``: the output rounded up to a power of two, as if a predictor were
right within a factor of two. ``oracle``: what it will turn out to need. (Orca's three variants in Kwon et
al. 2023, section 6.1.)
"""


@dataclass(frozen=True)
class Piece:
    """A request's piece of memory, in token slots: what it asked for, and what the allocator gave."""

    address: int
    reserved: int
    given: int


class ContiguousManager:
    """One contiguous piece a request, from admission to end.

    Parameters
    ----------
    capacity : int
        Token slots of the KV cache.
    reservation : str
        A key of ``RESERVATIONS``.
    longest : int
        Tokens that a request may have, prompt and output.

    Raises
    ------
    ValueError, TypeError
        For a size below 1 or a name that there is not.

    Examples
    --------
    >>> manager = ContiguousManager(64, "pow2", longest=32)
    >>> manager.admit("a", prompt=6, output=5)
    Piece(address=0, reserved=14, given=16)
    >>> manager.free("a")
    """

    def __init__(self, capacity: int, reservation: str, longest: int) -> None:
        check_count("longest", longest)
        if reservation not in RESERVATIONS:
            raise ValueError(f"reservation={reservation!r}: must be one of {', '.join(RESERVATIONS)}")
        self.memory = BuddyAllocator(capacity)
        self.longest = longest
        self._slots = RESERVATIONS[reservation]
        self.pieces: dict[Hashable, Piece] = {}

    def admit(self, request_id: Hashable, prompt: int, output: int) -> Piece | None:
        """Reserve a request's slots; None if no hole is long enough.

        Raises
        ------
        ValueError
            If the request is in already, is longer than allowed, or would not fit into empty memory.
        """
        check_count("prompt", prompt)
        check_count("output", output)
        if request_id in self.pieces:
            raise ValueError(f"request_id={request_id!r}: has its piece already")
        if prompt + output > self.longest:
            raise ValueError(f"prompt + output = {prompt + output}: must be at most {self.longest}")
        reserved = self._slots(prompt, output, self.longest)
        if power_of_two(reserved) > self.memory.capacity:
            raise ValueError(f"reserved={reserved}: never fits, memory has {self.memory.capacity} slots")
        address = self.memory.allocate(reserved)
        if address is None:
            return None
        piece = Piece(address, reserved, self.memory.length(address))
        self.pieces[request_id] = piece
        return piece

    def free(self, request_id: Hashable) -> None:
        """End a request; KeyError if it is not in."""
        if request_id not in self.pieces:
            raise KeyError(f"request_id={request_id!r}: holds no memory")
        self.memory.free(self.pieces.pop(request_id).address)
