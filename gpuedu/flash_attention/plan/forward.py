"""The forward: standard attention, FlashAttention's two loop orders, and split keys for decoding."""

from __future__ import annotations

from collections.abc import Iterator

from gpuedu.checks import check_count

from .attention import AttentionShape, Span
from .steps import Op, Step, TilePlan
from .tiles import Tiles, blocks, overlapping

ONE = (0, 1)


def standard(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """Standard attention: S to HBM, softmax over it to P, P from HBM again.

    Parameters
    ----------
    attention : AttentionShape
        What is computed. A mask saves nothing: every score is computed, moved and then hidden.
    tiles : Tiles
        How many rows are moved at a time; it changes no count.

    Returns
    -------
    TilePlan
        Three phases for each query head. Each product reads its operands once, as if the chip could hold
        the smaller one whole. Reading a mask and dropping out are left out.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Algorithm 0.

    Examples
    --------
    >>> plan = standard(AttentionShape(512, 512, 64), Tiles(128, 128))
    >>> sum(step.elements for step in plan.steps if step.what == "S" and step.op is Op.WRITE) == 512**2
    True
    """
    check_problem(attention, tiles)
    width, keys, rows = (0, attention.head_dim), (0, attention.keys), blocks(attention.queries, tiles.rows)

    def scores(head: Span) -> Iterator[Step]:
        yield Step(Op.READ, "K", ONE, keys, width)
        for row in rows:
            yield Step(Op.READ, "Q", head, row, width)
            yield Step(Op.COMPUTE, "scores", head, row, keys)
            yield Step(Op.WRITE, "S", head, row, keys)

    def softmax(head: Span) -> Iterator[Step]:
        for row in rows:
            yield Step(Op.READ, "S", head, row, keys)
            yield Step(Op.COMPUTE, "softmax", head, row, keys)
            yield Step(Op.WRITE, "P", head, row, keys)

    def values(head: Span) -> Iterator[Step]:
        yield Step(Op.READ, "V", ONE, keys, width)
        for row in rows:
            yield Step(Op.READ, "P", head, row, keys)
            yield Step(Op.COMPUTE, "values", head, row, keys)
            yield Step(Op.WRITE, "O", head, row, width)

    phases = (tuple(tuple(kernel(head)) for head in heads(attention)) for kernel in (scores, softmax, values))
    return TilePlan("standard", attention, tiles, tuple(phases))


def version_1(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """FlashAttention's first order: the outer loop over K and V, the inner one over Q.

    K and V are read once; O, m and l go to HBM and come back for every block of keys, and O is divided by l
    each time.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; tiles in which no query sees a key are skipped.
    tiles : Tiles
        B_r by B_c.

    Returns
    -------
    TilePlan
        One program for each unit, because its blocks of keys update the same O one after the other.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Algorithm 1; its line 2 fills O, l and m.

    Examples
    --------
    >>> plan = version_1(AttentionShape(512, 512, 64), Tiles(64, 128))
    >>> sum(step.op is Op.READ and step.what == "Q" for step in plan.steps)  # 8 blocks, 4 times
    32
    """
    check_problem(attention, tiles)
    width = (0, attention.head_dim)

    def program() -> Iterator[Step]:
        for head in heads(attention):
            everything = (0, attention.queries)
            yield Step(Op.FILL, "O", head, everything, width)
            yield Step(Op.FILL, "m", head, everything, ONE)
            yield Step(Op.FILL, "l", head, everything, ONE)
        for columns in blocks(attention.keys, tiles.columns):
            rows = overlapping(attention.queries, tiles.rows, attention.seeing_queries(columns))
            if rows:
                yield Step(Op.READ, "K", ONE, columns, width)
                yield Step(Op.READ, "V", ONE, columns, width)
            for head in heads(attention):
                for row in rows:
                    for name, w in (("Q", width), ("O", width), ("m", ONE), ("l", ONE)):
                        yield Step(Op.READ, name, head, row, w)
                    yield Step(Op.COMPUTE, "tile with division", head, row, columns)
                    for name, w in (("O", width), ("m", ONE), ("l", ONE)):
                        yield Step(Op.WRITE, name, head, row, w)

    return TilePlan("version_1", attention, tiles, ((tuple(program()),),))


def version_2(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """FlashAttention's second order: the outer loop over Q, the inner one over K and V.

    O, m and l stay on the chip until their row is done, and O is divided by l once. K and V are read again
    for every block of queries.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; tiles in which no query sees a key are skipped.
    tiles : Tiles
        B_r by B_c.

    Returns
    -------
    TilePlan
        One program for each block of queries of each query head.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao 2023, "FlashAttention-2", Algorithm 1.

    Examples
    --------
    >>> plan = version_2(AttentionShape(512, 512, 64, causal=True), Tiles(128, 64))
    >>> [sum(step.what == "tile" for step in program) for program in plan.phases[0]]
    [2, 4, 6, 8]
    """
    check_problem(attention, tiles)
    programs = (
        tuple(_rows_program(attention, tiles, head, rows, (0, attention.keys)))
        for head in heads(attention)
        for rows in blocks(attention.queries, tiles.rows)
    )
    return TilePlan("version_2", attention, tiles, (tuple(programs),))


def split_kv(attention: AttentionShape, tiles: Tiles, splits: int) -> TilePlan:
    """Flash-Decoding: the keys split into parts that run side by side, then combined by their LSE.

    With one or a few queries version 2 has a handful of programs for a hundred multiprocessors. Here each
    part of the keys gives programs of its own. All query heads of a unit lie in one tile, so that
    K and V are read once for all of them.

    Parameters
    ----------
    attention : AttentionShape
        What is computed.
    tiles : Tiles
        ``rows`` queries (of each head of the unit) by ``columns`` keys.
    splits : int
        Parts wanted, at least 1. Parts are whole tiles, so there may be fewer.

    Returns
    -------
    TilePlan
        Two phases: the parts, then the combination.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type, or ``splits`` is below 1.

    References
    ----------
    Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding for long-context inference".

    Examples
    --------
    >>> plan = split_kv(AttentionShape(1, 1024, 64, heads=8, kv_heads=2), Tiles(1, 128), splits=4)
    >>> [len(programs) for programs in plan.phases]
    [4, 1]
    """
    check_problem(attention, tiles)
    parts = key_parts(attention, tiles, splits)
    group, width = attention.group, (0, attention.head_dim)
    rows = blocks(attention.queries, tiles.rows)

    def combine(row: Span) -> Iterator[Step]:
        every, unit = (0, len(parts) * group), (0, group)
        yield Step(Op.READ, "O parts", every, row, width)
        yield Step(Op.READ, "LSE parts", every, row, ONE)
        yield Step(Op.COMPUTE, "combine", unit, row, (0, attention.keys))
        yield Step(Op.WRITE, "O", unit, row, width)
        yield Step(Op.WRITE, "LSE", unit, row, ONE)

    split = tuple(
        tuple(_rows_program(attention, tiles, (0, group), row, part, number))
        for number, part in enumerate(parts)
        for row in rows
    )
    phases = (split, tuple(tuple(combine(row)) for row in rows))
    return TilePlan("split_kv", attention, tiles, phases, len(parts))


def key_parts(attention: AttentionShape, tiles: Tiles, splits: int) -> tuple[Span, ...]:
    """The keys in at most ``splits`` parts of as many whole tiles each, the last one maybe shorter.

    Parameters
    ----------
    attention, tiles, splits
        As for :func:`split_kv`.

    Returns
    -------
    tuple of tuple
        ``(start, stop)`` of each; without keys one empty part.

    Raises
    ------
    TypeError, ValueError
        If ``splits`` is no int of at least 1.

    Examples
    --------
    >>> key_parts(AttentionShape(1, 1000, 64), Tiles(1, 128), splits=3)
    ((0, 384), (384, 768), (768, 1000))
    """
    check_count("splits", splits)
    columns = -(-attention.keys // tiles.columns)
    return blocks(attention.keys, max(1, -(-columns // splits)) * tiles.columns) or ((0, 0),)


def _rows_program(
    attention: AttentionShape, tiles: Tiles, head: Span, rows: Span, part: Span, number: int | None = None
) -> Iterator[Step]:
    """One block of queries over the keys of ``part``; the ``number`` of a part says where results go."""
    width = (0, attention.head_dim)
    start, stop = attention.visible_keys(rows)
    seen = (max(start, part[0]), min(stop, part[1]))
    columns = [
        (max(c[0], part[0]), min(c[1], part[1])) for c in overlapping(attention.keys, tiles.columns, seen)
    ]
    if columns:
        yield Step(Op.READ, "Q", head, rows, width)
    for name, w in (("O", width), ("m", ONE), ("l", ONE)):
        yield Step(Op.HOLD, name, head, rows, w)
    for column in columns:
        yield Step(Op.READ, "K", ONE, column, width)
        yield Step(Op.READ, "V", ONE, column, width)
        yield Step(Op.COMPUTE, "tile", head, rows, column)
    yield Step(Op.COMPUTE, "finish", head, rows, seen)
    suffix = "" if number is None else " parts"
    place = head if number is None else (number * attention.group, (number + 1) * attention.group)
    yield Step(Op.WRITE, f"O{suffix}", place, rows, width)
    yield Step(Op.WRITE, f"LSE{suffix}", place, rows, ONE)


def heads(attention: AttentionShape) -> tuple[Span, ...]:
    """The query heads of a unit, one by one."""
    return tuple((head, head + 1) for head in range(attention.group))


def check_problem(attention: AttentionShape, tiles: Tiles) -> None:
    """Raise unless the two are what they should be."""
    if not isinstance(attention, AttentionShape):
        raise TypeError(f"attention={attention!r}: must be an AttentionShape")
    if not isinstance(tiles, Tiles):
        raise TypeError(f"tiles={tiles!r}: must be a Tiles")
