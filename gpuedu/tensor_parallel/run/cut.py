"""How a parameter is cut over the ranks, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """One of the matrices that are stored together as one, such as the keys' in queries, keys and values.

    Parameters
    ----------
    name : str
        What it is called in messages.
    length : int
        Its length along the axis that is cut.
    units : int
        How many units it consists of that stay whole: heads, say, or columns.
    copied : bool
        With more ranks than units, neighbors hold copies of the same unit.
    """

    name: str
    length: int
    units: int
    copied: bool = False

    def pieces(self, ranks: int) -> int:
        """How many different pieces there are on so many ranks.

        Raises
        ------
        ValueError
            If the units cannot be shared out evenly.

        Examples
        --------
        >>> Part("keys", 512, units=8, copied=True).pieces(16)
        8
        """
        if self.units % ranks == 0:
            return ranks
        if self.copied and ranks % self.units == 0:
            return self.units
        allowed = "a multiple or a divisor" if self.copied else "a multiple"
        raise ValueError(f"{self.name}={self.units}: must be {allowed} of the {ranks} ranks")

    def copies(self, ranks: int) -> int:
        """How many neighbors hold the same piece."""
        return ranks // self.pieces(ranks)


@dataclass(frozen=True)
class Cut:
    """A parameter cut along ``axis``, each of its ``parts`` by itself.

    A rank's own parameter holds its pieces of all parts, one after the other. (To cut the whole instead, as
    if it were of one part, would give one rank queries only and another keys and values.)

    Parameters
    ----------
    axis : int
        Of the stored parameter: (out, in) for a product.
    parts : tuple of Part
        In the order in which they are stored.

    Examples
    --------
    >>> gate_up = Cut(0, (Part("gate", 4, 4), Part("up", 4, 4)))
    >>> gate_up.take(torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), rank=1, ranks=2)
    tensor([ 2,  3, 12, 13])
    """

    axis: int
    parts: tuple[Part, ...]

    def length(self, ranks: int) -> int:
        """Length along ``axis`` of what a rank holds."""
        return sum(part.length // part.pieces(ranks) for part in self.parts)

    def take(self, whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
        """What ``rank`` of ``ranks`` holds of the whole parameter: a copy."""
        lengths = [part.length for part in self.parts]
        if whole.shape[self.axis] != sum(lengths):
            raise ValueError(
                f"shape {tuple(whole.shape)}: must have {sum(lengths)} along axis {self.axis}, whole"
            )
        pieces = []
        for part, tensor in zip(self.parts, whole.split(lengths, self.axis), strict=True):
            pieces.append(tensor.chunk(part.pieces(ranks), self.axis)[rank // part.copies(ranks)])
        return torch.cat(pieces, self.axis)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The whole parameter, given what each rank holds.

        Raises
        ------
        ValueError
            If the ranks' shapes do not fit, or copies of the same piece differ.
        """
        ranks = len(shards)
        for rank, shard in enumerate(shards):
            if shard.shape[self.axis] != self.length(ranks):
                raise ValueError(
                    f"shape {tuple(shard.shape)} on rank {rank}: must have {self.length(ranks)} along "
                    f"axis {self.axis} on {ranks} ranks"
                )
        by_rank = [list(self.local_parts(shard, ranks)) for shard in shards]
        pieces = []
        for i, part in enumerate(self.parts):
            copies = part.copies(ranks)
            for rank in range(ranks):
                owner = rank // copies * copies
                if not torch.equal(by_rank[rank][i], by_rank[owner][i]):
                    raise ValueError(f"{part.name}: the copies on ranks {owner} and {rank} differ")
            pieces += [by_rank[rank][i] for rank in range(0, ranks, copies)]
        return torch.cat(pieces, self.axis)

    def local_parts(self, shard: torch.Tensor, ranks: int) -> Iterator[torch.Tensor]:
        """The parts of what a rank holds, as views."""
        yield from shard.split([part.length // part.pieces(ranks) for part in self.parts], self.axis)
