"""What one rank does: its messages, and for each where the numbers come from.

Every message that arrives has memory of its own, and nothing is overwritten: it is a new *version* of
the elements it carries. So no message ever waits until a place is free, and the order in which things
arrive cannot change a result. Which version a message sends, or adds to, follows from the plan alone:
the last one of earlier rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ..plan import Plan, Transfer, validate
from .layout import chunks_in, chunks_out

INPUT = -1  # the version that the rank hands in


class Read(NamedTuple):
    """The elements ``start`` to ``stop - 1`` of the whole array, in one version of them."""

    version: int  # index of the receive that brought it, or INPUT
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Message:
    """One piece of one transfer, as one of its two ranks sees it.

    ``reads`` is what is sent, or what is added to what arrives (nothing if it is a copy). An arriving
    message has its ``place`` in the rank's result if it is ``final``, else in its spare memory.
    """

    transfer: Transfer
    round: int
    piece: int
    tag: int  # among the messages from the one rank to the other
    start: int
    stop: int
    reads: tuple[Read, ...]
    place: int = 0
    final: bool = False


@dataclass(frozen=True)
class Program:
    """All messages of one rank, round by round and within a round piece by piece."""

    rank: int
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]
    result: tuple[Read, ...]  # what the rank ends with, in this order
    spare: int  # elements that arrive and are not in the result
    first: int  # the first element that the rank hands in


@lru_cache(maxsize=64)
def program(plan: Plan, rank: int, length: int, pieces: int) -> Program:
    """What ``rank`` does, given a valid ``plan`` and the whole array's length."""
    validate(plan)
    at = plan.bounds(length)
    versions = [[INPUT] * pieces for _ in range(plan.chunks)]
    tags: Counter[Transfer | tuple[int, int]] = Counter()
    sends: list[Message] = []
    receives: list[Message] = []
    for number, transfers in enumerate(plan.rounds):
        mine = [t for t in transfers if rank in (t.src, t.dst)]
        arrived = []
        for piece in range(pieces):
            for t in mine:
                for chunks in _messages(t, pieces):
                    reads = _merged(_reads(versions, at, chunks, piece, pieces))
                    if not reads:
                        continue  # a piece of no elements
                    tag = tags[t.src, t.dst]
                    tags[t.src, t.dst] += 1
                    message = Message(t, number, piece, tag, reads[0].start, reads[-1].stop, reads)
                    if t.src == rank:
                        sends.append(message)
                    else:
                        arrived.append((chunks, piece, len(receives)))
                        receives.append(message if t.reduce else replace(message, reads=()))
        for chunks, piece, version in arrived:
            for chunk in chunks:
                versions[chunk][piece] = version
    result = _merged(
        read
        for chunk in chunks_out(plan, rank)
        for piece in range(pieces)
        for read in _reads(versions, at, range(chunk, chunk + 1), piece, pieces)
    )
    first = at[chunks_in(plan, rank).start]
    placed, spare = _placed(receives, result)
    return Program(rank, tuple(sends), placed, result, spare, first)


def cut(at: tuple[int, ...], chunk: int, piece: int, pieces: int) -> tuple[int, int]:
    """Where a piece of a chunk starts and stops, given the bounds of the chunks."""
    start, length = at[chunk], at[chunk + 1] - at[chunk]
    return start + piece * length // pieces, start + (piece + 1) * length // pieces


def _messages(transfer: Transfer, pieces: int) -> Iterator[range]:
    """The chunks of each message: all at once, or, cut into pieces, one by one, as pieces lie apart."""
    chunks = range(transfer.start, transfer.stop)
    return iter([chunks]) if pieces == 1 else (range(chunk, chunk + 1) for chunk in chunks)


def _reads(
    versions: list[list[int]], at: tuple[int, ...], chunks: range, piece: int, pieces: int
) -> Iterator[Read]:
    """The piece of each chunk in its present version; none of a piece that has no elements."""
    for chunk in chunks:
        start, stop = cut(at, chunk, piece, pieces)
        if start < stop:
            yield Read(versions[chunk][piece], start, stop)


def _merged(reads: Iterator[Read]) -> tuple[Read, ...]:
    """``reads`` with neighbors of one version joined."""
    merged: list[Read] = []
    for read in reads:
        if merged and (merged[-1].version, merged[-1].stop) == (read.version, read.start):
            merged[-1] = merged[-1]._replace(stop=read.stop)
        else:
            merged.append(read)
    return tuple(merged)


def _placed(receives: list[Message], result: tuple[Read, ...]) -> tuple[tuple[Message, ...], int]:
    """``receives``, each with its place, and the elements of spare memory that they take."""
    final = {}
    offset = spare = 0
    for read in result:
        final[read] = offset
        offset += read.stop - read.start
    placed = []
    for version, message in enumerate(receives):
        place = final.get(Read(version, message.start, message.stop))
        placed.append(replace(message, place=spare if place is None else place, final=place is not None))
        if place is None:
            spare += message.stop - message.start
    return tuple(placed), spare
