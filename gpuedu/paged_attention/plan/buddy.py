"""The buddy allocator: contiguous memory in powers of two."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from gpuedu.checks import check_count


class BuddyAllocator:
    """Hands out contiguous pieces, each a power of two long and aligned to its length.

    A piece too long is halved until it fits; a freed half joins its other half (its buddy) again.

    Parameters
    ----------
    capacity : int
        Units of memory, at least 1, of any length: it begins as one piece for each bit of that number.

    Raises
    ------
    ValueError, TypeError
        If ``capacity`` is not a whole number of at least 1.

    References
    ----------
    Kwon et al. 2023, section 6.1: how Orca is assumed to place what it reserves.

    Examples
    --------
    >>> memory = BuddyAllocator(12)
    >>> memory.allocate(3), memory.allocate(4), memory.allocate(5)
    (8, 0, None)
    >>> memory.free(0)
    >>> memory.allocate(5)
    0
    """

    def __init__(self, capacity: int) -> None:
        check_count("capacity", capacity)
        self.capacity = capacity
        self._free: dict[int, list[int]] = {}  # addresses in order, by length
        self._is_free: set[tuple[int, int]] = set()  # the same as (address, length)
        self._held: dict[int, int] = {}
        address = 0
        for bit in reversed(range(capacity.bit_length())):
            if capacity >> bit & 1:
                self._add(address, 1 << bit)
                address += 1 << bit

    def allocate(self, length: int) -> int | None:
        """Address of a piece of at least ``length`` units, from the shortest that fits; None if none does."""
        check_count("length", length)
        wanted = 1 << (length - 1).bit_length()
        fitting = [size for size, addresses in self._free.items() if size >= wanted and addresses]
        if not fitting:
            return None
        size = min(fitting)
        address = self._free[size][0]
        self._remove(address, size)
        while size > wanted:
            size //= 2
            self._add(address + size, size)
        self._held[address] = size
        return address

    def free(self, address: int) -> None:
        """Give back a piece; ValueError if none in use begins there."""
        if address not in self._held:
            raise ValueError(f"address={address!r}: no piece in use begins there")
        size = self._held.pop(address)
        while (address ^ size, size) in self._is_free:
            self._remove(address ^ size, size)
            address &= ~size
            size *= 2
        self._add(address, size)

    def length(self, address: int) -> int:
        """Units of the piece in use at ``address``, what was asked for rounded up; KeyError if none."""
        return self._held[address]

    def holes(self) -> Iterator[tuple[int, int]]:
        """The free pieces as (address, length), by address."""
        yield from sorted(self._is_free)

    def _add(self, address: int, size: int) -> None:
        self._is_free.add((address, size))
        insort(self._free.setdefault(size, []), address)

    def _remove(self, address: int, size: int) -> None:
        self._is_free.remove((address, size))
        addresses = self._free[size]
        del addresses[bisect_left(addresses, address)]
