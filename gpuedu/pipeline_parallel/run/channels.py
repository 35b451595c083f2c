"""Activations and gradients between the ranks of a pipeline, by point-to-point messages.

A *channel* is one rank's messages to one other. Both ends know their order beforehand: it is the
order in which the sender's actions produce them. The receiver posts its receives in that order and a
few ahead; the sender hands each message to a thread of the channel and computes on. So no rank ever
waits for a send, a receive waits only for what its sender has yet to compute, and whatever schedule
is free of deadlock as a plan is free of deadlock here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.distributed as dist

from gpuedu.distributed import talking_to

from ..plan import Schedule
from .rank import Message, produced

RECEIVES_AHEAD = 2  # posted and not yet taken, per channel: enough to overlap, few enough to be cheap


class Channels:
    """All channels of one rank, for one training step.

    Parameters
    ----------
    schedule : Schedule
        A valid schedule.
    rank : int
        Which of its ranks this is.
    shapes : mapping
        Part -> shape and dtype of one microbatch's activation as it enters the part, and of the
        gradient that leaves it.
    device : torch.device
        Where received tensors go.
    transfer_delay_s : float
        Each message sets out this much later than it could; neither rank is kept busy meanwhile.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        shapes: Mapping[int, tuple[torch.Size, torch.dtype]],
        device: torch.device,
        transfer_delay_s: float = 0.0,
    ):
        self.schedule, self.rank = schedule, rank
        self.own: dict[Message, torch.Tensor] = {}  # between two parts of this rank
        orders = {channel: order for channel, order in channel_orders(schedule).items() if rank in channel}
        groups = dict.fromkeys(orders)  # gloo tells messages apart by their tags
        if device.type == "cuda":
            groups = _communicators(tuple(channel_orders(schedule)), dist.group.WORLD)
        self.inboxes = {
            source: _Inbox(source, order, shapes, device, groups[source, rank])
            for (source, target), order in orders.items()
            if target == rank
        }
        self.outboxes = {
            target: _Outbox(target, order, device, groups[rank, target], transfer_delay_s)
            for (source, target), order in orders.items()
            if source == rank
        }

    def put(self, message: Message, tensor: torch.Tensor) -> None:
        """Send ``tensor`` on its way; returns at once."""
        target, _ = self.schedule.home(message.part)
        if target == self.rank:
            self.own[message] = tensor
        else:
            self.outboxes[target].put(message, tensor)

    def take(self, message: Message) -> torch.Tensor:
        """The tensor of ``message``; waits until it is there."""
        if message in self.own:
            return self.own.pop(message)
        before = message.part + (-1 if message.kind == "activation" else 1)
        return self.inboxes[self.schedule.home(before)[0]].take(message)

    def __enter__(self) -> Channels:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        """Wait until everything that was put has been delivered; after an error, do not wait."""
        for outbox in self.outboxes.values():
            outbox.close(wait=error_type is None)


def channel_orders(schedule: Schedule) -> dict[tuple[int, int], list[Message]]:
    """``(source, target)`` -> the messages from rank ``source`` to rank ``target``, in their order.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import gpipe
    >>> orders = channel_orders(gpipe(2, 2))
    >>> [(m.kind, m.microbatch) for m in orders[1, 0]]
    [('gradient', 0), ('gradient', 1)]
    """
    orders: dict[tuple[int, int], list[Message]] = {}
    for source, actions in enumerate(schedule.actions):
        for action in actions:
            message = produced(schedule, action)
            if message is not None and (target := schedule.home(message.part)[0]) != source:
                orders.setdefault((source, target), []).append(message)
    return orders


class _Inbox:
    """The receiving end of a channel."""

    def __init__(self, source, order, shapes, device, group):
        self.source, self.shapes, self.device, self.group = source, shapes, device, group
        self.unposted = deque(enumerate(order))
        self.posted: dict[Message, tuple[dist.Work, torch.Tensor]] = {}
        self._post(RECEIVES_AHEAD)

    def take(self, message: Message) -> torch.Tensor:
        with talking_to(self.source):
            while message not in self.posted:
                self._post(len(self.posted) + 1)
            work, tensor = self.posted.pop(message)
            work.wait()
            self._post(RECEIVES_AHEAD)
        return tensor

    def _post(self, count: int) -> None:
        """Post receives until ``count`` are posted and not taken."""
        while self.unposted and len(self.posted) < count:
            tag, message = self.unposted.popleft()
            shape, dtype = self.shapes[message.part if message.kind == "activation" else message.part + 1]
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
            work = dist.irecv(tensor, self.source, group=self.group, tag=tag)
            self.posted[message] = work, tensor


class _Outbox:
    """The sending end of a channel: a thread that sends one message after the other."""

    def __init__(self, target, order, device, group, delay_s):
        self.target, self.device, self.group, self.delay_s = target, device, group, delay_s
        self.tags = {message: tag for tag, message in enumerate(order)}
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._send_all, daemon=True)
        self.thread.start()

    def put(self, message: Message, tensor: torch.Tensor) -> None:
        self.waiting.put((time.perf_counter() + self.delay_s, self.tags[message], tensor))

    def close(self, wait: bool) -> None:
        self.waiting.put(None)
        if wait:
            self.thread.join()
            if self.error is not None:
                raise self.error

    def _send_all(self) -> None:
        try:
            with talking_to(self.target), _stream_of_its_own(self.device) as finish:
                while (item := self.waiting.get()) is not None:
                    due, tag, tensor = item
                    del item
                    time.sleep(max(0.0, due - time.perf_counter()))
                    dist.send(tensor, self.target, group=self.group, tag=tag)
                    finish()
                    del tensor  # its memory is free now, not when the next message comes
        except Exception as error:
            self.error = error


@contextmanager
def _stream_of_its_own(device: torch.device):
    """On CUDA, send from another stream than the one that computes, which would wait otherwise."""
    if device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream.synchronize


@lru_cache
def _communicators(
    channels: tuple[tuple[int, int], ...], world: dist.ProcessGroup
) -> dict[tuple[int, int], dist.ProcessGroup]:
    """A communicator per channel, for NCCL; ``world`` is the group it belongs to.

    NCCL has no tags: it matches what two ranks send each other by order alone, both directions
    together, and with receives posted ahead that order differs at the two ends. A communicator is set
    up by its first message, for which both ends must meet: hence one here, channel by channel.
    """
    groups = {channel: dist.new_group(list(channel)) for channel in channels}
    for (source, target), group in groups.items():
        token = torch.zeros(1, device="cuda")
        if dist.get_rank() == source:
            dist.send(token, target, group=group)
        elif dist.get_rank() == target:
            dist.recv(token, source, group=group)
        torch.cuda.synchronize()
    return groups
