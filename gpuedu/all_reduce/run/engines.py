"""A rank's program carried out: by dependency over gloo, in the plan's order over NCCL."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import groupby

import torch
import torch.distributed as dist

from gpuedu.distributed import talking_to

from .program import INPUT, Message, Program, Read

Look = Callable[[int, torch.Tensor], None]  # is shown the number of each receive and what arrived


class Memory:
    """The versions that a rank holds.

    Parameters
    ----------
    program : Program
        What it does.
    tensor : Tensor
        What it hands in, flat.
    out : Tensor
        Where its result goes, flat. What arrives for good arrives there, without a copy.
    """

    def __init__(self, program: Program, tensor: torch.Tensor, out: torch.Tensor):
        self.program, self.out = program, out
        self.versions = {INPUT: (program.first, tensor)}  # with the number of their first element
        spare = _workspace(program.spare, out.dtype, out.device)
        self.buffers = [self._buffer(message, spare) for message in program.receives]

    def add(self, version: int) -> None:
        """Add to what arrived what it is to be added to; from now on it is a version."""
        message, buffer = self.program.receives[version], self.buffers[version]
        for read in message.reads:
            buffer[read.start - message.start : read.stop - message.start].add_(self.view(read))
        self.versions[version] = message.start, buffer

    def view(self, read: Read) -> torch.Tensor:
        """The elements of one read, where they are."""
        first, tensor = self.versions[read.version]
        return tensor[read.start - first : read.stop - first]

    def gather(self, reads: tuple[Read, ...]) -> torch.Tensor:
        """The elements of all ``reads``, one after the other."""
        return self.view(reads[0]) if len(reads) == 1 else torch.cat([self.view(read) for read in reads])

    def finish(self) -> None:
        """Copy to the result what did not arrive there."""
        offset = 0
        for read in self.program.result:
            length = read.stop - read.start
            if read.version == INPUT or not self.program.receives[read.version].final:
                self.out[offset : offset + length].copy_(self.view(read))
            offset += length

    def _buffer(self, message: Message, spare: torch.Tensor) -> torch.Tensor:
        into = self.out if message.final else spare
        return into[message.place : message.place + message.stop - message.start]


@lru_cache(maxsize=1)
def _workspace(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for what arrives and is not final; the same from call to call, for a new one costs time."""
    return torch.empty(length, dtype=dtype, device=device)


def by_dependency(memory: Memory, look: Look) -> None:
    """Send each message as soon as everything that it carries is there.

    All receives are posted first, in memory that nothing else uses: no sender ever waits for this rank.
    """
    program = memory.program
    posted = [_receive(*both) for both in zip(program.receives, memory.buffers, strict=True)]
    sent: list[tuple[int, dist.Work, torch.Tensor]] = []

    def send(message: Message) -> None:
        data, peer = memory.gather(message.reads), message.transfer.dst
        with talking_to(peer):
            sent.append((peer, dist.isend(data, peer, tag=message.tag), data))

    waiting = _Waiting()
    for message in program.sends:
        waiting.until(message.reads, partial(send, message))
    for version in _arrivals(program, posted):
        look(version, memory.buffers[version])

        def there(version: int = version) -> None:
            memory.add(version)
            waiting.ready(version)

        waiting.until(program.receives[version].reads, there)
    for peer, work, _ in sent:
        with talking_to(peer):
            work.wait()


class _Waiting:
    """What is to happen when versions are there."""

    def __init__(self) -> None:
        self.there = {INPUT}
        self.then: dict[int, list[Callable[[], None]]] = {}
        self.fresh: deque[int] = deque()  # there, and what waits for them is still to be done

    def until(self, reads: tuple[Read, ...], then: Callable[[], None]) -> None:
        """Do ``then`` when all of ``reads`` are there, which may be now."""
        missing = next((read.version for read in reads if read.version not in self.there), None)
        if missing is None:
            then()
        else:
            self.then.setdefault(missing, []).append(lambda: self.until(reads, then))

    def ready(self, version: int) -> None:
        """``version`` is there."""
        self.there.add(version)
        self.fresh.append(version)
        if len(self.fresh) > 1:
            return  # called by what the loop below does
        while self.fresh:
            for then in self.then.pop(self.fresh[0], []):
                then()
            self.fresh.popleft()


