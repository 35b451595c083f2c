"""Ranks that watch each other, so that all end when one dies, and say which.

With gloo, the neighbors of a killed rank find their connections closed, and report it; NCCL may wait
for ever, as gloo does for a machine that is gone. So every rank also beats: it counts a number up in
the store through which the ranks found each other, and looks at the numbers of the others. One that
stands still belongs to a dead rank. The first report counts: what fails later fails because of it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

BEAT_S = 0.5
DEAD_AFTER_S = 5.0  # without a beat
GRACE_S = 1.0  # for the main thread to fail by itself, with a traceback, before the process is ended
LEFT = -1  # the number of a rank that is done
FAILURE = "failure"  # key of what the rank that failed first reported


class PeerLost(RuntimeError):
    """A message failed; ``peer`` is the rank at its other end, None in a collective of all ranks."""

    def __init__(self, peer: int | None, reason: str):
        super().__init__("lost another rank" if peer is None else f"lost rank {peer}: {reason}")
        self.peer, self.reason = peer, reason


@contextmanager
def talking_to(peer: int | None = None) -> Iterator[None]:
    """Turn what torch raises when a peer is gone, a bare RuntimeError, into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(peer, str(error).strip().splitlines()[0]) from error


def run_store(address: str, port: int) -> dist.Store:
    """A connection of one's own to the store of the run: a call that waits blocks its whole connection."""
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
    return dist.PrefixStore(f"gpuedu/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class Watch:
    """A thread that beats for this rank, watches the others, and ends the process if one has failed.

    Parameters
    ----------
    store : Store
        A connection that nobody else uses.
    rank, world_size : int
        Of this process.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        self.store, self.rank = store, rank
        self.seen = dict.fromkeys(set(range(world_size)) - {rank}, (0, time.monotonic()))
        self.failure: str | None = None
        self.failed, self.stopped = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def cause_of(self, error: BaseException) -> str | None:
        """Which rank's failure is behind ``error``; None if this one's own, of which the others are told."""
        if isinstance(error, PeerLost):
            if error.peer is not None:
                # A rank that ends in good order reports before it lets go of its connections.
                self._report(f"rank {error.peer} died: {error.reason}")
            self.failed.wait(DEAD_AFTER_S + 2 * BEAT_S)
            return self.failure or str(error)
        self._report(f"rank {self.rank} failed: {type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        return None

    def stop(self) -> None:
        """Leave: the others no longer wait for a beat of this rank."""
        self.stopped.set()
        self.thread.join()
        with suppress(RuntimeError):
            self.store.set(f"beat/{self.rank}", str(LEFT))

    def _run(self) -> None:
        while self.failure is None:
            if self.stopped.wait(BEAT_S):
                return
            try:
                self.store.add(f"beat/{self.rank}", 1)
                self.failure = self._look()
            except RuntimeError:
                self.failure = "the process that hosts the store (the launcher, else rank 0) died"
        self.failed.set()
        if not self.stopped.wait(GRACE_S):
            print(f"rank {self.rank} ended: {self.failure}", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread is stuck in a call that cannot be interrupted

    def _look(self) -> str | None:
        """What has failed, in a line, or None."""
        now = time.monotonic()
        for peer, (beat, since) in self.seen.items():
            latest = self.store.add(f"beat/{peer}", 0)
            if latest != beat:
                self.seen[peer] = latest, now
            elif beat != LEFT and now - since > DEAD_AFTER_S:
                self._report(f"rank {peer} died: no sign of life for {now - since:.0f} s")
        if self.store.check([FAILURE]):
            return self.store.get(FAILURE).decode().splitlines()[0]
        return None

    def _report(self, failure: str) -> None:
        """Tell all ranks, unless one has told them of an earlier failure."""
        with suppress(RuntimeError):
            self.store.compare_set(FAILURE, "", failure)
