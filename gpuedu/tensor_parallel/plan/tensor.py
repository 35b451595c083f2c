"""An array and how the ranks share it: cut along one axis, or whole on each of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight or an activation, and the part of it that each rank holds.

    Parameters
    ----------
    name : str
        What it is: ``"q"``, ``"gate"``, ``"norm input"``.
    site : str
        Where it is: a member of ``SITES``.
    shape : tuple of int
        Of the whole array, in the layout of :class:`torch.nn.Linear` for weights (out, in) and
        (batch, sequence, width) for activations.
    axis : int or None
        The axis that is cut; None if every rank holds all of it.
    pieces : int
        Different pieces that it is cut into, 1 without an axis. Fewer than there are ranks where
        several neighbors hold the same piece: KV heads, if there are fewer heads than ranks.
    ranks : int
        Tensor-parallel ranks t, a multiple of ``pieces``.
    count : int
        How many of its kind the model has: one a layer, or one.
    itemsize : float
        Bytes of one element.

    Raises
    ------
    ValueError
        If the cut does not go through evenly.

    Examples
    --------
    The keys' projection of a Llama 3 70B (8 KV heads) on 16 ranks; two ranks share each head:

    >>> k = Tensor("k", "attention_in", (1024, 8192), axis=0, pieces=8, ranks=16, count=80, itemsize=2)
    >>> k.local_shape, k.copies, k.bounds(3)
    ((128, 8192), 2, (128, 256))
    """

    name: str
    site: str
    shape: tuple[int, ...]
    axis: int | None
    pieces: int
    ranks: int
    count: int
    itemsize: float

    def __post_init__(self) -> None:
        if self.axis is None and self.pieces != 1:
            raise ValueError(f"{self.name}: pieces={self.pieces}: must be 1 where no axis is cut")
        if self.axis is not None and self.shape[self.axis] % self.pieces:
            raise ValueError(
                f"{self.name}: pieces={self.pieces}: must divide its {self.shape[self.axis]} without rest"
            )
        if self.ranks % self.pieces:
            raise ValueError(f"{self.name}: pieces={self.pieces}: must divide ranks={self.ranks}")

    @property
    def copies(self) -> int:
        """How many ranks hold the same piece: 1 where the cut is complete, all ranks without a cut."""
        return self.ranks // self.pieces

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the part that a rank holds."""
        return tuple(n // self.pieces if i == self.axis else n for i, n in enumerate(self.shape))

    @property
    def elements(self) -> int:
        """Elements of one whole array of this kind."""
        return prod(self.shape)

    @property
    def local_elements(self) -> int:
        """Elements of one such array that a rank holds."""
        return self.elements // self.pieces

    @property
    def local_bytes(self) -> float:
        """Bytes that a rank holds of all ``count`` arrays."""
        return self.count * self.local_elements * self.itemsize

    def bounds(self, rank: int) -> tuple[int, int]:
        """Start and stop along ``axis`` of what ``rank`` holds; ValueError where no axis is cut."""
        if self.axis is None:
            raise ValueError(f"{self.name}: not cut, so it has no bounds")
        if not 0 <= rank < self.ranks:
            raise ValueError(f"rank={rank}: must be from 0 to {self.ranks - 1}")
        piece, length = rank // self.copies, self.shape[self.axis] // self.pieces
        return piece * length, (piece + 1) * length
