"""What a pass needs in HBM beside its inputs and outputs."""

from __future__ import annotations

from math import prod

from ..plan import AttentionShape, TilePlan, Tiles, key_parts
from ..plan.forward import check_problem

_GIVEN = {"Q", "K", "V", "O", "dO", "dQ", "dK", "dV"}


def extra_elements(plan: str, attention: AttentionShape, tiles: Tiles, splits: int = 1) -> int:
    """Elements of the intermediate tensors of a pass, in closed form.

    Parameters
    ----------
    plan : str
        The name of a plan, as for :func:`~gpuedu.flash_attention.cost.traffic`.
    attention, tiles, splits
        As for the plan.

    Returns
    -------
    int
        Elements in HBM at once, of all heads and sequences. Q, K, V, O and their gradients are left out.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Notes
    -----
    With r = heads N_q rows in the batch: standard 2 r N_k (S and P), its backward 3 r N_k (P, dP and dS);
    version 1 2 r (m and l), version 2 r (LSE), split-KV r (1 + parts (d + 1)); the backwards 2 r (m and l,
    or LSE and D). Standard attention grows with the square of the length, FlashAttention with the length.

    Examples
    --------
    >>> gpt2 = AttentionShape(1024, 1024, 64, heads=16, batch=64)
    >>> [extra_elements(p, gpt2, Tiles(64, 128)) // 2**20 for p in ("standard", "version_2")]
    [2048, 1]
    """
    check_problem(attention, tiles)
    parts = len(key_parts(attention, tiles, splits))
    rows = attention.batch * attention.heads * attention.queries
    sizes = {
        "standard": 2 * rows * attention.keys,
        "version_1": 2 * rows,
        "version_2": rows,
        "split_kv": rows * (1 + parts * (attention.head_dim + 1)),
        "standard_backward": 3 * rows * attention.keys,
        "version_1_backward": 2 * rows,
        "version_2_backward": 2 * rows,
        "two_pass_backward": 2 * rows,
    }
    if plan not in sizes:
        raise ValueError(f"plan={plan!r}: must be one of {', '.join(sizes)}")
    return sizes[plan]


def plan_extra_elements(plan: TilePlan) -> int:
    """Elements of the intermediate tensors that a plan names, counted from its steps.

    Parameters
    ----------
    plan : TilePlan
        Any plan.

    Returns
    -------
    int
        Of all units: the sizes of all tensors but Q, K, V, O and gradients.

    Examples
    --------
    >>> from gpuedu.flash_attention.plan import standard
    >>> plan_extra_elements(standard(AttentionShape(64, 64, 8), Tiles(16, 16)))
    8192
    """
    shape: dict[str, tuple[int, int, int]] = {}
    for step in plan.steps:
        if step.op.value in ("read", "write", "fill") and step.what not in _GIVEN:
            ends = (step.heads[1], step.rows[1], step.columns[1])
            shape[step.what] = tuple(map(max, ends, shape.get(step.what, (0, 0, 0))))
    return plan.attention.units * sum(map(prod, shape.values()))
