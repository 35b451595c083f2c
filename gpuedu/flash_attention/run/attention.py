"""Attention by a plan, as a function with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from gpuedu.checks import check_count

from ..cost.traffic import FP32_TENSORS
from ..plan import BACKWARDS, FORWARDS, AttentionShape, TilePlan, Tiles, sequence_lengths, split_kv
from .machine import Machine, Odometer
from .options import Options
from .tile_math import run

TILES = Tiles(512, 512)
CACHE_ELEMENTS = 2**18
"""Scores of one tile that stay in the cache of one CPU core; more heads are taken one after the other."""

SPLIT_KV = "split_kv"
BACKWARD_OF = {
    "standard": "standard_backward",
    "version_1": "version_1_backward",
    "version_2": "version_2_backward",
    SPLIT_KV: "version_2_backward",
}


@dataclass(frozen=True)
class _Job:
    """What does not change between forward and backward."""

    shape: AttentionShape
    tiles: Tiles
    plan: str
    splits: int
    backward: str
    options: Options
    odometer: Odometer | None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    plan: str = "version_2",
    splits: int = 1,
    backward: str | None = None,
    tiles: Tiles = TILES,
    odometer: Odometer | None = None,
    return_lse: bool = False,
    sequence: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k^T) v, carried out tile by tile as a plan says.

    Parameters
    ----------
    q : Tensor
        Of shape (batch, heads, queries, d).
    k, v : Tensor
        Of shape (batch, kv_heads, keys, d); ``kv_heads`` divides ``heads``, and query head h uses key head
        h // (heads // kv_heads).
    causal : bool
        No query sees a later key; the last query stands beside the last key.
    window : tuple
        ``(left, right)``: how many keys before and after its own position a query sees; None: all.
    scale : float, optional
        1 / sqrt(d) by default.
    softcap : float
        If above 0, scores become softcap tanh(score / softcap).
    alibi_slopes : Tensor, optional
        Of shape (heads,): slope times distance is taken from each score.
    dropout_p, seed : float, int
        Share of the probabilities that are dropped, and the seed of their random numbers; the same seed drops
        the same places whatever the plan and the tiles.
    plan : str
        ``version_2``, ``version_1``, ``split_kv`` or ``standard``.
    splits : int
        Parts of the keys, for ``split_kv``.
    backward : str, optional
        The plan of the backward; by default the one that belongs to ``plan``.
    tiles : Tiles
        Queries and keys of a tile.
    odometer : Odometer, optional
        Counts the bytes that forward and backward move.
    return_lse : bool
        Return the log of each row's sum too; no gradient flows through it.
    sequence : int
        Number of this sequence in a packed batch, for the dropout's random numbers.

    Returns
    -------
    Tensor or tuple of Tensor
        Of the shape of ``q``; with ``return_lse`` also (batch, heads, queries) in float32 or float64. A query
        that sees nothing gets 0, its LSE minus infinity.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or options do not fit; the message names what and why.

    Notes
    -----
    Half-precision tiles are computed in float32 and rounded when they are written. Version 1's O, and a dQ
    that tiles of keys add to one after the other, are written and so rounded once for each tile of keys; GPU
    kernels spend a buffer in 32 bits on such a dQ.

    Examples
    --------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> q, k, v = torch.randn(3, 1, 4, 100, 16)
    >>> ours = attention(q, k, v, causal=True, tiles=Tiles(32, 16))
    >>> sdpa = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> bool((ours - sdpa).abs().max() < 1e-6)
    True
    """
    shape = _shape(q, k, v, causal, window)
    if alibi_slopes is not None and alibi_slopes.shape != (shape.heads,):
        raise ValueError(f"alibi_slopes has shape {tuple(alibi_slopes.shape)}: must be ({shape.heads},)")
    scale = shape.head_dim**-0.5 if scale is None else scale
    options = Options(scale, softcap, alibi_slopes, dropout_p, seed, sequence)
    backward = _check_plans(plan, splits, backward, options)
    job = _Job(shape, tiles, plan, splits, backward, options, odometer)
    out, lse = _Attention.apply(q, k, v, job)
    return (out, lse) if return_lse else out


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: Sequence[int] | torch.Tensor,
    cu_seqlens_k: Sequence[int] | torch.Tensor,
    **options,
) -> torch.Tensor:
    """Attention of sequences of different lengths, packed one after the other.

    Parameters
    ----------
    q : Tensor
        Of shape (all queries, heads, d).
    k, v : Tensor
        Of shape (all keys, kv_heads, d).
    cu_seqlens_q, cu_seqlens_k : sequence of int or Tensor
        Where each sequence begins and the last one ends: B + 1 offsets from 0.
    **options
        As for :func:`attention`, without ``return_lse`` and ``sequence``.

    Returns
    -------
    Tensor
        Of the shape of ``q``. No query sees another sequence.

    Raises
    ------
    TypeError, ValueError
        If the offsets fall or do not end with the number of rows, or anything else does not fit.

    Examples
    --------
    >>> q = torch.ones(5, 2, 4)
    >>> attention_varlen(q, q, q, [0, 2, 5], [0, 2, 5], causal=True).shape
    torch.Size([5, 2, 4])
    """
    offsets = []
    for name, cu_seqlens, rows in (("cu_seqlens_q", cu_seqlens_q, q), ("cu_seqlens_k", cu_seqlens_k, k)):
        listed = cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else list(cu_seqlens)
        sequence_lengths(name, listed)
        if rows.ndim != 3 or listed[-1] != len(rows):
            raise ValueError(
                f"{name} ends with {listed[-1]}, rows have shape {tuple(rows.shape)}: must be "
                "(rows, heads, d) with as many rows"
            )
        offsets.append(listed)
    if len(offsets[0]) != len(offsets[1]):
        raise ValueError(
            f"cu_seqlens_q has {len(offsets[0]) - 1} sequences, cu_seqlens_k {len(offsets[1]) - 1}: "
            "must be as many"
        )
    rows = (_Packed(q, offsets[0]), _Packed(k, offsets[1]), _Packed(v, offsets[1]))
    outputs = [
        attention(*(packed.sequence(number) for packed in rows), sequence=number, **options)
        for number in range(len(offsets[0]) - 1)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


@dataclass(frozen=True)
class _Packed:
    """Sequences one after the other: (rows, heads, d)."""

    rows: torch.Tensor
    offsets: list[int]

    def sequence(self, number: int) -> torch.Tensor:
        """One of them as a batch of one: (1, heads, rows, d)."""
        start, stop = self.offsets[number : number + 2]
        return self.rows[start:stop].transpose(0, 1)[None]


class _Attention(torch.autograd.Function):
    """Forward and backward, each a plan."""

    @staticmethod
    def forward(ctx, q, k, v, job):
        units = _units(job.shape, q=q, k=k, v=v)
        made = {"O": q, "LSE": q, "m": q, "l": q, "P": q}
        hbm = {**units, **_room(job, made)}
        _run(_forward_plan(job.shape, job.tiles, job.plan, job.splits), hbm, job)
        if job.plan == "version_1":
            hbm["LSE"] = (hbm["m"] / _LOG2_E) + hbm["l"].log()
        elif job.plan == "standard":
            exact = torch.promote_types(q.dtype, torch.float32)
            hbm["LSE"] = torch.logsumexp(hbm["S"].to(exact) / _LOG2_E, -1, keepdim=True)
        hbm.pop("S", None)
        out = hbm["O"].view(q.shape).to(q.dtype)
        ctx.job, ctx.names = job, [n for n in ("O", "LSE", "m", "l", "P") if n in hbm]
        ctx.save_for_backward(q, k, v, *(hbm[name] for name in ctx.names))
        lse = hbm["LSE"].view(q.shape[:-1])
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, out_gradient, _):
        job = ctx.job
        q, k, v, *saved = ctx.saved_tensors
        hbm = _units(job.shape, q=q, k=k, v=v) | dict(zip(ctx.names, saved, strict=True))
        hbm["dO"] = out_gradient.reshape(hbm["O"].shape)
        hbm |= _gradient_room(job, hbm)
        _run(_backward_plan(job.shape, job.tiles, job.backward), hbm, job)
        of = {"dQ": q, "dK": k, "dV": v}
        return *(hbm[name].view(t.shape).to(t.dtype) for name, t in of.items()), None


