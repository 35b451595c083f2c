"""Contributions checked by checksums that add up as the contributions do."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
import torch.distributed as dist

from gpuedu.distributed import talking_to

from ..plan import Collective, Plan
from .distributed import agree, carry_out
from .faults import Fault
from .layout import chunks_in, chunks_out
from .program import cut, program


@dataclass(frozen=True)
class Finding:
    """Something that was not what its rank had announced.

    ``rank`` is where it went wrong, ``chunk`` in which chunk, ``round`` in which round it was noticed (the
    number of rounds if only at the end). ``element`` is which of the elements that the rank hands in, if a
    single one is wrong and it can be told, else None.
    """

    rank: int
    chunk: int
    round: int
    element: int | None


def run_checked(
    plan: Plan, tensor: torch.Tensor, *, pieces: int = 1, faults: tuple[Fault, ...] = ()
) -> tuple[torch.Tensor | None, tuple[Finding, ...]]:
    """:func:`run_distributed`, and who corrupted what. All ranks call it.

    Parameters
    ----------
    plan, tensor, pieces, faults
        As for :func:`run_distributed`; ``tensor`` of integers or real floats.

    Returns
    -------
    result : Tensor or None
        As from :func:`run_distributed`; wrong if something was found.
    findings : tuple of Finding
        The same on all ranks; empty if every sum is what it should be.

    Raises
    ------
    TypeError, ValueError, PeerLost
        As :func:`run_distributed`.

    Notes
    -----
    Before the collective, each rank publishes two sums over each chunk x of its contribution: of x[i], and
    of (2 i + 1) x[i]. Both are linear, so those of a partial sum of contributions are the sums of theirs.
    Whose contributions a message holds follows from the plan: its receiver checks it on arrival. A wrong
    message from a rank that itself received no wrong one in this chunk shows where the mistake was made.

    Integers: both sums are exact modulo 2**bits of the dtype, as the collective itself is. Every change
    of a single element is found, and its place, unless only its highest bits changed. Changes of several
    elements that cancel out in both sums are not.

    Floats: the collective rounds, so sums (here in float64, of x[i] and of its absolute value) agree up to
    n eps times the sum of absolute values. What changes a chunk's sum by less is not found, such as a low
    bit of the mantissa; chunks that hold infinities or NaN are not checked.

    Not found either: what happened before the sums were taken, as then the rank announces it.
    """
    total = agree(plan, tensor, pieces, None, faults)
    if tensor.dtype is torch.bool or tensor.is_complex():
        raise TypeError(f"tensor of {tensor.dtype}: must be of integers or real floats to be checked")
    rank, at = dist.get_rank(), plan.bounds(total)
    announced = _announced(plan, tensor, at, pieces)
    held = contributions(plan)
    receives = program(plan, rank, total, pieces).receives
    wrong: list[_Wrong] = []

    def check(number: int, src: int, chunk: int, piece: int, data: torch.Tensor) -> None:
        error = _error(data, announced[_ranks(held[number][src][chunk]), chunk, piece])
        if error is not None:
            start = cut(at, chunk, piece, pieces)[0] - at[chunks_in(plan, src).start]
            element = _element(error, data)
            wrong.append(_Wrong(number, src, rank, chunk, None if element is None else start + element))

    def look(version: int, data: torch.Tensor) -> None:
        message = receives[version]
        for chunk in range(message.transfer.start, message.transfer.stop):
            start, stop = (end - message.start for end in cut(at, chunk, message.piece, pieces))
            if 0 <= start < stop <= len(data):
                check(message.round, message.transfer.src, chunk, message.piece, data[start:stop])

    result = carry_out(plan, tensor, total, pieces, None, faults, look)
    offset = 0
    for chunk in chunks_out(plan, rank):
        for piece in range(pieces):
            start, stop = cut(at, chunk, piece, pieces)
            check(len(plan.rounds), rank, chunk, piece, result.view(-1)[offset : offset + stop - start])
            offset += stop - start
    everybody: list[list[_Wrong]] = [[]] * plan.world_size
    with talking_to():
        dist.all_gather_object(everybody, wrong)
    return result, _origins([each for theirs in everybody for each in theirs])


class _Wrong(NamedTuple):
    """What rank ``dst`` received from rank ``src``, or itself ended with, was not as announced."""

    round: int
    src: int
    dst: int
    chunk: int
    element: int | None


def _origins(wrong: list[_Wrong]) -> tuple[Finding, ...]:
    """Where the first mistake in each chunk was made."""
    found: dict[tuple[int, int, int | None], Finding] = {}
    for each in sorted(wrong, key=lambda each: each.round):
        earlier = (w for w in wrong if w.dst == each.src and w.chunk == each.chunk)
        if not any(w.round < each.round for w in earlier):
            finding = Finding(each.src, each.chunk, each.round, each.element)
            found.setdefault((each.src, each.chunk, each.element), finding)
    return tuple(found.values())


def contributions(plan: Plan) -> list[list[list[int]]]:
    """``[round][rank][chunk]``: the ranks, as bits, whose contributions are in it before that round.

    One entry more than there are rounds: the last is what there is at the end.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import tree
    >>> [[bin(chunks[0]) for chunks in ranks] for ranks in contributions(tree(2))]
    [['0b1', '0b10'], ['0b11', '0b10'], ['0b11', '0b11']]
    """
    ranks, whole = range(plan.world_size), plan.collective is not Collective.BROADCAST
    held = [
        [
            (whole or rank == plan.root) * (chunk in chunks_in(plan, rank)) << rank
            for chunk in range(plan.chunks)
        ]
        for rank in ranks
    ]
    before = [held]
    for transfers in plan.rounds:
        held = [list(chunks) for chunks in held]
        for t in transfers:
            for chunk in range(t.start, t.stop):
                arrived = before[-1][t.src][chunk]
                held[t.dst][chunk] = held[t.dst][chunk] | arrived if t.reduce else arrived
        before.append(held)
    return before


def _announced(plan: Plan, tensor: torch.Tensor, at: tuple[int, ...], pieces: int) -> torch.Tensor:
    """``[rank, chunk, piece]``: the two sums over each piece of what each rank hands in."""
    flat, chunks = tensor.detach().reshape(-1), chunks_in(plan, dist.get_rank())
    first = at[chunks.start]
    kind = torch.float64 if tensor.is_floating_point() else torch.int64
    own = torch.zeros(plan.chunks, pieces, 2, dtype=kind, device=tensor.device)
    for chunk in chunks:
        for piece in range(pieces):
            start, stop = cut(at, chunk, piece, pieces)
            own[chunk, piece] = _sums(flat[start - first : stop - first])
    everybody = [torch.empty_like(own) for _ in range(plan.world_size)]
    with talking_to():
        dist.all_gather(everybody, own)
    return torch.stack(everybody)


def _sums(data: torch.Tensor) -> torch.Tensor:
    """Integers x: the sums of x[i] and (2 i + 1) x[i]; floats: of x[i] and its absolute value."""
    if data.is_floating_point():
        return torch.stack([data.double().sum(), data.double().abs().sum()])
    weights = 2 * torch.arange(len(data), device=data.device) + 1
    return torch.stack([data.long().sum(), (weights * data.long()).sum()])  # modulo 2**64


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


def _error(data: torch.Tensor, announced: torch.Tensor) -> tuple[int, int] | None:
    """How far both sums over ``data`` are from those of its contributions together; None if they are not."""
    actual, expected = _sums(data).tolist(), announced.sum(0).tolist()
    if data.is_floating_point():
        bound = (len(announced) * torch.finfo(data.dtype).eps + 2**-44) * expected[1]
        return None if not isfinite(bound) or abs(actual[0] - expected[0]) <= bound else (0, 0)
    modulus = 1 << 8 * data.element_size()
    error = (actual[0] - expected[0]) % modulus, (actual[1] - expected[1]) % modulus
    return error if any(error) else None


def _element(error: tuple[int, int], data: torch.Tensor) -> int | None:
    """Which element of ``data`` is wrong, if it is a single one: their quotient is 2 i + 1."""
    if not error[0]:
        return None
    low = error[0] & -error[0]  # the power of two in it, by which one cannot divide modulo another one
    modulus = (1 << 8 * data.element_size()) // low
    if error[1] % low or modulus < 2 * len(data):
        return None
    weight = error[1] // low * pow(error[0] // low, -1, modulus) % modulus
    return weight // 2 if weight % 2 and weight // 2 < len(data) else None
