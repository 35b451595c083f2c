"""FlashAttention as Triton kernels: one for the forward, two and a small one for the backward.

The forward is the plan ``version_2``, the backward ``two_pass_backward``; each program is one of theirs.
Causal masks are aligned at the bottom right, query heads may share key heads. Tiles that are seen whole are
not masked: each loop over tiles is split in two where the diagonal begins.

Needs ``triton``, and an NVIDIA GPU from Ampere on; with ``TRITON_INTERPRET=1`` in the environment, Triton's
interpreter runs the kernels on a CPU, slowly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpuedu.checks import check_amount

INTERPRETED = triton.knobs.runtime.interpret
HEAD_DIMS = (16, 32, 64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b; the interpreter multiplies no BF16, so there operands are widened first."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _seen(queries, keys, n_keys, offset, CAUSAL: tl.constexpr):
    """Which of ``keys`` each of ``queries`` sees; the two lie along different axes."""
    seen = keys < n_keys
    if CAUSAL:
        seen = seen & (keys <= queries + offset)
    return seen


@triton.jit
def _rows(pointer, rows, stride, n_rows, dims, CHECK: tl.constexpr):
    """A tile of rows; those behind the end are 0."""
    place = pointer + rows[:, None] * stride + dims[None, :]
    if CHECK:
        return tl.load(place, mask=rows[:, None] < n_rows, other=0.0)
    return tl.load(place)


# Forward -----------------------------------------------------------------------------------------


@triton.jit
def _forward_tiles(
    acc, total, maximum, q, k, v, stride_k, stride_v, start, stop, queries, n_keys, offset, scale,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the keys from ``start`` to ``stop`` into O, l and m; ``scale`` has log2(e) in it."""
    dims = tl.arange(0, HEAD_DIM)
    for first in range(start, stop, COLUMNS):
        keys = first + tl.arange(0, COLUMNS)
        k_tile = _rows(k, keys, stride_k, n_keys, dims, MASK)
        s = _dot(q, k_tile.T, tl.zeros((q.shape[0], COLUMNS), tl.float32), UPCAST, PRECISION)
        if MASK:
            s = tl.where(_seen(queries[:, None], keys[None, :], n_keys, offset, CAUSAL), s, float("-inf"))
        new = tl.maximum(maximum, tl.max(s, 1) * scale)
        base = new
        if MASK:  # a row that has seen nothing yet
            base = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(s * scale - base[:, None])
        factor = tl.exp2(maximum - base)
        total = total * factor + tl.sum(p, 1)
        v_tile = _rows(v, keys, stride_v, n_keys, dims, MASK)
        acc = _dot(p.to(v_tile.dtype), v_tile, acc * factor[:, None], UPCAST, PRECISION)
        maximum = new
    return acc, total, maximum


