"""An iteration's time from the datasheet, corrected by measured efficiency."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuedu.all_reduce.cost import NCCL_ALGORITHMS, candidate_times
from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import DTYPE_BYTES, GPU, Link
from gpuedu.prefill_decode.cost import (
    DATASHEET,
    Efficiency,
    Operation,
    attention_operation,
    check_dtype,
    linear_operations,
)
from gpuedu.transformer import Transformer

from .interface import Line


@dataclass(frozen=True)
class RooflineStepCost:
    """Every operation takes its time on the roofline, one after the other.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Its shape.
    gpu : GPU
        The datasheet.
    efficiency : Efficiency
        Shares of the datasheet that kernels reach;
        :data:`gpuedu.prefill_decode.cost.MEASURED` has some.
    overhead_s : float
        Seconds an iteration takes besides: scheduling, launches, sampling.
    dtype, kv_dtype : str
        Of weights and activations, and of the cache.
    tensor_parallel : int
        GPUs of one replica; they add up their results twice a layer.
    link : Link or None
        Between those GPUs; needed if there is more than one.
    block_size : int
        Tokens in a block, for swapping.
    host_bandwidth : float
        Bytes a second between host and each GPU, for swapping.

    Raises
    ------
    TypeError, ValueError
        For a figure out of range, an unknown dtype or one that the GPU has no peak for, heads that cannot
        be divided, a missing ``link``, and a model with MLA or MoE.

    Notes
    -----
    With D sequences decoding at C tokens of context in all, attention takes time proportional to C + D
    and everything else depends on D alone: an iteration is a straight line in C. Operations do not
    overlap with each other, nor communication with operations. A KV head that several GPUs keep is swapped
    by each of them.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.prefill_decode.cost import MEASURED
    >>> from gpuedu.transformer import MODELS
    >>> cost = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"])
    >>> round(1e3 * cost.seconds(32, 32 * 1000), 2), round(1e3 * cost.seconds(0, 0, [(2048, 0)]), 1)
    (7.1, 38.3)
    """

    model: Transformer
    gpu: GPU
    efficiency: Efficiency = DATASHEET
    overhead_s: float = 0.0
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    tensor_parallel: int = 1
    link: Link | None = None
    block_size: int = 16
    host_bandwidth: float = 25e9

    def __post_init__(self) -> None:
        check_amount("overhead_s", self.overhead_s)
        check_amount("host_bandwidth", self.host_bandwidth, positive=True)
        check_count("block_size", self.block_size)
        check_count("tensor_parallel", self.tensor_parallel)
        check_dtype("dtype", self.dtype)
        check_dtype("kv_dtype", self.kv_dtype)
        if self.tensor_parallel > 1 and self.link is None:
            raise ValueError(f"link=None: must be given for tensor_parallel={self.tensor_parallel}")
        object.__setattr__(self, "_prices", self._attention_prices())
        object.__setattr__(self, "_weights_s", {})

    def _attention_prices(self) -> tuple[float, float, float]:
        """Seconds of arithmetic for a pair, of reading for a cached token, of moving for a new one."""

        def attention(pairs: int, cached: int, new: int) -> Operation:
            return attention_operation(
                self.model,
                pairs,
                cached,
                new,
                dtype=self.dtype,
                kv_dtype=self.kv_dtype,
                tensor_parallel=self.tensor_parallel,
            )

        parts = attention(1, 0, 0), attention(0, 1, 0), attention(0, 0, 1)
        return tuple(part.seconds(self.gpu, self.dtype, self.efficiency) for part in parts)

    def _attention(self, pairs: float, cached: float, new: float) -> float:
        pair_s, cached_s, new_s = self._prices
        return max(pair_s * pairs, cached_s * cached + new_s * new)

    def _weights(self, tokens: int, sequences: int) -> float:
        """Everything but attention: matrix products, communication, overhead."""
        key = tokens, sequences
        seconds = self._weights_s.get(key)
        if seconds is None:
            seconds = self._weights_s[key] = self._price_weights(tokens, sequences)
        return seconds

    def _price_weights(self, tokens: int, sequences: int) -> float:
        operations = linear_operations(
            self.model, tokens, sequences, dtype=self.dtype, tensor_parallel=self.tensor_parallel
        )
        total = self.overhead_s + sum(
            operation.seconds(self.gpu, self.dtype, self.efficiency) for operation in operations
        )
        if self.tensor_parallel > 1:
            nbytes = tokens * self.model.hidden_size * DTYPE_BYTES[self.dtype]
            times = candidate_times(self.tensor_parallel, nbytes, self.link, algorithms=NCCL_ALGORITHMS)
            total += 2 * self.model.layers * min(times.values())
        return total

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """Seconds of one iteration; see :class:`StepCost`."""
        chunks = list(chunks)
        tokens = decodes + sum(new for new, _ in chunks)
        total = self._weights(tokens, decodes + len(chunks))
        if decodes:
            cached = context_tokens + decodes
            total += self._attention(cached, cached, decodes)
        for new, context in chunks:
            total += self._attention(new * context + new * (new + 1) / 2, context + new, new)
        return total

    def line(self, decodes: int, context_tokens: int) -> Line:
        """Without chunks, seconds over the context; one piece for all contexts."""
        at_zero = self._attention(decodes, decodes, decodes)
        slope = (self._attention(decodes + 2**20, decodes + 2**20, decodes) - at_zero) / 2**20
        return Line(self._weights(decodes, decodes) + at_zero, slope)

    def swap_seconds(self, blocks: int) -> float:
        """Seconds to move blocks between host and GPUs, all of which do so at once."""
        parts = min(self.tensor_parallel, self.model.kv_heads)
        per_token = self.model.kv_cache_bytes_per_token(DTYPE_BYTES[self.kv_dtype]) / parts
        return blocks * self.block_size * per_token / self.host_bandwidth
