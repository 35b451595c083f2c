"""Keys and values in blocks: one tensor each, addressed by block tables alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gpuedu.checks import check_count


class PagedKVCache:
    """The keys and values of one layer, in blocks.

    Parameters
    ----------
    num_blocks, block_size : int
        Blocks, and tokens in a block.
    key_heads, head_dim : int
        Shape of a token's keys and of its values.
    dtype, device : torch.dtype, torch.device or str
        Of the tensors.

    Attributes
    ----------
    keys, values : Tensor
        Shape (num_blocks, block_size, key_heads, head_dim).

    Raises
    ------
    ValueError, TypeError
        For a size below 1.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        key_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = dict(num_blocks=num_blocks, block_size=block_size, key_heads=key_heads, head_dim=head_dim)
        for name, size in shape.items():
            check_count(name, size)
        # NaN where nothing has been written: whoever reads a slot too many sees it
        self.keys = torch.full(tuple(shape.values()), torch.nan, dtype=dtype, device=device)
        self.values = torch.full_like(self.keys, torch.nan)
        self.block_size = block_size

    def slots(self, block_table: Sequence[int], start: int, stop: int) -> Tensor:
        """Flat slot numbers of tokens ``start`` to ``stop - 1``: block times block size plus offset.

        Raises
        ------
        ValueError
            If the table is too short, or ``start`` and ``stop`` are out of order.
        """
        room = len(block_table) * self.block_size
        if not 0 <= start <= stop <= room:
            raise ValueError(
                f"start={start}, stop={stop}: must be in order and within the table's {room} slots"
            )
        positions = torch.arange(start, stop, device=self.keys.device)
        table = torch.as_tensor(block_table, device=self.keys.device)
        return table[positions // self.block_size] * self.block_size + positions % self.block_size

    def write(self, block_table: Sequence[int], start: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of new tokens.

        Parameters
        ----------
        block_table : Sequence[int]
            Of the sequence that they belong to.
        start : int
            Position of the first of them.
        keys, values : Tensor
            Shape (tokens, key_heads, head_dim).

        Raises
        ------
        ValueError
            If the shapes do not fit, or the table has no room.
        """
        if keys.shape != values.shape or keys.shape[1:] != self.keys.shape[2:]:
            raise ValueError(
                f"keys {tuple(keys.shape)}, values {tuple(values.shape)}: "
                f"must be (tokens, {self.keys.shape[2]}, {self.keys.shape[3]}) both"
            )
        slots = self.slots(block_table, start, start + len(keys))
        self.keys.flatten(0, 1)[slots] = keys
        self.values.flatten(0, 1)[slots] = values

    def read(self, block_table: Sequence[int], tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence's first ``tokens`` tokens: (tokens, key_heads, head_dim)."""
        slots = self.slots(block_table, 0, tokens)
        return self.keys.flatten(0, 1)[slots], self.values.flatten(0, 1)[slots]

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Carry out block copies (from, to) one after the other, as the manager's ``copies`` wants it."""
        for source, destination in pairs:
            self.keys[destination] = self.keys[source]
            self.values[destination] = self.values[source]

    def copy_blocks_to(self, other: PagedKVCache, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy blocks (here, there) into another cache: a swap, out or in."""
        for here, there in pairs:
            other.keys[there] = self.keys[here].to(other.keys.device)
            other.values[there] = self.values[here].to(other.values.device)
