"""Every phase of a plan in closed form: what it moves, what it multiplies, how many programs it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..plan import KERNELS, AttentionShape, Tiles, key_parts
from ..plan.forward import check_problem
from .visits import visits

Moved = Mapping[str, tuple[int, int, int]]
"""``(read, written, filled)`` elements by tensor."""


@dataclass(frozen=True)
class KernelCost:
    """One phase of a plan, which on a GPU is one kernel.

    Parameters
    ----------
    name : str
        A key of ``gpuedu.flash_attention.plan.KERNELS``: what it computes.
    tensors : dict
        ``(read, written, filled)`` elements by tensor, of all units.
    pairs : int
        Pairs of a query and a key computed, of all query heads; hidden ones in visited tiles count.
    matmul_flops : int
        FLOPs in matrix products: 2 d for each pair and product.
    programs : int or None
        Programs that can run at the same time; None for a library's product or pass, which is cut as finely
        as the GPU likes.
    """

    name: str
    tensors: Moved
    pairs: int
    matmul_flops: int
    programs: int | None


@dataclass(frozen=True)
class Sizes:
    """What every formula is made of, of one unit: rows, keys, pairs, programs."""

    attention: AttentionShape
    tiles: Tiles
    d: int
    q: int  # rows of Q of all heads of the unit
    k: int
    scores: int
    q_seen: int  # rows of Q that see anything
    k_seen: int
    q_again: int  # rows of Q read, one pass for each block of keys
    k_again: int  # rows of K read, one pass for each block of queries
    pairs: int
    row_programs: int
    column_programs: int


def sizes(attention: AttentionShape, tiles: Tiles) -> Sizes:
    """Rows, keys, pairs and programs of one unit."""
    group, queries, keys = attention.group, attention.queries, attention.keys
    by_rows = visits(attention, tiles.rows, tiles.columns)
    by_columns = visits(attention.transposed(), tiles.columns, tiles.rows)
    return Sizes(
        attention,
        tiles,
        d=attention.head_dim,
        q=group * queries,
        k=keys,
        scores=group * queries * keys,
        q_seen=group * by_rows.rows,
        k_seen=by_columns.rows,
        q_again=group * by_columns.columns,
        k_again=group * by_rows.columns,
        pairs=group * by_rows.area,
        row_programs=group * -(-queries // tiles.rows),
        column_programs=-(-keys // tiles.columns),
    )


def kernel_costs(
    plan: str, attention: AttentionShape, tiles: Tiles, splits: int = 1
) -> tuple[KernelCost, ...]:
    """The phases of a plan, each in closed form.

    Parameters
    ----------
    plan : str
        The name of a plan, as for :func:`~gpuedu.flash_attention.cost.traffic`.
    attention, tiles, splits
        As for the plan; ``splits`` for ``split_kv`` alone.

    Returns
    -------
    tuple of KernelCost
        One for each phase, of all units.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    >>> decode = AttentionShape(1, 8192, 128)
    >>> [(k.name, k.programs) for k in kernel_costs("split_kv", decode, Tiles(1, 128), 8)]
    [('tile', 8), ('combine', 1)]
    """
    if plan not in _KERNELS:
        raise ValueError(f"plan={plan!r}: must be one of {', '.join(_KERNELS)}")
    check_problem(attention, tiles)
    parts = len(key_parts(attention, tiles, splits))
    if splits > 1 and plan != "split_kv":
        raise ValueError(f"splits={splits}: must be 1 for {plan}")
    unit = sizes(attention, tiles)
    kernels = _KERNELS[plan](unit, parts) if plan == "split_kv" else _KERNELS[plan](unit)
    return tuple(_of_all_units(attention, *kernel) for kernel in kernels)


def _of_all_units(attention, name, moved, pairs, programs) -> KernelCost:
    units = attention.units
    return KernelCost(
        name=name,
        tensors={tensor: tuple(units * n for n in counts) for tensor, counts in moved.items()},
        pairs=units * pairs,
        matmul_flops=2 * attention.head_dim * units * pairs * KERNELS[name].matmuls,
        programs=None if programs is None else units * programs,
    )


def _standard(s: Sizes):
    group = s.attention.group
    yield "scores", {
        "Q": (s.q * s.d, 0, 0), "K": (group * s.k * s.d, 0, 0), "S": (0, s.scores, 0),
    }, s.scores, None  # fmt: skip
    yield "softmax", {"S": (s.scores, 0, 0), "P": (0, s.scores, 0)}, s.scores, None
    yield "values", {
        "P": (s.scores, 0, 0), "V": (group * s.k * s.d, 0, 0), "O": (0, s.q * s.d, 0),
    }, s.scores, None  # fmt: skip


def _version_1(s: Sizes):
    statistic = (s.q_again, s.q_again, s.q)
    yield "tile with division", {
        "K": (s.k_seen * s.d, 0, 0), "V": (s.k_seen * s.d, 0, 0), "Q": (s.q_again * s.d, 0, 0),
        "O": (s.q_again * s.d, s.q_again * s.d, s.q * s.d), "m": statistic, "l": statistic,
    }, s.pairs, 1  # fmt: skip


def _version_2(s: Sizes):
    yield "tile", {
        "Q": (s.q_seen * s.d, 0, 0), "K": (s.k_again * s.d, 0, 0), "V": (s.k_again * s.d, 0, 0),
        "O": (0, s.q * s.d, 0), "LSE": (0, s.q, 0),
    }, s.pairs, s.row_programs  # fmt: skip


def _split_kv(s: Sizes, parts: int):
    a, t = s.attention, s.tiles
    per_part = max(1, -(-s.column_programs // parts)) * t.columns
    q_again = a.group * visits(a, t.rows, per_part).tile_rows
    once = s.k_again // a.group  # all heads of the unit share a tile of K
    blocks = -(-a.queries // t.rows)
    yield "tile", {
        "Q": (q_again * s.d, 0, 0), "K": (once * s.d, 0, 0), "V": (once * s.d, 0, 0),
        "O parts": (0, parts * s.q * s.d, 0), "LSE parts": (0, parts * s.q, 0),
    }, s.pairs, parts * blocks  # fmt: skip
    yield "combine", {
        "O parts": (parts * s.q * s.d, 0, 0), "LSE parts": (parts * s.q, 0, 0),
        "O": (0, s.q * s.d, 0), "LSE": (0, s.q, 0),
    }, 0, blocks  # fmt: skip


def _standard_backward(s: Sizes):
    group = s.attention.group
    yield "dV", {
        "P": (s.scores, 0, 0), "dO": (s.q * s.d, 0, 0), "dV": (0, s.k * s.d, 0),
    }, s.scores, None  # fmt: skip
    yield "dP", {
        "dO": (s.q * s.d, 0, 0), "V": (group * s.k * s.d, 0, 0), "dP": (0, s.scores, 0),
    }, s.scores, None  # fmt: skip
    yield "dS", {"P": (s.scores, 0, 0), "dP": (s.scores, 0, 0), "dS": (0, s.scores, 0)}, s.scores, None
    yield "dQ", {
        "dS": (s.scores, 0, 0), "K": (group * s.k * s.d, 0, 0), "dQ": (0, s.q * s.d, 0),
    }, s.scores, None  # fmt: skip
    yield "dK", {
        "dS": (s.scores, 0, 0), "Q": (s.q * s.d, 0, 0), "dK": (0, s.k * s.d, 0),
    }, s.scores, None  # fmt: skip


def _version_1_backward(s: Sizes):
    kv, again, statistic = (s.k_seen * s.d, 0, 0), (s.q_again * s.d, 0, 0), (s.q_again, 0, 0)
    gradient = (0, s.k_seen * s.d, s.k * s.d)
    yield "gradients by m, l", {
        "K": kv, "V": kv, "Q": again, "O": again, "dO": again, "m": statistic, "l": statistic,
        "dQ": (s.q_again * s.d, s.q_again * s.d, s.q * s.d), "dK": gradient, "dV": gradient,
    }, s.pairs, 1  # fmt: skip


def _row_sums(s: Sizes, filled: int):
    whole = (s.q * s.d, 0, 0)
    return "D", {"O": whole, "dO": whole, "D": (0, s.q, 0), "dQ": (0, 0, filled)}, 0, s.row_programs


def _by_columns(s: Sizes) -> Moved:
    """What a pass with the outer loop over keys moves, without dQ."""
    kv, again, statistic = (s.k_seen * s.d, 0, 0), (s.q_again * s.d, 0, 0), (s.q_again, 0, 0)
    gradient = (0, s.k * s.d, 0)
    return {
        "K": kv, "V": kv, "Q": again, "dO": again, "LSE": statistic, "D": statistic,
        "dK": gradient, "dV": gradient,
    }  # fmt: skip


def _version_2_backward(s: Sizes):
    yield _row_sums(s, s.q * s.d)
    added = {"dQ": (s.q_again * s.d, s.q_again * s.d, 0)}
    yield "gradients", _by_columns(s) | added, s.pairs, s.column_programs


def _two_pass_backward(s: Sizes):
    yield _row_sums(s, 0)
    yield "gradients of K, V", _by_columns(s), s.pairs, s.column_programs
    once, statistic, again = (s.q_seen * s.d, 0, 0), (s.q_seen, 0, 0), (s.k_again * s.d, 0, 0)
    yield "gradient of Q", {
        "Q": once, "dO": once, "LSE": statistic, "D": statistic, "K": again, "V": again,
        "dQ": (0, s.q * s.d, 0),
    }, s.pairs, s.row_programs  # fmt: skip


_KERNELS = {
    "standard": _standard,
    "version_1": _version_1,
    "version_2": _version_2,
    "split_kv": _split_kv,
    "standard_backward": _standard_backward,
    "version_1_backward": _version_1_backward,
    "version_2_backward": _version_2_backward,
    "two_pass_backward": _two_pass_backward,
}
