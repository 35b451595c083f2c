"""Run with TRITON_INTERPRET=1: the Triton kernels on a CPU, errors against references as JSON.

``python triton_jobs.py`` prints a list of ``{name, kernel, reference, scale}``: largest differences from
attention in float64, of the kernel and of plain attention in the same dtype.
"""

from __future__ import annotations

import json

import torch

from gpuedu.flash_attention.run import attention
from gpuedu.flash_attention.run.triton_kernel import INTERPRETED, triton_attention

SHAPES = [  # queries, keys, heads, kv_heads, head_dim; tiles are 32 x 16
    (33, 49, 2, 1, 16),
    (40, 12, 1, 1, 32),  # some queries see nothing when causal
    (1, 40, 2, 1, 16),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plain(q, k, v, causal):
    """Attention in the dtype of its inputs, as a framework without fusion computes it."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v.repeat_interleave(group, 1)


def results(function, inputs, direction):
    """Output and gradients."""
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, direction.to(out.dtype))]


def case(shape, dtype, causal):
    queries, keys, heads, kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(queries)
    sizes = [(1, heads, queries), (1, kv_heads, keys), (1, kv_heads, keys)]
    inputs = [torch.randn(*s, head_dim, generator=generator).to(dtype).requires_grad_() for s in sizes]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    direction = torch.randn(1, heads, queries, head_dim, generator=generator).to(dtype)
    true = results(lambda *x: attention(*x, causal=causal), exact, direction)
    ours = results(lambda *x: triton_attention(*x, causal=causal), inputs, direction)
    other = results(lambda *x: plain(*x, causal), inputs, direction)
    for name, mine, theirs, right in zip(("O", "dQ", "dK", "dV"), ours, other, true, strict=True):
        yield {
            "name": f"{name} {shape} {dtype} causal={causal}",
            "dtype": str(mine.dtype),
            "kernel": (mine.double() - right).abs().max().item(),
            "reference": (theirs.double() - right).abs().max().item(),
        }


def strided_and_lse():
    """Heads and tokens the other way round in memory, and the LSE."""
    q, k, v = torch.randn(3, 1, 40, 2, 16, generator=torch.Generator().manual_seed(1)).transpose(2, 3)
    out, lse = triton_attention(q, k, v, causal=True, scale=0.3, return_lse=True)
    expected, expected_lse = attention(q, k, v, causal=True, scale=0.3, return_lse=True)
    blind, blind_lse = triton_attention(q, k[:, :, :8], v[:, :, :8], causal=True, return_lse=True)
    return {
        "out": (out - expected).abs().max().item(),
        "lse": (lse - expected_lse).abs().max().item(),
        "blind rows": blind[:, :, :32].abs().max().item(),
        "blind lse": bool((blind_lse[:, :, :32] == float("-inf")).all()),
        "empty": list(triton_attention(q[:, :, :0], k, v).shape),
    }


if __name__ == "__main__":
    assert INTERPRETED
    torch.set_num_threads(1)
    cases = [
        row for shape in SHAPES for dtype in DTYPES for causal in (False, True)
        for row in case(shape, dtype, causal)
    ]  # fmt: skip
    print(json.dumps({"cases": cases, "others": strided_and_lse()}))
