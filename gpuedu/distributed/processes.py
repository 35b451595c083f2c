"""Processes that run together: started, joined into a group, and ended together when one fails."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType

import cloudpickle
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .watch import FAILURE, Watch, run_store

# It warns of each process that it ends; the error says already which rank failed, and why
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)

GRACE_S = 0.5  # for the other ranks to end by themselves when one has failed


class RankFailed(RuntimeError):
    """A rank failed or died, and so the run ended; the message names the rank."""


@contextmanager
def process_group(device: str = "cpu", timeout_s: float = 600.0) -> Iterator[int]:
    """Join the processes that torchrun or :func:`launch` started, for as long as the ``with`` lasts.

    Parameters
    ----------
    device : str
        ``"cpu"`` (gloo) or ``"cuda"`` (NCCL for tensors on the GPU, gloo for the rest).
    timeout_s : float
        For any one message between ranks, in s.

    Yields
    ------
    int
        This process's rank.

    Raises
    ------
    ValueError
        If ``device`` is unknown or ``timeout_s`` is not above 0.
    RankFailed
        If another rank failed or died. A process that hangs in a call then is ended with exit code 1.
    """
    _check(1, device, timeout_s)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    store = run_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    rank = dist.get_rank()
    watch = Watch(store, rank, dist.get_world_size())
    try:
        yield rank
    except BaseException as error:
        if isinstance(error, Exception):
            atexit.register(_leave)
        cause = watch.cause_of(error)
        if cause is not None:
            raise RankFailed(f"rank {rank} ended: {cause}") from None  # what torch says of it adds nothing
        raise
    finally:
        watch.stop()
        dist.destroy_process_group()


def launch(
    world_size: int, fn: Callable, *args: object, device: str = "cpu", timeout_s: float = 600.0
) -> list:
    """Run ``fn(*args)`` in ``world_size`` new processes on this machine, joined into a process group.

    Parameters
    ----------
    world_size : int
        Number of processes.
    fn : callable
        Any function: of a module, of a notebook's cell or a script, a lambda, a closure.
    *args
        What ``fn`` is called with. Each process has its own copy of ``fn``, of what it refers to and of
        ``args``, and what it changes there stays there.
    device : str
        ``"cpu"`` or ``"cuda"``, as in :func:`process_group`.
    timeout_s : float
        For the whole run, in s.

    Returns
    -------
    list
        What ``fn`` returned on each rank.

    Raises
    ------
    TypeError
        If ``world_size`` is no int, or ``fn`` or ``args`` hold what cannot be copied to another process,
        such as an open file.
    ValueError
        If ``world_size`` is below 1, ``timeout_s`` is not above 0 or ``device`` is unknown.
    RankFailed
        With the traceback of the rank that failed first; the others are ended.
    TimeoutError
        If not all are done after ``timeout_s``; all are ended.

    Notes
    -----
    Each process computes with one thread. A script that calls this is not run again by the new processes,
    so it needs no ``if __name__ == "__main__":``.

    Examples
    --------
    >>> launch(2, lambda base: base + dist.get_rank(), 40)
    [40, 41]
    """
    _check(world_size, device, timeout_s)
    job = _pickled(fn, args)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = run_store("127.0.0.1", server.port)
    with _nameless_main():
        context = mp.start_processes(
            _one_rank,
            args=(dict(os.environ), world_size, server.port, job, device, timeout_s),
            nprocs=world_size,
            join=False,
            daemon=True,
            start_method=_start_method(),
        )
    deadline = time.monotonic() + timeout_s
    try:
        while not context.join(max(0.0, deadline - time.monotonic()), GRACE_S):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{world_size} processes were not done after timeout_s={timeout_s}")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise RankFailed(_first_failure(store, error)) from None
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return [pickle.loads(store.get(f"result/{rank}")) for rank in range(world_size)]


def _leave() -> None:
    """End the process as failed, at once: threads that wait for a lost rank could only be torn down."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def _check(world_size: int, device: str, timeout_s: float) -> None:
    """Raise unless the arguments are allowed."""
    if type(world_size) is not int:
        raise TypeError(f"world_size={world_size!r}: must be an int")
    if world_size < 1:
        raise ValueError(f"world_size={world_size}: must be at least 1")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: must be 'cpu' or 'cuda'")
    if not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s={timeout_s}: must be above 0 s and finite")


def _pickled(fn: Callable, args: tuple) -> bytes:
    """``fn`` and ``args``, with the code of what new processes could not import."""
    if not callable(fn):
        raise TypeError(f"fn={fn!r}: must be a function")
    try:
        return cloudpickle.dumps((fn, args))
    except (TypeError, pickle.PicklingError) as error:
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(f"fn={name} or its arguments cannot be copied to a process: {error}") from error


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide where ``__main__`` comes from: multiprocessing would run it once more in each new process."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_method() -> str:
    """How processes start: where it is safe, from a server that has imported torch once for all."""
    if sys.platform != "linux":
        return "spawn"
    # The first backward pass imports sympy
    multiprocessing.set_forkserver_preload(["torch", "sympy", __package__])
    return "forkserver"


def _one_rank(rank, environment, world_size, port, job, device, timeout_s) -> None:
    """What a process that :func:`launch` started runs: torchrun's environment, then the job."""
    torch.set_num_threads(1)
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher hosts the store, not rank 0
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    with process_group(device, timeout_s):
        fn, args = pickle.loads(job)
        result = fn(*args)
        run_store("127.0.0.1", port).set(f"result/{rank}", cloudpickle.dumps(result))


def _first_failure(store: dist.Store, seen: mp.ProcessRaisedException | mp.ProcessExitedException) -> str:
    """How the first process ended that was seen to, if by a signal; else what the first to fail reported."""
    if isinstance(seen, mp.ProcessExitedException) and seen.signal_name:
        return f"rank {seen.error_index} was killed by {seen.signal_name}"
    if store.check([FAILURE]):
        return store.get(FAILURE).decode()
    return f"rank {seen.error_index} failed: {seen}"
