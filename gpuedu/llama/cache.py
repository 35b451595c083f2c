"""Keys and values of past tokens, kept in one contiguous tensor a layer."""

from __future__ import annotations

import torch

from gpuedu.checks import check_count

from .model import LlamaConfig


class KVCache:
    """Keys and values of the tokens that a model has seen, with room for more.

    Parameters
    ----------
    config : LlamaConfig
        Of the model.
    batch : int
        Sequences, all of one length.
    capacity : int, optional
        The most tokens of each; the model's context if not given.
    dtype : torch.dtype
        Of the model.
    device : torch.device or str
        Of the model.

    Raises
    ------
    ValueError
        If ``batch`` or ``capacity`` is below 1.

    Notes
    -----
    Room for all of ``capacity`` is taken at once; serving systems hand out blocks as they are needed.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> cache = KVCache(LlamaConfig(MODELS["smollm2-135m"], context_length=8192), capacity=100)
    >>> cache.memory_bytes == 100 * MODELS["smollm2-135m"].kv_cache_bytes_per_token(dtype_bytes=4)
    True
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int = 1,
        capacity: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        capacity = config.context_length if capacity is None else capacity
        check_count("batch", batch)
        check_count("capacity", capacity)
        shape = config.shape
        size = 2, shape.layers, batch, shape.kv_heads, capacity, shape.head_dim
        self._keys, self._values = torch.zeros(size, dtype=dtype, device=device)
        self._held = [0] * shape.layers  # tokens of each layer: during a pass the first are ahead

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return min(self._held)

    @property
    def capacity(self) -> int:
        """The most tokens of a sequence."""
        return self._keys.shape[-2]

    @property
    def memory_bytes(self) -> int:
        """Bytes taken, used or not."""
        return self._keys.nbytes + self._values.nbytes

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new tokens' keys and values of one layer.

        Parameters
        ----------
        layer : int
            Which.
        k, v : Tensor
            (batch, kv_heads, tokens, head_dim), keys rotated.

        Returns
        -------
        tuple of Tensor
            Keys and values of all tokens so far, (batch, kv_heads, length, head_dim).

        Raises
        ------
        ValueError
            If there is no room, or batch, heads or width are not the cache's.
        """
        held, room = self._held[layer], self._keys[layer]
        if (*k.shape[:2], k.shape[3]) != (*room.shape[:2], room.shape[3]) or k.shape != v.shape:
            raise ValueError(
                f"k of shape {tuple(k.shape)}, v of {tuple(v.shape)}: must be "
                f"({room.shape[0]}, {room.shape[1]}, tokens, {room.shape[3]})"
            )
        end = held + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"{end} tokens: must be at most capacity={self.capacity}")
        self._keys[layer][:, :, held:end] = k
        self._values[layer][:, :, held:end] = v
        self._held[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens, as a rejected draft asks for.

        Parameters
        ----------
        length : int
            Tokens to keep.

        Raises
        ------
        ValueError
            If there are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length={length}: must be from 0 to {self.length}, what the cache holds")
        self._held = [length] * len(self._held)
