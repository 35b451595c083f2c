"""What attention takes on this machine: seconds, and bytes beside its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors made while it is active, and the most of them at one moment.

    What an operation takes and gives back within itself is not seen, on a CPU nor on a GPU.

    Examples
    --------
    >>> with PeakMemory() as memory:
    ...     for _ in range(3):
    ...         _ = torch.zeros(1000).sum()
    >>> memory.peak_bytes  # 1,000 numbers and their sum, three times one after the other
    4004
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run ``func`` and look at what it has made."""
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(nbytes for _, nbytes in self._alive.values()))
        return result


def _tensors(tree) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def peak_extra_bytes(function: Callable[[], object]) -> int:
    """The most bytes of tensors that a call has alive at once, its result among them.

    Parameters
    ----------
    function : callable
        Without arguments; what it uses from outside does not count.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> x = torch.zeros(1000)
    >>> peak_extra_bytes(lambda: x + x)
    4000
    """
    with PeakMemory() as memory:
        function()
    return memory.peak_bytes


def median_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """The median wall-clock time of some calls, after one that is not counted.

    Parameters
    ----------
    function : callable
        Without arguments. On a GPU each call is waited for.
    repeats : int
        Calls counted.

    Returns
    -------
    float
        Seconds.

    Examples
    --------
    >>> 0.01 <= median_seconds(lambda: time.sleep(0.01), repeats=1) < 1
    True
    """
    function()
    _wait()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        _wait()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
