"""The backward: standard attention's, and FlashAttention's, which compute the scores once more."""

from __future__ import annotations

from collections.abc import Iterator

from .attention import AttentionShape, Span
from .forward import ONE, check_problem, heads
from .steps import Op, Step, TilePlan
from .tiles import Tiles, blocks, overlapping


def standard_backward(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """The backward of standard attention: P comes from HBM, dP and dS go there and back.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; a mask saves nothing.
    tiles : Tiles
        How many rows are moved at a time; it changes no count.

    Returns
    -------
    TilePlan
        Five phases for each query head, each product reading its operands once.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Algorithm 3 (in the appendix).

    Examples
    --------
    >>> plan = standard_backward(AttentionShape(512, 512, 64), Tiles(128, 128))
    >>> sum(step.elements for step in plan.steps if step.columns == (0, 512) and step.op is not Op.COMPUTE
    ...     and step.what in ("P", "dP", "dS")) // 512**2
    7
    """
    check_problem(attention, tiles)
    width, keys, rows = (0, attention.head_dim), (0, attention.keys), blocks(attention.queries, tiles.rows)

    def by_rows(kernel: str, left: str, right: str, out: str) -> Iterator[tuple[Step, ...]]:
        """A product whose result is cut into rows, or the pass over the scores."""
        for head in heads(attention):
            program = [] if right == "dP" else [Step(Op.READ, right, ONE, keys, width)]
            for row in rows:
                program.append(Step(Op.READ, left, head, row, width if left == "dO" else keys))
                if right == "dP":
                    program.append(Step(Op.READ, right, head, row, keys))
                program.append(Step(Op.COMPUTE, kernel, head, row, keys))
                program.append(Step(Op.WRITE, out, head, row, width if out == "dQ" else keys))
            yield tuple(program)

    def by_columns(kernel: str, left: str, right: str, out: str) -> Iterator[tuple[Step, ...]]:
        """A product summed over the rows of all heads of the unit."""
        program = [Step(Op.HOLD, out, ONE, keys, width)]
        for head in heads(attention):
            for row in rows:
                program.append(Step(Op.READ, left, head, row, keys))
                program.append(Step(Op.READ, right, head, row, width))
                program.append(Step(Op.COMPUTE, kernel, head, row, keys))
        yield (*program, Step(Op.WRITE, out, ONE, keys, width))

    phases = (
        by_columns("dV", "P", "dO", "dV"),
        by_rows("dP", "dO", "V", "dP"),
        by_rows("dS", "P", "dP", "dS"),
        by_rows("dQ", "dS", "K", "dQ"),
        by_columns("dK", "dS", "Q", "dK"),
    )
    return TilePlan("standard_backward", attention, tiles, tuple(map(tuple, phases)))


def version_1_backward(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """The backward of version 1: outer loop over K and V; O is read to compute D in every tile.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; tiles in which no query sees a key are skipped.
    tiles : Tiles
        B_r by B_c.

    Returns
    -------
    TilePlan
        One program for each unit.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Algorithm 4 (in the appendix); its line 5 fills the gradients.

    Examples
    --------
    >>> plan = version_1_backward(AttentionShape(256, 256, 64), Tiles(64, 128))
    >>> sum(step.what == "gradients by m, l" for step in plan.steps)
    8
    """
    check_problem(attention, tiles)
    width = (0, attention.head_dim)

    def program() -> Iterator[Step]:
        for head in heads(attention):
            yield Step(Op.FILL, "dQ", head, (0, attention.queries), width)
        for name in ("dK", "dV"):
            yield Step(Op.FILL, name, ONE, (0, attention.keys), width)
        for columns in blocks(attention.keys, tiles.columns):
            rows = overlapping(attention.queries, tiles.rows, attention.seeing_queries(columns))
            if not rows:
                continue
            yield from _open_columns(columns, width)
            for head in heads(attention):
                for row in rows:
                    for name in ("Q", "O", "dO", "dQ"):
                        yield Step(Op.READ, name, head, row, width)
                    for name in ("m", "l"):
                        yield Step(Op.READ, name, head, row, ONE)
                    yield Step(Op.COMPUTE, "gradients by m, l", head, row, columns)
                    yield Step(Op.WRITE, "dQ", head, row, width)
            yield from _close_columns(columns, width)

    return TilePlan("version_1_backward", attention, tiles, ((tuple(program()),),))


def version_2_backward(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """The backward of version 2: D once, then outer loop over K and V, dQ added to in HBM.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; tiles in which no query sees a key are skipped.
    tiles : Tiles
        B_r by B_c.

    Returns
    -------
    TilePlan
        A phase for D, then one program for each block of keys. On a GPU the programs add to dQ by atomic
        operations, each a read and a write.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    References
    ----------
    Dao 2023, "FlashAttention-2", Algorithm 2.

    Examples
    --------
    >>> plan = version_2_backward(AttentionShape(256, 256, 64, causal=True), Tiles(64, 64))
    >>> [len(programs) for programs in plan.phases]
    [4, 4]
    """
    check_problem(attention, tiles)
    width = (0, attention.head_dim)

    def program(columns: Span) -> Iterator[Step]:
        rows = overlapping(attention.queries, tiles.rows, attention.seeing_queries(columns))
        yield from _open_columns(columns, width, seen=bool(rows))
        for head in heads(attention):
            for row in rows:
                yield from _read_rows(head, row, width)
                yield Step(Op.READ, "dQ", head, row, width)
                yield Step(Op.COMPUTE, "gradients", head, row, columns)
                yield Step(Op.WRITE, "dQ", head, row, width)
        yield from _close_columns(columns, width)

    programs = tuple(tuple(program(columns)) for columns in blocks(attention.keys, tiles.columns))
    first = _row_sums(attention, tiles, fill=True)
    return TilePlan("version_2_backward", attention, tiles, (first, programs))


def two_pass_backward(attention: AttentionShape, tiles: Tiles) -> TilePlan:
    """A backward without atomic operations: one pass for dK and dV, another for dQ.

    Seven products a tile for five, and nobody waits for anybody. It is what Triton's tutorial does, and
    our Triton kernel.

    Parameters
    ----------
    attention : AttentionShape
        What is computed; tiles in which no query sees a key are skipped.
    tiles : Tiles
        B_r by B_c.

    Returns
    -------
    TilePlan
        A phase for D; one with a program for each block of keys; one with a program for each block of
        queries of each query head.

    Raises
    ------
    TypeError
        If an argument is not of its type.

    Examples
    --------
    >>> plan = two_pass_backward(AttentionShape(256, 256, 64), Tiles(64, 128))
    >>> [len(programs) for programs in plan.phases]
    [4, 2, 4]
    """
    check_problem(attention, tiles)
    width = (0, attention.head_dim)

    def of_keys(columns: Span) -> Iterator[Step]:
        rows = overlapping(attention.queries, tiles.rows, attention.seeing_queries(columns))
        yield from _open_columns(columns, width, seen=bool(rows))
        for head in heads(attention):
            for row in rows:
                yield from _read_rows(head, row, width)
                yield Step(Op.COMPUTE, "gradients of K, V", head, row, columns)
        yield from _close_columns(columns, width)

    def of_queries(head: Span, row: Span) -> Iterator[Step]:
        columns = overlapping(attention.keys, tiles.columns, attention.visible_keys(row))
        yield Step(Op.HOLD, "dQ", head, row, width)
        if columns:
            yield from _read_rows(head, row, width)
        for column in columns:
            yield Step(Op.READ, "K", ONE, column, width)
            yield Step(Op.READ, "V", ONE, column, width)
            yield Step(Op.COMPUTE, "gradient of Q", head, row, column)
        yield Step(Op.WRITE, "dQ", head, row, width)

    keys = tuple(tuple(of_keys(columns)) for columns in blocks(attention.keys, tiles.columns))
    rows = blocks(attention.queries, tiles.rows)
    queries = tuple(tuple(of_queries(head, row)) for head in heads(attention) for row in rows)
    phases = (_row_sums(attention, tiles, fill=False), keys, queries)
    return TilePlan("two_pass_backward", attention, tiles, phases)


def _row_sums(attention: AttentionShape, tiles: Tiles, *, fill: bool) -> tuple[tuple[Step, ...], ...]:
    """The phase that computes D, the sum of dO times O over each row; with ``fill`` it also sets dQ to 0."""
    width = (0, attention.head_dim)
    return tuple(
        (
            Step(Op.READ, "O", head, row, width),
            Step(Op.READ, "dO", head, row, width),
            Step(Op.COMPUTE, "D", head, row, (0, 0)),
            Step(Op.WRITE, "D", head, row, ONE),
            *([Step(Op.FILL, "dQ", head, row, width)] if fill else []),
        )
        for head in heads(attention)
        for row in blocks(attention.queries, tiles.rows)
    )


def _read_rows(head: Span, row: Span, width: Span) -> Iterator[Step]:
    for name, w in (("Q", width), ("dO", width), ("LSE", ONE), ("D", ONE)):
        yield Step(Op.READ, name, head, row, w)


def _open_columns(columns: Span, width: Span, *, seen: bool = True) -> Iterator[Step]:
    if seen:
        yield Step(Op.READ, "K", ONE, columns, width)
        yield Step(Op.READ, "V", ONE, columns, width)
    yield Step(Op.HOLD, "dK", ONE, columns, width)
    yield Step(Op.HOLD, "dV", ONE, columns, width)


def _close_columns(columns: Span, width: Span) -> Iterator[Step]:
    yield Step(Op.WRITE, "dK", ONE, columns, width)
    yield Step(Op.WRITE, "dV", ONE, columns, width)
