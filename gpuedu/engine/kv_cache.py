"""The tensors behind the block tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpuedu.checks import check_count
from gpuedu.llama import LlamaConfig


class PagedKVCache:
    """Keys and values of all requests, in blocks.

    Parameters
    ----------
    config : LlamaConfig
        Of the model.
    num_blocks : int
        Blocks that there are.
    block_size : int
        Tokens in a block.
    dtype : torch.dtype
        Of the model.
    device : torch.device or str
        Of the model.

    Attributes
    ----------
    keys, values : list of Tensor
        For each layer (num_blocks, block_size, kv_heads, head_dim); keys are rotated.

    Notes
    -----
    The block of token t of a request is entry ``t // block_size`` of its block table, and the token's *slot*
    is ``block * block_size + t % block_size``.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> cache = PagedKVCache(LlamaConfig(MODELS["smollm2-135m"], context_length=8192), num_blocks=10)
    >>> cache.memory_bytes == 160 * MODELS["smollm2-135m"].kv_cache_bytes_per_token(dtype_bytes=4)
    True
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        block_size: int = 16,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("num_blocks", num_blocks)
        check_count("block_size", block_size)
        shape = config.shape
        size = num_blocks, block_size, shape.kv_heads, shape.head_dim
        self.block_size = block_size
        self._blocks = torch.zeros((2, shape.layers, *size), dtype=dtype, device=device)
        self.keys, self.values = (list(half) for half in self._blocks)
        self._gathered = torch.empty((2, 0, *size[1:]), dtype=dtype, device=device)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all blocks, used or not."""
        return self._blocks.nbytes

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero whole blocks in every layer.

        Parameters
        ----------
        blocks : Tensor
            (n,), int64.

        Notes
        -----
        For blocks that a request begins and does not fill at once: the slots behind its last token are
        masked, but a weight of 0 times a NaN that the last holder left there would still be NaN.
        """
        self._blocks.index_fill_(2, blocks, 0)

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put new tokens' keys and values where the block tables say.

        Parameters
        ----------
        layer : int
            Which.
        slots : Tensor
            (tokens,), int64.
        k, v : Tensor
            (tokens, kv_heads, head_dim).
        """
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, k)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, v)

    def gather(self, layer: int, blocks: torch.Tensor, requests: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some requests, each in a row, one block after the other.

        Parameters
        ----------
        layer : int
            Which.
        blocks : Tensor
            (requests * blocks of each,), int64: their block tables, padded to one length.
        requests : int
            How many.

        Returns
        -------
        tuple of Tensor
            (requests, kv_heads, blocks of each * block_size, head_dim); valid until the next call.
        """
        count = len(blocks)
        if count > self._gathered.shape[1]:
            # A buffer that stays: memory asked for anew in each layer would cost more than the copying
            self._gathered = self._gathered.new_empty((2, 2 * count, *self._gathered.shape[2:]))
        k, v = self._gathered[:, :count]
        torch.index_select(self.keys[layer], 0, blocks, out=k)
        torch.index_select(self.values[layer], 0, blocks, out=v)
        rows = requests, -1, *k.shape[2:]
        return k.view(rows).transpose(1, 2), v.view(rows).transpose(1, 2)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to), one after the other, in every layer."""
        for tensor in (*self.keys, *self.values):
            for source, destination in pairs:
                tensor[destination] = tensor[source]