def _receive(message: Message, buffer: torch.Tensor) -> dist.Work:
    with talking_to(message.transfer.src):
        return dist.irecv(buffer, message.transfer.src, tag=message.tag)


def _arrivals(program: Program, posted: list[dist.Work]) -> Iterator[int]:
    """The numbers of the receives as they arrive; those from one rank in the plan's order."""
    by_source: dict[int, dict[int, dist.Work]] = {}
    for version, (message, work) in enumerate(zip(program.receives, posted, strict=True)):
        by_source.setdefault(message.transfer.src, {})[version] = work
    channels = [_in_turn(source, works) for source, works in by_source.items()]
    return channels[0] if len(channels) == 1 else _as_they_come(channels)


def _in_turn(source: int, works: dict[int, dist.Work]) -> Iterator[int]:
    """The receives from one rank."""
    for version, work in works.items():
        with talking_to(source):
            work.wait()
        yield version


def _as_they_come(channels: list[Iterator[int]]) -> Iterator[int]:
    """The items of all ``channels``, each of which a thread listens to."""
    arrived: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    def listen(channel: Iterator[int]) -> None:
        try:
            for version in channel:
                arrived.put(version)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    for channel in channels:
        threading.Thread(target=listen, args=(channel,), daemon=True).start()
    open_channels = len(channels)
    while open_channels:
        match arrived.get():
            case None:
                open_channels -= 1
            case Exception() as error:
                raise error
            case version:
                yield version


def in_order(memory: Memory, look: Look) -> None:
    """Send and receive piece by piece of round by round, and wait for each as late as possible.

    For NCCL, which has no tags: it matches messages by their order, and carries out in that order what
    it has been given. Additions overlap with the messages that do not need them; no rank waits for
    another's round to end.
    """
    if memory.out.device.type == "cuda":
        _meet(dist.group.WORLD, memory.out.device)
    program = memory.program
    batches: dict[int, list[dist.Work]] = {}  # by number of receive; empty when it has been waited for

    def need(reads: tuple[Read, ...]) -> None:
        for read in reads:
            if read.version not in memory.versions:
                _wait(batches[read.version])
                look(read.version, memory.buffers[read.version])
                need(program.receives[read.version].reads)
                memory.add(read.version)

    messages = [(message, None) for message in program.sends]
    messages += [(message, version) for version, message in enumerate(program.receives)]
    kept, every = [], []
    for _, step in groupby(sorted(messages, key=_step), key=_step):
        operations, versions = [], []
        for message, version in step:
            if version is None:
                need(message.reads)
                kept.append(memory.gather(message.reads))
                operations.append(dist.P2POp(dist.isend, kept[-1], message.transfer.dst, tag=message.tag))
            else:
                buffer = memory.buffers[version]
                operations.append(dist.P2POp(dist.irecv, buffer, message.transfer.src, tag=message.tag))
                versions.append(version)
        with talking_to():
            batch = dist.batch_isend_irecv(operations)
        batches |= dict.fromkeys(versions, batch)
        every.append(batch)
    need(tuple(Read(version, 0, 0) for version in batches))
    for batch in every:
        _wait(batch)


@lru_cache(maxsize=1)
def _meet(world: dist.ProcessGroup, device: torch.device) -> None:
    """Have NCCL connect the ranks of ``world``, once: its first call must be one that all ranks make."""
    dist.all_reduce(torch.zeros(1, device=device), group=world)


def _step(item: tuple[Message, int | None]) -> tuple[int, int]:
    return item[0].round, item[0].piece


def _wait(batch: list[dist.Work]) -> None:
    with talking_to():
        while batch:
            batch.pop().wait()
