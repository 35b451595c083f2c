"""The Triton kernels against PyTorch's FlashAttention on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

TOKENS, WIDTH = 16384, 2048
"""Tokens in the batch and width of the model, whatever the length and the head, as in FlashAttention-2."""


def compare(
    lengths: Sequence[int], head_dims: Sequence[int], dtype: torch.dtype, repeats: int
) -> Iterator[dict]:
    """Throughput of forward and of forward and backward, ours and PyTorch's.

    Parameters
    ----------
    lengths : sequence of int
        Tokens N of a sequence; the batch has ``TOKENS`` in all.
    head_dims : sequence of int
        Widths of a head; there are ``WIDTH`` / d heads.
    dtype : torch.dtype
        FP16 or BF16.
    repeats : int
        Runs, of which the median counts.

    Yields
    ------
    dict
        Shape, largest difference of the outputs, and by pass: milliseconds and TFLOP/s of both, by the
        count of useful products (4 d a visible pair forward, 10 d backward), and the ratio.
    """
    for head_dim in head_dims:
        for length in lengths:
            for causal in (False, True):
                yield _one_shape(length, head_dim, causal, dtype, repeats)


def _one_shape(length: int, head_dim: int, causal: bool, dtype: torch.dtype, repeats: int) -> dict:
    from .triton_kernel import triton_attention  # triton is an extra

    batch, heads = max(1, TOKENS // length), WIDTH // head_dim
    q, k, v = (
        torch.randn(batch, heads, length, head_dim, device="cuda", dtype=dtype).requires_grad_()
        for _ in range(3)
    )
    direction = torch.randn_like(q)

    def ours():
        return triton_attention(q, k, v, causal=causal)

    def theirs():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    def backward_of(function):
        return lambda: torch.autograd.grad(function(), (q, k, v), direction)

    row = {
        "length": length, "head_dim": head_dim, "heads": heads, "batch": batch, "causal": causal,
        "dtype": str(dtype).removeprefix("torch."),
        "max_difference": (ours() - theirs()).abs().max().item(),
    }  # fmt: skip
    pairs = length * (length + 1) // 2 if causal else length**2
    for name, products, calls in (
        ("forward", 4, (ours, theirs)),
        ("forward_backward", 14, (backward_of(ours), backward_of(theirs))),
    ):
        flops = products * head_dim * pairs * heads * batch
        mine, other = (_seconds(call, repeats) for call in calls)
        row[name] = {
            "triton_ms": 1e3 * mine, "sdpa_ms": 1e3 * other,
            "triton_tflops": flops / mine / 1e12, "sdpa_tflops": flops / other / 1e12,
            "times_sdpa": other / mine,
        }  # fmt: skip
    return row


def _seconds(function: Callable, repeats: int) -> float:
    """Median time on the GPU's own clock, after runs that warm up and choose tiles."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times)