_LOG2_E = 1.4426950408889634


def _run(plan: TilePlan, hbm: dict[str, torch.Tensor], job: _Job) -> None:
    """Carry out ``plan`` on as many units at a time as the caches hold."""
    units = hbm["Q"].shape[0]
    at_once = units
    if job.plan != "standard" and hbm["Q"].device.type == "cpu":
        tile = job.tiles.rows * job.tiles.columns
        at_once = max(1, torch.get_num_threads() * max(1, CACHE_ELEMENTS // tile))
    workspace: dict = {}
    for first in range(0, units, at_once):
        some = {name: tensor[first : first + at_once] for name, tensor in hbm.items()}
        run(Machine(plan, some, job.options, first, job.odometer, workspace))


def _units(shape: AttentionShape, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Q as (units, group, queries, d), K and V as (units, 1, keys, d)."""
    group = {"q": shape.group, "k": 1, "v": 1}
    return {
        name.upper(): t.reshape(shape.units, group[name], t.shape[2], shape.head_dim)
        for name, t in tensors.items()
    }


def _room(job: _Job, made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HBM for what the forward writes."""
    shape, like = job.shape, made["O"]
    exact = torch.promote_types(like.dtype, torch.float32)
    parts = shape.group * _parts(job)
    widths = {
        "standard": {"S": shape.keys, "P": shape.keys},
        "version_1": {"m": 1, "l": 1},
        "version_2": {"LSE": 1},
        SPLIT_KV: {"LSE": 1, "O parts": shape.head_dim, "LSE parts": 1},
    }[job.plan]
    room = {
        name: like.new_empty(
            (shape.units, parts if "parts" in name else shape.group, shape.queries, width),
            dtype=exact if name in FP32_TENSORS else like.dtype,
        )
        for name, width in widths.items()
    }
    room["O"] = like.new_empty((shape.units, shape.group, shape.queries, shape.head_dim))
    return room


def _parts(job: _Job) -> int:
    return _forward_plan(job.shape, job.tiles, job.plan, job.splits).splits


def _gradient_room(job: _Job, hbm: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HBM for what the backward writes: gradients like the inputs."""
    shape, like = job.shape, hbm["Q"]
    exact = torch.promote_types(like.dtype, torch.float32)
    rows = (shape.units, shape.group, shape.queries)
    room = {"dQ": like.new_empty((*rows, shape.head_dim))}
    for name in ("dK", "dV"):
        room[name] = like.new_empty((shape.units, 1, shape.keys, shape.head_dim))
    if job.backward == "standard_backward":
        room |= {name: like.new_empty((*rows, shape.keys)) for name in ("dP", "dS")}
    elif job.backward != "version_1_backward":
        room["D"] = like.new_empty((*rows, 1), dtype=exact)
    return room


@lru_cache(maxsize=32)
def _forward_plan(shape: AttentionShape, tiles: Tiles, plan: str, splits: int) -> TilePlan:
    return split_kv(shape, tiles, splits) if plan == SPLIT_KV else FORWARDS[plan](shape, tiles)


@lru_cache(maxsize=32)
def _backward_plan(shape: AttentionShape, tiles: Tiles, plan: str) -> TilePlan:
    return BACKWARDS[plan](shape, tiles)


def _shape(q, k, v, causal, window) -> AttentionShape:
    """The attention of these tensors; errors say what does not fit."""
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}={tensor!r}: must be a Tensor")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: must be (batch, heads, tokens, d)")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}: must be a floating-point dtype")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}: must be q's, {q.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}: must be on q's device, {q.device}")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}: must be k's, {tuple(k.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"k has shape {tuple(k.shape)}: must have q's batch {q.shape[0]} and head dimension {q.shape[3]}"
        )
    batch, heads, queries, head_dim = q.shape
    return AttentionShape(queries, k.shape[2], head_dim, heads, k.shape[1], batch, causal, window)


def _check_plans(plan: str, splits: int, backward: str | None, options: Options) -> str:
    """The backward's plan; raise unless the plans exist and fit."""
    if plan not in BACKWARD_OF:
        raise ValueError(f"plan={plan!r}: must be one of {', '.join(BACKWARD_OF)}")
    check_count("splits", splits)
    if splits > 1 and plan != SPLIT_KV:
        raise ValueError(f"splits={splits}: must be 1 unless plan is {SPLIT_KV!r}")
    backward = backward or BACKWARD_OF[plan]
    saved = {"standard": ("standard_backward",), "version_1": ("version_1_backward",)}
    allowed = saved.get(plan, ("version_2_backward", "two_pass_backward"))
    if backward not in allowed:
        raise ValueError(f"backward={backward!r}: must be one of {', '.join(allowed)} for {plan}")
    if plan == "standard" and options.softcap:
        raise ValueError(f"softcap={options.softcap}: must be 0 for standard, which saves P and no scores")
    return backward
