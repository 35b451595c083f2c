"""How many tiles a mask leaves, and how many rows they read: sums of floors, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import AttentionShape
from ..plan.attention import Span


@dataclass(frozen=True)
class Visits:
    """What a pass over blocks of queries, each with the blocks of keys that it sees, touches.

    Parameters
    ----------
    rows : int
        Queries in the blocks that see anything.
    columns : int
        Keys read, summed over those blocks of queries.
    tile_rows : int
        Queries, summed over tiles: what is read if queries come anew for each tile.
    tiles : int
        Tiles.
    area : int
        Pairs in these tiles, hidden ones among them.
    """

    rows: int
    columns: int
    tile_rows: int
    tiles: int
    area: int


def visits(attention: AttentionShape, rows: int, columns: int) -> Visits:
    """Tiles in which a query sees a key, counted without listing them.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; its heads do not matter here.
    rows, columns : int
        Size of a tile.

    Returns
    -------
    Visits
        Of one head of one sequence.

    Raises
    ------
    ValueError
        If a size is below 1.

    Notes
    -----
    Block i of full height reaches from key i B_r + c - left to key (i + 1) B_r + c + right - 1, where
    c = N_k - N_q. Its first tile is the floor of the one over B_c, its last the ceiling of the other, both
    cut off at the ends of the keys. Between the cuts both are sums of floor((p i + q) / m), which
    :func:`floor_sum` gives in O(log) steps. A last block that is shorter is added by hand.

    Examples
    --------
    A causal square of a million tokens, in no time:

    >>> visits(AttentionShape(2**20, 2**20, 128, causal=True), 128, 128).tiles == 8192 * 8193 // 2
    True
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"rows={rows}, columns={columns}: must be at least 1")
    full, rest = divmod(attention.queries, rows)
    blocks, tiles, keys = _full_blocks(attention, rows, columns, full)
    last_tiles, last_keys = _one_block(attention, (full * rows, attention.queries), columns)
    rest_rows = rest if last_tiles else 0
    return Visits(
        rows=blocks * rows + rest_rows,
        columns=keys + last_keys,
        tile_rows=tiles * rows + last_tiles * rest,
        tiles=tiles + last_tiles,
        area=keys * rows + last_keys * rest,
    )


def _one_block(attention: AttentionShape, queries: Span, columns: int) -> tuple[int, int]:
    """Tiles and keys read of one block."""
    start, stop = attention.visible_keys(queries)
    if queries[0] >= queries[1] or start >= stop:
        return 0, 0
    first, last = start // columns, -(-stop // columns)
    return last - first, min(last * columns, attention.keys) - first * columns


def _full_blocks(attention: AttentionShape, rows: int, columns: int, count: int) -> tuple[int, int, int]:
    """Blocks that see anything, their tiles and keys read, of the ``count`` blocks of full height."""
    keys, shift = attention.keys, attention.keys - attention.queries
    left, right = attention.reach
    width = -(-keys // columns)
    if not keys or not count:
        return 0, 0, 0
    begin, end = 0, count
    if right is not None:  # the first block whose last query sees key 0
        begin = max(0, -(shift + right) // rows)
    if left is not None:  # behind the last block whose first query sees the last key
        end = min(count, -(-(keys - shift + left) // rows))
    end = max(begin, end)
    capped = begin  # the first block that reaches the last tile
    if right is not None:
        capped = min(max(begin, ((width - 1) * columns - shift - right) // rows), end)
    behind = end  # the first block that begins after key 0
    if left is not None:
        behind = min(max(begin, -(-(left - shift) // rows)), end)
    lasts = _sum_between(begin, capped, rows, rows + shift + (right or 0) + columns - 1, columns)
    firsts = _sum_between(behind, end, rows, shift - (left or 0), columns)
    tiles = lasts + width * (end - capped) - firsts
    return end - begin, tiles, columns * (lasts - firsts) + keys * (end - capped)


def _sum_between(start: int, stop: int, slope: int, offset: int, divisor: int) -> int:
    """Sum of floor((slope i + offset) / divisor) for i from ``start`` to ``stop - 1``."""
    return floor_sum(stop - start, slope, offset + slope * start, divisor)


def floor_sum(count: int, slope: int, offset: int, divisor: int) -> int:
    """Sum of floor((``slope`` i + ``offset``) / ``divisor``) for i from 0 to ``count - 1``.

    Parameters
    ----------
    count : int
        Number of terms, 0 or more.
    slope : int
        0 or more.
    offset : int
        Any.
    divisor : int
        At least 1.

    Returns
    -------
    int
        The sum, in O(log) steps: whole multiples are taken out, then the lattice points under the line are
        counted from the other axis.

    Raises
    ------
    ValueError
        If ``count`` or ``slope`` is negative, or ``divisor`` below 1.

    References
    ----------
    Graham, Knuth, Patashnik. Concrete Mathematics, 2nd edition, section 3.5 (floor sums).

    Examples
    --------
    >>> floor_sum(10**12, 3, 1, 7) == sum((3 * i + 1) // 7 for i in range(1000)) + floor_sum(
    ...     10**12 - 1000, 3, 3001, 7)
    True
    """
    if count < 0 or slope < 0 or divisor < 1:
        raise ValueError(f"count={count}, slope={slope}, divisor={divisor}: must be >= 0, >= 0, >= 1")
    total = 0
    while count:
        total += count * (count - 1) // 2 * (slope // divisor) + count * (offset // divisor)
        slope, offset = slope % divisor, offset % divisor
        top = slope * count + offset
        count, offset, slope, divisor = top // divisor, top % divisor, divisor, slope
        if not divisor:
            break
    return total