@triton.jit
def _forward(
    Q, K, V, OUT, LSE, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row,
    heads, group, n_queries, n_keys,
    CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: one block of queries of one head, over the keys that it sees."""
    block = tl.program_id(0)
    if CAUSAL:  # the longest rows first, so that none of them is left alone at the end
        block = tl.num_programs(0) - 1 - block
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    q = Q + batch * q_batch + head * q_head
    k = K + batch * k_batch + head // group * k_head
    v = V + batch * v_batch + head // group * v_head
    queries, dims = block * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    q_tile = _rows(q, queries, q_row, n_queries, dims, True)

    offset = n_keys - n_queries
    whole, stop = n_keys // COLUMNS * COLUMNS, n_keys
    if CAUSAL:
        stop = tl.maximum(0, tl.minimum(n_keys, (block + 1) * ROWS + offset))
        whole = tl.maximum(0, tl.minimum(n_keys, block * ROWS + offset + 1)) // COLUMNS * COLUMNS
    acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    acc, total, maximum = _forward_tiles(
        acc, total, maximum, q_tile, k, v, k_row, v_row, 0, whole, queries, n_keys, offset, scale * LOG2_E,
        False, CAUSAL, COLUMNS, HEAD_DIM, UPCAST, PRECISION,
    )  # fmt: skip
    acc, total, maximum = _forward_tiles(
        acc, total, maximum, q_tile, k, v, k_row, v_row, whole, stop, queries, n_keys, offset, scale * LOG2_E,
        True, CAUSAL, COLUMNS, HEAD_DIM, UPCAST, PRECISION,
    )  # fmt: skip

    seen = queries < n_queries
    out = acc / tl.where(total == 0, 1.0, total)[:, None]
    place = OUT + batch * o_batch + head * o_head + queries[:, None] * o_row + dims[None, :]
    tl.store(place, out.to(OUT.dtype.element_ty), mask=seen[:, None])
    lse = tl.where(total == 0, float("-inf"), (maximum + tl.log2(tl.where(total == 0, 1.0, total))) / LOG2_E)
    tl.store(LSE + tl.program_id(1).to(tl.int64) * n_queries + queries, lse, mask=seen)


# Backward ----------------------------------------------------------------------------------------


@triton.jit
def _row_sums(
    OUT, DO, LSE, D, BASE, o_batch, o_head, o_row, g_batch, g_head, g_row, heads, n_queries,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """D, the sum of dO times O over each row; and the LSE in units of log2, where blind rows are infinite."""
    rows, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    out = _rows(OUT + batch * o_batch + head * o_head, rows, o_row, n_queries, dims, True)
    gradient = _rows(DO + batch * g_batch + head * g_head, rows, g_row, n_queries, dims, True)
    place, there = tl.program_id(1).to(tl.int64) * n_queries + rows, rows < n_queries
    tl.store(D + place, tl.sum(out.to(tl.float32) * gradient.to(tl.float32), 1), mask=there)
    lse = tl.load(LSE + place, mask=there, other=0.0)
    tl.store(BASE + place, tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E), mask=there)


@triton.jit
def _key_tiles(
    dk, dv, k_tile, v_tile, q, do, D, BASE, q_row, g_row, start, stop, keys, n_queries, n_keys, offset, scale,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dK and dV what the queries from ``start`` to ``stop`` give; tiles lie transposed, keys down."""
    dims = tl.arange(0, HEAD_DIM)
    for first in range(start, stop, ROWS):
        queries = first + tl.arange(0, ROWS)
        q_tile = _rows(q, queries, q_row, n_queries, dims, MASK)
        do_tile = _rows(do, queries, g_row, n_queries, dims, MASK)
        if MASK:
            there = queries < n_queries
            base = tl.load(BASE + queries, mask=there, other=float("inf"))
            d = tl.load(D + queries, mask=there, other=0.0)
        else:
            base, d = tl.load(BASE + queries), tl.load(D + queries)
        zero = tl.zeros((k_tile.shape[0], ROWS), tl.float32)
        s = _dot(k_tile, q_tile.T, zero, UPCAST, PRECISION) * scale
        if MASK:
            s = tl.where(_seen(queries[None, :], keys[:, None], n_keys, offset, CAUSAL), s, float("-inf"))
        p = tl.exp2(s - base[None, :])
        dv = _dot(p.to(do_tile.dtype), do_tile, dv, UPCAST, PRECISION)
        dp = _dot(v_tile, do_tile.T, zero, UPCAST, PRECISION)
        ds = p * (dp - d[None, :])
        dk = _dot(ds.to(q_tile.dtype), q_tile, dk, UPCAST, PRECISION)
    return dk, dv


@triton.jit
def _gradients_of_keys(
    Q, K, V, DO, D, BASE, DK, DV, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    kv_heads, group, n_queries, n_keys,
    CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of one block of keys, over the queries of its group that see it."""
    kv_head, batch = tl.program_id(1) % kv_heads, (tl.program_id(1) // kv_heads).to(tl.int64)
    start = tl.program_id(0) * COLUMNS
    keys, dims = start + tl.arange(0, COLUMNS), tl.arange(0, HEAD_DIM)
    k_tile = _rows(K + batch * k_batch + kv_head * k_head, keys, k_row, n_keys, dims, True)
    v_tile = _rows(V + batch * v_batch + kv_head * v_head, keys, v_row, n_keys, dims, True)

    offset = n_keys - n_queries
    first, whole = 0, 0  # queries from which some keys of the block are seen, and all
    if CAUSAL:
        first = tl.maximum(0, start - offset) // ROWS * ROWS
        whole = tl.minimum(tl.cdiv(tl.maximum(0, start + COLUMNS - 1 - offset), ROWS) * ROWS, n_queries)
    last = tl.maximum(whole, n_queries // ROWS * ROWS)
    dk = tl.zeros((COLUMNS, HEAD_DIM), tl.float32)
    dv = tl.zeros((COLUMNS, HEAD_DIM), tl.float32)
    for member in range(group):
        head = kv_head * group + member
        q, do = Q + batch * q_batch + head * q_head, DO + batch * g_batch + head * g_head
        row = (batch * kv_heads * group + head) * n_queries
        if CAUSAL:
            dk, dv = _key_tiles(
                dk, dv, k_tile, v_tile, q, do, D + row, BASE + row, q_row, g_row, first, whole, keys,
                n_queries, n_keys, offset, scale * LOG2_E, True, CAUSAL, ROWS, HEAD_DIM, UPCAST, PRECISION,
            )  # fmt: skip
        dk, dv = _key_tiles(
            dk, dv, k_tile, v_tile, q, do, D + row, BASE + row, q_row, g_row, whole, last, keys,
            n_queries, n_keys, offset, scale * LOG2_E, False, CAUSAL, ROWS, HEAD_DIM, UPCAST, PRECISION,
        )  # fmt: skip
        dk, dv = _key_tiles(
            dk, dv, k_tile, v_tile, q, do, D + row, BASE + row, q_row, g_row, last, n_queries, keys,
            n_queries, n_keys, offset, scale * LOG2_E, True, CAUSAL, ROWS, HEAD_DIM, UPCAST, PRECISION,
        )  # fmt: skip
    place = tl.program_id(1).to(tl.int64) * n_keys * HEAD_DIM + keys[:, None] * HEAD_DIM + dims[None, :]
    there = keys[:, None] < n_keys
    tl.store(DK + place, (dk * scale).to(DK.dtype.element_ty), mask=there)
    tl.store(DV + place, dv.to(DV.dtype.element_ty), mask=there)


@triton.jit
def _query_tiles(
    dq, q_tile, do_tile, d, base, k, v, k_row, v_row, start, stop, queries, n_keys, offset, scale,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dQ what the keys from ``start`` to ``stop`` give."""
    dims = tl.arange(0, HEAD_DIM)
    for first in range(start, stop, COLUMNS):
        keys = first + tl.arange(0, COLUMNS)
        k_tile = _rows(k, keys, k_row, n_keys, dims, MASK)
        v_tile = _rows(v, keys, v_row, n_keys, dims, MASK)
        zero = tl.zeros((q_tile.shape[0], COLUMNS), tl.float32)
        s = _dot(q_tile, k_tile.T, zero, UPCAST, PRECISION) * scale
        if MASK:
            s = tl.where(_seen(queries[:, None], keys[None, :], n_keys, offset, CAUSAL), s, float("-inf"))
        p = tl.exp2(s - base[:, None])
        dp = _dot(do_tile, v_tile.T, zero, UPCAST, PRECISION)
        ds = p * (dp - d[:, None])
        dq = _dot(ds.to(k_tile.dtype), k_tile, dq, UPCAST, PRECISION)
    return dq


@triton.jit
def _gradient_of_queries(
    Q, K, V, DO, D, BASE, DQ, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row,
    heads, group, n_queries, n_keys,
    CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: dQ of one block of queries of one head."""
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block
    head, batch = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    queries, dims = block * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    q_tile = _rows(Q + batch * q_batch + head * q_head, queries, q_row, n_queries, dims, True)
    do_tile = _rows(DO + batch * g_batch + head * g_head, queries, g_row, n_queries, dims, True)
    k = K + batch * k_batch + head // group * k_head
    v = V + batch * v_batch + head // group * v_head
    there, row = queries < n_queries, tl.program_id(1).to(tl.int64) * n_queries
    d = tl.load(D + row + queries, mask=there, other=0.0)
    base = tl.load(BASE + row + queries, mask=there, other=float("inf"))

    offset = n_keys - n_queries
    whole, stop = n_keys // COLUMNS * COLUMNS, n_keys
    if CAUSAL:
        stop = tl.maximum(0, tl.minimum(n_keys, (block + 1) * ROWS + offset))
        whole = tl.maximum(0, tl.minimum(n_keys, block * ROWS + offset + 1)) // COLUMNS * COLUMNS
    dq = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    dq = _query_tiles(
        dq, q_tile, do_tile, d, base, k, v, k_row, v_row, 0, whole, queries, n_keys, offset, scale * LOG2_E,
        False, CAUSAL, COLUMNS, HEAD_DIM, UPCAST, PRECISION,
    )  # fmt: skip
    dq = _query_tiles(
        dq, q_tile, do_tile, d, base, k, v, k_row, v_row, whole, stop, queries, n_keys, offset,
        scale * LOG2_E, True, CAUSAL, COLUMNS, HEAD_DIM, UPCAST, PRECISION,
    )  # fmt: skip
    place = (row + queries[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(DQ + place, (dq * scale).to(DQ.dtype.element_ty), mask=there[:, None])


# Launching ---------------------------------------------------------------------------------------


def _tuned(kernel, sizes):
    """``kernel`` with the tile that is fastest on this GPU, tried once for each kind of input."""
    if INTERPRETED:
        return kernel
    configs = [
        triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)
        for rows, columns, warps, stages in sizes
    ]
    return triton.autotune(configs, key=["n_queries", "n_keys", "CAUSAL", "HEAD_DIM", "PRECISION"])(kernel)


FORWARD_SIZES = (
    (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 4, 4), (64, 64, 4, 3),
    (64, 128, 4, 3), (128, 32, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2),
)  # fmt: skip
KEY_SIZES = (
    (32, 128, 8, 2), (32, 128, 8, 3), (64, 128, 8, 2), (64, 128, 8, 3), (16, 128, 8, 3), (64, 64, 8, 2),
    (32, 64, 4, 3), (32, 32, 4, 2),
)  # fmt: skip
QUERY_SIZES = (
    (128, 32, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3), (128, 128, 8, 2),
    (32, 32, 4, 2),
)  # fmt: skip
_forward_kernel = _tuned(_forward, FORWARD_SIZES)
_key_kernel = _tuned(_gradients_of_keys, KEY_SIZES)
_query_kernel = _tuned(_gradient_of_queries, QUERY_SIZES)
INTERPRETED_TILE = {"ROWS": 32, "COLUMNS": 16} if INTERPRETED else {}


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale):
        q, k, v = (_with_rows(t) for t in (q, k, v))
        batch, heads, n_queries, _ = q.shape
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty((batch, heads, n_queries), dtype=torch.float32)
        if out.numel():
            _forward_kernel[lambda meta: (triton.cdiv(n_queries, meta["ROWS"]), batch * heads)](
                q, k, v, out, lse, scale,
                *_strides(q, k, v, out), heads, heads // k.shape[1], n_queries, k.shape[2],
                **_constants(q, causal), **INTERPRETED_TILE,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale = causal, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, _):
        q, k, v, out, lse = ctx.saved_tensors
        gradient = _with_rows(gradient)
        batch, heads, n_queries, head_dim = q.shape
        kv_heads, n_keys = k.shape[1:3]
        d, base = torch.empty_like(lse), torch.empty_like(lse)
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        rows = 32
        if dq.numel():
            _row_sums[(triton.cdiv(n_queries, rows), batch * heads)](
                out, gradient, lse, d, base, *_strides(out, gradient), heads, n_queries,
                HEAD_DIM=head_dim, ROWS=rows,
            )  # fmt: skip
            _query_kernel[lambda meta: (triton.cdiv(n_queries, meta["ROWS"]), batch * heads)](
                q, k, v, gradient, d, base, dq, ctx.scale,
                *_strides(q, k, v, gradient), heads, heads // kv_heads, n_queries, n_keys,
                **_constants(q, ctx.causal), **INTERPRETED_TILE,
            )  # fmt: skip
        if dk.numel():
            _key_kernel[lambda meta: (triton.cdiv(n_keys, meta["COLUMNS"]), batch * kv_heads)](
                q, k, v, gradient, d, base, dk, dv, ctx.scale,
                *_strides(q, k, v, gradient), kv_heads, heads // kv_heads, n_queries, n_keys,
                **_constants(q, ctx.causal), **INTERPRETED_TILE,
            )  # fmt: skip
        return dq, dk, dv, None, None


def _with_rows(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` with the numbers of a row side by side, as the kernels ask; copied only if they are not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    """Batch, head and row stride of each."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _constants(q: torch.Tensor, causal: bool) -> dict:
    return {
        "CAUSAL": causal,
        "HEAD_DIM": q.shape[-1],
        "UPCAST": INTERPRETED and q.dtype == torch.bfloat16,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


def triton_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k^T) v by Triton kernels, with gradients.

    Parameters
    ----------
    q : Tensor
        Of shape (batch, heads, queries, d), FP16, BF16 or FP32; d one of 16, 32, 64, 128, 256.
    k, v : Tensor
        Of shape (batch, kv_heads, keys, d); ``kv_heads`` divides ``heads``.
    causal : bool
        No query sees a later key; the last query stands beside the last key.
    scale : float, optional
        1 / sqrt(d) by default.
    return_lse : bool
        Return the log of each row's sum too; no gradient flows through it.

    Returns
    -------
    Tensor or tuple of Tensor
        Of the shape of ``q``; with ``return_lse`` also (batch, heads, queries) in FP32.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, the scale is not above 0 and finite, or the tensors are not on a GPU
        (but under the interpreter).
    """
    from .attention import _shape  # the same questions as there

    shape = _shape(q, k, v, causal, (None, None))
    scale = shape.head_dim**-0.5 if scale is None else scale
    check_amount("scale", scale, positive=True)
    if q.dtype not in DTYPES:
        raise TypeError(f"q has dtype {q.dtype}: must be one of {', '.join(map(str, DTYPES))}")
    if shape.head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim={shape.head_dim}: must be one of {', '.join(map(str, HEAD_DIMS))}")
    if q.device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"q is on {q.device}: must be on a GPU, or TRITON_INTERPRET=1 set from the start")
    out, lse = _TritonAttention.apply(q, k, v, causal, scale)
    return (out, lse) if return_lse else out
