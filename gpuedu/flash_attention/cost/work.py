"""What is computed: FlashAttention does more arithmetic than standard attention."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import KERNELS, AttentionShape, Step, TilePlan, Tiles, key_parts
from .kernels import kernel_costs, sizes


@dataclass(frozen=True)
class Work:
    """Arithmetic of a plan, of all heads and sequences.

    Parameters
    ----------
    matmul_flops : int
        FLOPs in matrix products, where a multiplication and an addition are two.
    exponentials : int
        Exponentials: of scores, and of the differences of maxima that rescale.
    rescaled : int
        Elements of O multiplied because the running maximum may have risen.
    divided : int
        Elements divided by the sum: O or, in standard attention, P.
    """

    matmul_flops: int
    exponentials: int
    rescaled: int
    divided: int


def work(plan: str, attention: AttentionShape, tiles: Tiles, splits: int = 1) -> Work:
    """Arithmetic of a plan in closed form.

    Parameters
    ----------
    plan : str
        The name of a plan, as for :func:`~gpuedu.flash_attention.cost.traffic`.
    attention, tiles, splits
        As for the plan.

    Returns
    -------
    Work
        The same as :func:`plan_work` of the plan.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Notes
    -----
    Products a tile: forward 2 (S = Q K^T and O = P V), whoever does it. Backward: standard 4 (dV, dP, dQ,
    dK); FlashAttention 5, since S is computed once more; in two passes 7, S and dP being computed twice.
    Forward and backward together FlashAttention does 7 / 6 of standard attention's. Under a mask it skips
    hidden tiles, which standard attention computes, and then does less.

    Each visited tile of the forward rescales O (version 1 by two exponentials a row, since it also scales
    what it adds; version 2 by one). Version 1 divides O by l in every tile, version 2 once.

    Examples
    --------
    >>> gpt2, tiles = AttentionShape(1024, 1024, 64, heads=16, batch=64), Tiles(64, 384)
    >>> def both(name):
    ...     return sum(work(n, gpt2, tiles).matmul_flops for n in (name, f"{name}_backward"))
    >>> both("standard") / 1e9, both("version_1") / both("standard")
    (824.633720832, 1.1666666666666667)
    """
    kernels = kernel_costs(plan, attention, tiles, splits)
    s, parts = sizes(attention, tiles), len(key_parts(attention, tiles, splits))
    exponentials, rescaled, divided = {
        "standard": (s.scores, 0, s.scores),
        "version_1": (s.pairs + 2 * s.q_again, s.q_again * s.d, s.q_again * s.d),
        "version_2": (s.pairs + s.q_again, s.q_again * s.d, s.q * s.d),
        "split_kv": (
            s.pairs + s.q_again + parts * s.q,
            (s.q_again + parts * s.q) * s.d,
            parts * s.q * s.d,
        ),
        "standard_backward": (0, 0, 0),
        "version_1_backward": (s.pairs, 0, s.pairs),
        "version_2_backward": (s.pairs, 0, 0),
        "two_pass_backward": (2 * s.pairs, 0, 0),
    }[plan]
    flops, units = sum(kernel.matmul_flops for kernel in kernels), attention.units
    return Work(flops, units * exponentials, units * rescaled, units * divided)


def plan_work(plan: TilePlan) -> Work:
    """Arithmetic of a plan, counted step by step.

    Parameters
    ----------
    plan : TilePlan
        Any plan.

    Returns
    -------
    Work
        Of all units.

    Examples
    --------
    >>> from gpuedu.flash_attention.plan import version_2
    >>> plan_work(version_2(AttentionShape(128, 128, 64), Tiles(64, 64)))
    Work(matmul_flops=4194304, exponentials=16640, rescaled=16384, divided=8192)
    """
    total = [0, 0, 0, 0]
    for step in plan.computes:
        for i, amount in enumerate(_of_step(plan, step)):
            total[i] += amount * plan.attention.units
    return Work(*total)


def _of_step(plan: TilePlan, step: Step) -> tuple[int, int, int, int]:
    """FLOPs in products, exponentials, elements rescaled and divided, of one computation."""
    heads, height, columns = (stop - start for start, stop in (step.heads, step.rows, step.columns))
    rows, d = heads * height, plan.attention.head_dim
    pairs = rows * max(columns, 0)
    exponentials, rescaled, divided = {
        "softmax": (pairs, 0, pairs),
        "tile with division": (pairs + 2 * rows, rows * d, rows * d),
        "tile": (pairs + rows, rows * d, 0),
        "finish": (0, 0, rows * d),
        "combine": (plan.splits * rows, plan.splits * rows * d, 0),
        "gradients by m, l": (pairs, 0, pairs),
        "gradients": (pairs, 0, 0),
        "gradients of K, V": (pairs, 0, 0),
        "gradient of Q": (pairs, 0, 0),
    }.get(step.what, (0, 0, 0))
    return 2 * d * pairs * KERNELS[step.what].matmuls, exponentials, rescaled, divided
