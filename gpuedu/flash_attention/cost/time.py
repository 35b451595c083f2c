"""How long a plan takes on a GPU: the slower of arithmetic and traffic, where there is work."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.hardware import DTYPE_BYTES, GPU

from ..plan import AttentionShape, Tiles
from .kernels import KernelCost, kernel_costs
from .traffic import FP32_TENSORS, total_traffic


@dataclass(frozen=True)
class KernelTime:
    """What one phase takes.

    Parameters
    ----------
    name : str
        What it computes.
    compute_s, memory_s : float
        Seconds for its matrix products at the peak, and for its bytes at the peak, with the whole GPU.
    busy : float
        Share of the GPU's multiprocessors that have a program, on average; above 0, at most 1.
    """

    name: str
    compute_s: float
    memory_s: float
    busy: float

    @property
    def seconds(self) -> float:
        """The slower of the two, on the busy share of the GPU."""
        return max(self.compute_s, self.memory_s) / self.busy


def kernel_times(
    plan: str, attention: AttentionShape, tiles: Tiles, gpu: GPU, dtype: str = "fp16", splits: int = 1
) -> tuple[KernelTime, ...]:
    """What each phase of a plan takes by the roofline.

    Parameters
    ----------
    plan, attention, tiles, splits
        As for :func:`~gpuedu.flash_attention.cost.traffic`.
    gpu : GPU
        Whose peaks count.
    dtype : str
        Of Q, K and V; statistics and partial results are in FP32.

    Returns
    -------
    tuple of KernelTime
        One for each phase, in order.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed, or the GPU does not multiply this dtype.

    Notes
    -----
    A program runs on one multiprocessor and has its share of both peaks. Programs run in waves of one for
    each multiprocessor, and the last wave may be nearly empty: the busy share is programs / (waves x
    multiprocessors). Left out: the softmax's own instructions, launches, the L2 cache, several programs on
    one multiprocessor, and that one multiprocessor alone can draw more than its share of bandwidth. So the
    result is below what a kernel takes where the GPU is full, and above it where it is not.

    References
    ----------
    Williams, Waterman, Patterson 2009 (roofline).

    Examples
    --------
    One new token before 65,536 cached ones, 16 query heads on 2 key heads:

    >>> from gpuedu.hardware import GPUS
    >>> decode = AttentionShape(1, 65536, 128, heads=16, kv_heads=2)
    >>> for plan, splits in (("version_2", 1), ("split_kv", 54)):
    ...     times = kernel_times(plan, decode, Tiles(1, 128), GPUS["A100-80GB"], splits=splits)
    ...     print(plan, f"{1e6 * sum(t.seconds for t in times):.0f} us", [round(t.busy, 2) for t in times])
    version_2 1777 us [0.15]
    split_kv 46 us [0.96, 0.02]
    """
    kernels = kernel_costs(plan, attention, tiles, splits)
    return tuple(_time(kernel, gpu, dtype) for kernel in kernels)


def attention_time(
    plan: str, attention: AttentionShape, tiles: Tiles, gpu: GPU, dtype: str = "fp16", splits: int = 1
) -> float:
    """What a plan takes by the roofline, its phases one after the other.

    Parameters
    ----------
    plan, attention, tiles, gpu, dtype, splits
        As for :func:`kernel_times`.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    Forward of GPT-2 medium on the paper's GPU, in milliseconds:

    >>> from gpuedu.hardware import GPUS
    >>> gpt2 = AttentionShape(1024, 1024, 64, heads=16, batch=64)
    >>> [round(1e3 * attention_time(plan, gpt2, Tiles(64, 384), GPUS["A100-40GB"]), 2)
    ...  for plan in ("standard", "version_1")]
    [5.87, 1.13]
    """
    return sum(kernel.seconds for kernel in kernel_times(plan, attention, tiles, gpu, dtype, splits))


def _time(kernel: KernelCost, gpu: GPU, dtype: str) -> KernelTime:
    peak = gpu.peak(dtype)
    nbytes = total_traffic([kernel.tensors]).nbytes(DTYPE_BYTES[dtype], fp32=FP32_TENSORS)
    busy = 1.0
    if kernel.programs:
        waves = -(-kernel.programs // gpu.sms)
        busy = kernel.programs / (waves * gpu.sms)
    return KernelTime(kernel.name, kernel.matmul_flops / peak, nbytes / gpu.memory_bandwidth, busy)


def best_splits(attention: AttentionShape, tiles: Tiles, gpu: GPU, dtype: str = "fp16") -> int:
    """The number of parts with which split-KV is fastest by :func:`attention_time`.

    Parameters
    ----------
    attention, tiles, gpu, dtype
        As for :func:`kernel_times`.

    Returns
    -------
    int
        The smallest of the best, at most one tile of keys a part and 128 parts.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Notes
    -----
    More parts fill the GPU, and each writes an O and an LSE that the combination reads: with enough
    sequences in the batch one part is best.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> def parts(batch):
    ...     decode = AttentionShape(1, 8192, 128, heads=16, kv_heads=2, batch=batch)
    ...     return best_splits(decode, Tiles(1, 128), GPUS["H100-SXM"])
    >>> [parts(batch) for batch in (1, 8, 66)]
    [32, 8, 1]
    """
    most = min(128, max(1, -(-attention.keys // tiles.columns)))
    return min(
        range(1, most + 1),
        key=lambda parts: attention_time("split_kv", attention, tiles, gpu, dtype, parts),
    )
