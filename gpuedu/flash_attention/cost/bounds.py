"""Orders of growth: traffic against the size of the chip's memory, and the least of all."""

from __future__ import annotations

from gpuedu.checks import check_count

from ..plan import AttentionShape


def leading_traffic(plan: str, length: int, head_dim: int, sram_elements: int) -> float:
    """The terms of a forward's traffic that grow fastest, for one head, N queries and N keys.

    Parameters
    ----------
    plan : str
        ``standard``, ``version_1`` or ``version_2``, the last two with the tiles of
        :func:`~gpuedu.flash_attention.plan.tiles_from_sram`.
    length : int
        N.
    head_dim : int
        Width d of a head.
    sram_elements : int
        M, elements that the chip holds for one program.

    Returns
    -------
    float
        Elements read and written: standard 4 N d + 4 N^2, version 1 12 N^2 d^2 / M, version 2
        8 N^2 d^2 / M.

    Raises
    ------
    TypeError, ValueError
        For another plan or an argument that is no int of at least 1.

    Notes
    -----
    Theorem 2 of the paper: standard attention makes Theta(N d + N^2) accesses, FlashAttention
    Theta(N^2 d^2 / M). The constants come from the blocks: with B_c = M / 4 d there are 4 N d / M of them,
    and for each, version 1 moves 3 N d (Q and O in, O out); version 2 moves 2 N d (K and V) for each of
    its 4 N d / M blocks of queries. Since d^2 is usually a few times smaller than M, both are below N^2.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Theorem 2.

    Examples
    --------
    >>> standard, first, second = (leading_traffic(p, 8192, 64, 98304)
    ...                            for p in ("standard", "version_1", "version_2"))
    >>> round(standard / first, 1), round(first / second, 1)
    (8.1, 1.5)
    """
    for name, value in (("length", length), ("head_dim", head_dim), ("sram_elements", sram_elements)):
        check_count(name, value)
    n, d = length, head_dim
    match plan:
        case "standard":
            return 4.0 * n * d + 4.0 * n * n
        case "version_1":
            return 12 * n**2 * d**2 / sram_elements
        case "version_2":
            return 8 * n**2 * d**2 / sram_elements
    raise ValueError(f"plan={plan!r}: must be one of standard, version_1, version_2")


def least_traffic(attention: AttentionShape) -> int:
    """Elements that any forward has to move: each input once, the output once.

    Parameters
    ----------
    attention : AttentionShape
        What is computed.

    Returns
    -------
    int
        Elements: those of Q and O, and of K and V.

    Notes
    -----
    Proposition 3 of the paper: no exact algorithm makes o(N^2 d^2 / M) accesses for **all** M from d to
    N d. Its proof is this count: at M = Theta(N d), N^2 d^2 / M is N d, and no algorithm can do with fewer
    accesses than its inputs and its output have elements. For one small M it says nothing.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Proposition 3.

    Examples
    --------
    >>> least_traffic(AttentionShape(1024, 1024, 64)) == 4 * 1024 * 64
    True
    """
    a = attention
    return 2 * a.batch * a.head_dim * (a.heads * a.queries + a.kv_heads * a.keys)
