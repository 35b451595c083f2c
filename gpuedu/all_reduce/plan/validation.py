"""The proof that a plan does what its collective promises: it is run on sets of contributions."""

from __future__ import annotations

from collections.abc import Iterator

from .collective import Collective, Plan, Transfer

Held = tuple[tuple[int, ...], ...]

_SUMS = (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.REDUCE)


def validate(plan: Plan) -> None:
    """Prove that after ``plan`` every rank has every contribution that it should, exactly once.

    Parameters
    ----------
    plan : Plan
        Any plan, for example one written by hand.

    Raises
    ------
    ValueError
        If a transfer cannot be, sends what its rank does not have, adds a contribution twice, destroys
        one by a copy, or meets another one at the same chunk in the same round; or if something is
        missing at the end. The message says what and where.

    Notes
    -----
    Each chunk on each rank is the set of ranks whose contributions it is the sum of. A reduce joins two
    sets, which must not overlap; a copy must bring everything that it overwrites. At the end the sets
    are compared with what :class:`~gpuedu.all_reduce.plan.Collective` promises.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import Collective, Plan, Transfer, ring
    >>> validate(ring(7))
    >>> half = ((Transfer(0, 1, 0, 1, True),),)
    >>> validate(Plan("half", Collective.ALL_REDUCE, 2, 1, half))
    Traceback (most recent call last):
        ...
    ValueError: half: at the end chunk 0 on rank 0 lacks the contribution of rank 1
    """
    _check_shape(plan)
    held = _start(plan)
    for number, transfers in enumerate(plan.rounds):
        _run_round(plan, number, transfers, held)
    for rank, chunk, expected in _promised(plan):
        if held[rank][chunk] != expected:
            missing = _ranks(expected & ~held[rank][chunk])
            raise ValueError(
                f"{plan.name}: at the end chunk {chunk} on rank {rank} lacks the contribution of {missing}"
            )


def contributions(plan: Plan) -> Iterator[Held]:
    """Whose contributions each chunk on each rank is the sum of, before the first round and after each.

    Parameters
    ----------
    plan : Plan
        Any plan.

    Yields
    ------
    tuple
        ``[rank][chunk]``: a set of ranks as bits, bit r for rank r; 0 where there is nothing.

    Raises
    ------
    ValueError
        At the first transfer that is wrong, as for :func:`validate`.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import tree
    >>> list(contributions(tree(2)))
    [((1,), (2,)), ((3,), (2,)), ((3,), (3,))]
    """
    _check_shape(plan)
    held = _start(plan)
    yield tuple(map(tuple, held))
    for number, transfers in enumerate(plan.rounds):
        _run_round(plan, number, transfers, held)
        yield tuple(map(tuple, held))


def _check_shape(plan: Plan) -> None:
    n = plan.world_size
    needed = {Collective.REDUCE_SCATTER: n, Collective.ALL_GATHER: n, Collective.ALL_TO_ALL: n * n}
    if plan.chunks != needed.get(plan.collective, plan.chunks):
        raise ValueError(
            f"{plan.name}: chunks={plan.chunks}: {plan.collective.value} over {n} ranks has "
            f"{needed[plan.collective]}"
        )
    ranks, chunks = range(n), range(plan.chunks + 1)
    for number, transfers in enumerate(plan.rounds):
        for t in transfers:
            where = f"{plan.name}: round {number}: {t}"
            if not isinstance(t, Transfer) or not isinstance(t.reduce, bool):
                raise ValueError(f"{where}: must be a Transfer whose reduce is True or False")
            if t.src not in ranks or t.dst not in ranks:
                raise ValueError(f"{where}: src and dst must be from 0 to {n - 1}")
            if t.src == t.dst:
                raise ValueError(f"{where}: src and dst must be two different ranks")
            if t.start not in chunks or t.stop not in chunks or t.start >= t.stop:
                raise ValueError(f"{where}: must have 0 <= start < stop <= {plan.chunks}")


def _start(plan: Plan) -> list[list[int]]:
    """``held[rank][chunk]``: the set of contributions as bits, before the first round."""
    ranks, chunks = range(plan.world_size), range(plan.chunks)
    if plan.collective in _SUMS:
        return [[1 << rank] * plan.chunks for rank in ranks]
    return [[1 << rank if _origin(plan, chunk) == rank else 0 for chunk in chunks] for rank in ranks]


def _origin(plan: Plan, chunk: int) -> int:
    """The rank that has ``chunk`` at the start, where only one has."""
    if plan.collective is Collective.ALL_GATHER:
        return chunk
    return chunk // plan.world_size if plan.collective is Collective.ALL_TO_ALL else plan.root


def _promised(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Rank, chunk and what it must be at the end."""
    everybody = (1 << plan.world_size) - 1
    for chunk in range(plan.chunks):
        match plan.collective:
            case Collective.REDUCE_SCATTER:
                ranks = [chunk]
            case Collective.REDUCE:
                ranks = [plan.root]
            case Collective.ALL_TO_ALL:
                ranks = [chunk % plan.world_size]
            case _:
                ranks = range(plan.world_size)
        expected = everybody if plan.collective in _SUMS else 1 << _origin(plan, chunk)
        yield from ((rank, chunk, expected) for rank in ranks)


def _run_round(
    plan: Plan,
    number: int,
    transfers: tuple[Transfer, ...],
    held: list[list[int]],
) -> None:
    """Carry out one round on ``held``."""
    arrived: dict[tuple[int, int], int] = {}
    for t in transfers:
        for chunk in range(t.start, t.stop):
            new, old = held[t.src][chunk], held[t.dst][chunk]
            wrong = _wrong(t, chunk, new, old, (t.dst, chunk) in arrived)
            if wrong:
                where = f"{plan.name}: round {number}: rank {t.src} to rank {t.dst}"
                raise ValueError(f"{where} {wrong}")
            arrived[t.dst, chunk] = new | old if t.reduce else new
    for (rank, chunk), contributions in arrived.items():
        held[rank][chunk] = contributions


def _wrong(t: Transfer, chunk: int, new: int, old: int, written: bool) -> str:
    """What is wrong with sending ``new`` to where ``old`` is; empty if nothing is."""
    if not new:
        return f"sends chunk {chunk}, which it does not have"
    if t.reduce and not old:
        return f"adds to chunk {chunk}, which rank {t.dst} does not have"
    if t.reduce and new & old:
        twice = _ranks(new & old)
        return f"adds the contribution of {twice} to chunk {chunk} a second time"
    if not t.reduce and old & ~new:
        lost = _ranks(old & ~new)
        return f"copies over chunk {chunk}, where the contribution of {lost} is lost"
    if written:
        return f"writes to chunk {chunk}, as another transfer of this round does"
    return ""


def _ranks(contributions: int) -> str:
    """The ranks of a set, in words."""
    ranks = [str(rank) for rank in range(contributions.bit_length()) if contributions >> rank & 1]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"
