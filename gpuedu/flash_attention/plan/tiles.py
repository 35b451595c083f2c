"""Tiles: how rows of queries and of keys are cut, and which cut the on-chip memory allows."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count

from .attention import AttentionShape, Span

ORDERS = ("version_1", "version_2")


@dataclass(frozen=True)
class Tiles:
    """The size of a tile of scores: ``rows`` queries (B_r) by ``columns`` keys (B_c).

    Raises
    ------
    TypeError, ValueError
        If one is no int of at least 1.

    Examples
    --------
    >>> Tiles(64, 128)
    Tiles(rows=64, columns=128)
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        check_count("rows", self.rows)
        check_count("columns", self.columns)


def blocks(length: int, size: int) -> tuple[Span, ...]:
    """``length`` cut into runs of ``size``, the last one shorter if it does not divide.

    Parameters
    ----------
    length : int
        What is cut, 0 or more.
    size : int
        Of a run, at least 1.

    Returns
    -------
    tuple of tuple
        ``(start, stop)`` of each.

    Raises
    ------
    TypeError, ValueError
        If an argument is no int or out of range.

    Examples
    --------
    >>> blocks(10, 4)
    ((0, 4), (4, 8), (8, 10))
    """
    check_count("length", length, 0)
    check_count("size", size)
    return tuple((start, min(start + size, length)) for start in range(0, length, size))


def overlapping(length: int, size: int, span: Span) -> tuple[Span, ...]:
    """Those of ``blocks(length, size)`` that have something in common with ``span``.

    Parameters
    ----------
    length, size : int
        As for :func:`blocks`.
    span : tuple
        ``(start, stop)``; empty if ``start >= stop``.

    Returns
    -------
    tuple of tuple
        ``(start, stop)`` of each, in order.

    Raises
    ------
    TypeError, ValueError
        If an argument is no int or out of range.

    Examples
    --------
    >>> overlapping(10, 4, (3, 5))
    ((0, 4), (4, 8))
    """
    check_count("length", length, 0)
    check_count("size", size)
    start, stop = max(span[0], 0), min(span[1], length)
    if start >= stop:
        return ()
    first = start - start % size
    return tuple((at, min(at + size, length)) for at in range(first, stop, size))


def visited_tiles(attention: AttentionShape, tiles: Tiles) -> tuple[tuple[Span, Span], ...]:
    """The tiles in which a query sees a key, row by row; the others need not be touched.

    Parameters
    ----------
    attention : AttentionShape
        What is computed.
    tiles : Tiles
        How it is cut.

    Returns
    -------
    tuple of tuple
        ``(queries, keys)`` of each tile, both ``(start, stop)``.

    Examples
    --------
    Half of a causal square is skipped, but for the diagonal:

    >>> len(visited_tiles(AttentionShape(1024, 1024, 64, causal=True), Tiles(128, 128)))
    36
    """
    return tuple(
        (rows, columns)
        for rows in blocks(attention.queries, tiles.rows)
        for columns in overlapping(attention.keys, tiles.columns, attention.visible_keys(rows))
    )


def on_chip_elements(order: str, tiles: Tiles, head_dim: int) -> int:
    """Elements that one program of the forward holds on the chip at once.

    Parameters
    ----------
    order : str
        ``version_1`` or ``version_2``: both hold the same.
    tiles : Tiles
        The tile.
    head_dim : int
        Width d of a head.

    Returns
    -------
    int
        2 B_r d (Q, O) + 2 B_c d (K, V) + B_r B_c (scores) + 2 B_r (m, l).

    Raises
    ------
    TypeError, ValueError
        For another order or a width that is no int of at least 1.

    Notes
    -----
    Left out: double buffers for copies in flight, and that O and the scores live in registers.

    Examples
    --------
    >>> on_chip_elements("version_2", Tiles(128, 64), head_dim=64)
    33024
    """
    _check_order(order)
    check_count("head_dim", head_dim)
    rows, columns = tiles.rows, tiles.columns
    return 2 * (rows + columns) * head_dim + rows * columns + 2 * rows


def tiles_from_sram(order: str, sram_elements: int, head_dim: int) -> Tiles:
    """The tile that a loop order takes for an on-chip memory of M elements.

    Parameters
    ----------
    order : str
        ``version_1`` (outer loop over K and V) or ``version_2`` (outer loop over Q).
    sram_elements : int
        M: **elements**, which is bytes divided by the bytes of one.
    head_dim : int
        Width d of a head.

    Returns
    -------
    Tiles
        Version 1: B_c = ceil(M / 4 d), B_r = min(ceil(M / 4 d), d), line 1 of its Algorithm 1. Version 2:
        the same with the two in each other's place, since what its outer loop holds is Q.

    Raises
    ------
    TypeError, ValueError
        For another order, a count that is no int of at least 1, or an M below 4 d, where not one row of
        each of Q, K, V and O has room.

    Notes
    -----
    The block of the outer loop is the large one: how often the other tensors are read again depends on it
    alone. Real kernels choose from a short list of sizes that suit the matrix unit.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Algorithm 1.

    Examples
    --------
    192 KiB of 16-bit numbers and d = 64, as in the paper's Figure 2:

    >>> tiles_from_sram("version_1", 192 * 1024 // 2, 64)
    Tiles(rows=64, columns=384)
    """
    _check_order(order)
    check_count("sram_elements", sram_elements)
    check_count("head_dim", head_dim)
    if sram_elements < 4 * head_dim:
        raise ValueError(f"sram_elements={sram_elements}: must be at least 4 x head_dim = {4 * head_dim}")
    large = -(-sram_elements // (4 * head_dim))
    small = min(large, head_dim)
    return Tiles(small, large) if order == "version_1" else Tiles(large, small)


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: must be one of {', '.join(ORDERS)}")
