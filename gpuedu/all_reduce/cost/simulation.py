"""A plan priced by dependency: a message leaves when what it carries is there and its ports are free."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import groupby, pairwise
from typing import NamedTuple

from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import Cluster

from ..plan import Plan, Transfer
from .checks import check_placed


class Message(NamedTuple):
    """One piece of one transfer, in time."""

    round: int  # of the transfer in its plan
    piece: int
    src: int
    dst: int
    nbytes: int
    start: float  # seconds since the collective began
    end: float


@dataclass(frozen=True)
class Trace:
    """A plan in time.

    Parameters
    ----------
    plan : Plan
        What was run.
    messages : tuple of Message
        Everything sent, in the order of arrival.
    seconds : float
        From the beginning until the last byte has arrived and been added.
    """

    plan: Plan
    messages: tuple[Message, ...]
    seconds: float


def simulate(
    plan: Plan,
    nbytes: int,
    cluster: Cluster,
    *,
    pieces: int = 1,
    gamma: float = 0.0,
    itemsize: int = 1,
) -> Trace:
    """Run ``plan`` on a clock without waiting at the end of rounds, each chunk cut into ``pieces``.

    Pieces are what makes a tree fast: while a rank passes one on, its children send the next.

    Parameters
    ----------
    plan : Plan
        A valid plan. Its ranks are the cluster's first GPUs, node by node.
    nbytes : int
        Bytes of the array.
    cluster : Cluster
        At least as many GPUs as the plan has ranks.
    pieces : int
        Pieces k of each chunk, at least 1; piece i of a chunk depends on pieces i only.
    gamma : float
        Seconds to add one byte that arrives to what is there.
    itemsize : int
        Bytes of one element; ``nbytes`` is a multiple of it.

    Returns
    -------
    Trace
        In seconds.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed or the cluster is too small.

    Notes
    -----
    Links are those of :func:`~gpuedu.all_reduce.cost.round_times`: a message keeps both of its ports for
    latency + bytes / bandwidth, and they go through a port one after the other. A message may leave when
    everything that earlier rounds have written to the chunks it carries has arrived; of those that may,
    the one with the smallest round + 2 piece goes first. This is no optimal order: a double binary tree
    of many pieces takes up to a third longer than its ports alone would ask.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import double_binary_tree
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> node = Cluster(GPUS["H100-SXM"], 8, 1, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    >>> plan = double_binary_tree(8)
    >>> [round(simulate(plan, 2**26, node, pieces=k).seconds * 1e6) for k in (1, 4, 16, 64)]
    [765, 452, 538, 987]
    """
    check_placed(plan, cluster)
    check_count("pieces", pieces)
    check_amount("gamma", gamma)
    at = plan.byte_bounds(nbytes, itemsize)
    queued = [_Queued(number, t) for number, transfers in enumerate(plan.rounds) for t in transfers]
    _connect(queued)
    for each in queued:
        each.sizes = _piece_sizes(at[each.transfer.start : each.transfer.stop + 1], itemsize, pieces)
        each.missing = [each.needs] * pieces
    ports = _Ports(cluster)
    for key, each in enumerate(queued):
        if not each.needs:
            for piece in range(pieces):
                ports.offer(piece, key, each)
    messages: list[Message] = []
    added: dict[int, float] = defaultdict(float)  # when a rank's last sum was done
    events: list[tuple[float, bool, int, int]] = []  # time, whether ports become free, piece, key
    now = 0.0
    while True:
        for waiting in ports.start_what_can():
            piece, key = waiting.piece, waiting.key
            t, size = queued[key].transfer, queued[key].sizes[piece]
            end = now + ports.seconds(waiting, size)
            messages.append(Message(queued[key].round, piece, t.src, t.dst, size, now, end))
            heappush(events, (end, True, piece, key))
        if not events:
            break
        now = events[0][0]
        while events and events[0][0] == now:
            _, arrives, piece, key = heappop(events)
            t, size = queued[key].transfer, queued[key].sizes[piece]
            if arrives:
                ports.free(t)
                if t.reduce and gamma:
                    added[t.dst] = max(now, added[t.dst]) + gamma * size
                    heappush(events, (added[t.dst], False, piece, key))
                    continue
            for fed in queued[key].feeds:
                queued[fed].missing[piece] -= 1
                if not queued[fed].missing[piece]:
                    ports.offer(piece, fed, queued[fed])
    messages.sort(key=lambda message: message.end)
    return Trace(plan, tuple(messages), now)


@dataclass(slots=True)
class _Queued:
    """A transfer on its way: what it waits for and what waits for it."""

    round: int
    transfer: Transfer
    needs: int = 0
    feeds: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # of its pieces
    missing: list[int] = field(default_factory=list)  # inputs, by piece


def _connect(queued: list[_Queued]) -> None:
    """Note for every transfer who has written, in earlier rounds, what it carries."""
    written: dict[tuple[int, int], list[int]] = defaultdict(list)
    for _, transfers in groupby(enumerate(queued), key=lambda item: item[1].round):
        new: list[tuple[tuple[int, int], int]] = []
        for key, each in transfers:
            t = each.transfer
            chunks = range(t.start, t.stop)
            sources = {writer for chunk in chunks for writer in written[t.src, chunk]}
            each.needs = len(sources)
            for source in sources:
                queued[source].feeds.append(key)
            new += [((t.dst, chunk), key) for chunk in chunks]
        for place, key in new:
            written[place].append(key)


def _piece_sizes(bounds: tuple[int, ...], itemsize: int, pieces: int) -> list[int]:
    """Bytes of each piece of a message: every chunk is cut for itself, between elements."""
    sizes = [0] * pieces
    for start, stop in pairwise(bounds):
        length = (stop - start) // itemsize
        for piece in range(pieces):
            sizes[piece] += ((piece + 1) * length // pieces - piece * length // pieces) * itemsize
    return sizes


Port = tuple[int, str, bool]  # rank, "out" or "in", whether to other nodes


class _Waiting(NamedTuple):
    """A message that could leave if its ports were free, most urgent first."""

    urgency: int
    piece: int
    key: int
    out: Port
    into: Port


class _Ports:
    """Every GPU's four ports: which are busy, and the messages that wait for each."""

    def __init__(self, cluster: Cluster) -> None:
        self.links = cluster.intra_node, cluster.inter_node
        self.per_node = cluster.gpus_per_node
        self.busy: set[Port] = set()
        self.queues: dict[Port, list[_Waiting]] = defaultdict(list)
        self.changed: dict[Port, None] = {}  # ports to look at again; a dict keeps their order

    def offer(self, piece: int, key: int, queued: _Queued) -> None:
        """A message could leave."""
        out, into = self._of(queued.transfer)
        waiting = _Waiting(queued.round + 2 * piece, piece, key, out, into)
        for port in (out, into):
            insort(self.queues[port], waiting)
        self.changed[out] = None

    def free(self, t: Transfer) -> None:
        """The message has arrived."""
        for port in self._of(t):
            self.busy.remove(port)
            self.changed[port] = None

    def seconds(self, waiting: _Waiting, size: int) -> float:
        """How long a message keeps its ports."""
        return self.links[waiting.out[2]].transfer_time(size)

    def _of(self, t: Transfer) -> tuple[Port, Port]:
        far = t.src // self.per_node != t.dst // self.per_node
        return (t.src, "out", far), (t.dst, "in", far)

    def start_what_can(self) -> Iterator[_Waiting]:
        """Start what can leave through the ports that have become free, most urgent first."""
        first = [waiting for port in self.changed if (waiting := self._first(port))]
        self.changed.clear()
        heapify(first)
        while first:
            waiting = heappop(first)
            if waiting.out not in self.busy and waiting.into not in self.busy:
                self.busy |= {waiting.out, waiting.into}
                for port in (waiting.out, waiting.into):
                    queue = self.queues[port]
                    del queue[bisect_left(queue, waiting)]
                yield waiting
            else:  # somebody took one of its ports; another may go through the other one
                for port in (waiting.out, waiting.into):
                    if other := self._first(port):
                        heappush(first, other)

    def _first(self, port: Port) -> _Waiting | None:
        """The most urgent message through ``port`` that can leave now."""
        if port in self.busy:
            return None
        return next((w for w in self.queues[port] if not (w.out in self.busy or w.into in self.busy)), None)
