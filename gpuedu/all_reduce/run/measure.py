"""Plans timed on real processes, beside the backend's own collective, and their results checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from gpuedu.checks import check_count
from gpuedu.distributed import talking_to

from ..cost import algorithm_bandwidth, bus_bandwidth
from ..plan import Collective, Plan
from .distributed import agree, carry_out, result_shape
from .faults import Fault
from .layout import chunks_in, chunks_out


@dataclass(frozen=True)
class Measurement:
    """How long a plan took, and the backend's own collective in the same minutes.

    Parameters
    ----------
    plan : Plan
        What was run.
    pieces : int
        Pieces of each chunk.
    nbytes : int
        Bytes of the whole array.
    dtype, backend : str
        Of the elements; ``"gloo"`` or ``"nccl"``.
    seconds, backend_seconds : tuple of float
        Of each repeat, by the clock of the rank that took longest.
    correct : bool
        Whether every rank ended with exactly what it should.
    """

    plan: Plan
    pieces: int
    nbytes: int
    dtype: str
    backend: str
    seconds: tuple[float, ...]
    backend_seconds: tuple[float, ...]
    correct: bool

    @property
    def time_s(self) -> float:
        """The median time of the plan, in s."""
        return statistics.median(self.seconds)

    @property
    def backend_time_s(self) -> float:
        """The median time of the backend's collective, in s."""
        return statistics.median(self.backend_seconds)

    @property
    def algorithm_bandwidth(self) -> float:
        """Bytes/s, by nccl-tests' definition."""
        return algorithm_bandwidth(self.nbytes, self.time_s)

    @property
    def bus_bandwidth(self) -> float:
        """Bytes/s, by nccl-tests' definition."""
        return bus_bandwidth(self.plan.collective, self.plan.world_size, self.nbytes, self.time_s)


def measure(
    plans: Sequence[Plan],
    sizes: Sequence[int],
    *,
    pieces: int = 1,
    repeats: int = 5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    faults: tuple[Fault, ...] = (),
) -> list[Measurement]:
    """Time each plan at each size. All ranks call it, as with ``launch(n, measure, plans, sizes)``.

    Parameters
    ----------
    plans : sequence of Plan
        Valid plans of as many ranks as there are processes.
    sizes : sequence of int
        Bytes of the whole array, each a multiple of the dtype's, above 0.
    pieces : int
        Pieces of each chunk.
    repeats : int
        Measured repeats, after one that is not; plan and backend take turns.
    dtype : torch.dtype
        Of the elements.
    device : str
        ``"cpu"`` or this rank's CUDA device.
    faults : tuple
        What is to go wrong with the plan, as for :func:`run_distributed`.

    Returns
    -------
    list of Measurement
        Plan by plan, size by size; the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        As from :func:`run_distributed`, or if a size is no multiple of the dtype's.
    PeerLost
        If another rank is gone.
    """
    check_count("repeats", repeats)
    return [
        _measured(plan, _elements(nbytes, dtype), pieces, repeats, dtype, torch.device(device), faults)
        for plan in plans
        for nbytes in sizes
    ]


def _elements(nbytes: int, dtype: torch.dtype) -> int:
    check_count("nbytes", nbytes)
    if nbytes % dtype.itemsize:
        raise ValueError(f"nbytes={nbytes}: must be a multiple of {dtype.itemsize}, the size of a {dtype}")
    return nbytes // dtype.itemsize


def _measured(plan, length, pieces, repeats, dtype, device, faults) -> Measurement:
    rank = dist.get_rank()
    given = handed_in(plan, rank, length, dtype, device)
    agree(plan, given, pieces, None, faults)
    out = given.new_empty(result_shape(plan, rank, given.shape, length))
    own = partial(carry_out, plan, given, length, pieces, out, faults)
    theirs = _backend(plan, given, length)
    times = torch.tensor([[_timed(own, device), _timed(theirs, device)] for _ in range(repeats + 1)][1:])
    own()
    correct = torch.tensor(torch.equal(out, expected(plan, rank, length, dtype, device)))
    with talking_to():
        dist.all_reduce(times, dist.ReduceOp.MAX)
        dist.all_reduce(correct, dist.ReduceOp.MIN)
    seconds, backend_seconds = map(tuple, times.T.tolist())
    nbytes, name = length * dtype.itemsize, str(dtype).removeprefix("torch.")
    backend = "gloo" if device.type == "cpu" else "nccl"
    return Measurement(plan, pieces, nbytes, name, backend, seconds, backend_seconds, bool(correct))


def _timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from when all ranks are ready until this one is done."""
    with talking_to():
        dist.barrier()
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - start


def handed_in(
    plan: Plan, rank: int, length: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """What ``rank`` hands in: small whole numbers, whose sums are exact in every dtype up to 128 ranks."""
    at, chunks = plan.bounds(length), chunks_in(plan, rank)
    index = torch.arange(at[chunks.start], at[chunks.stop], device=device)
    return ((index * (2 * rank + 1) + rank) % max(2, 128 // plan.world_size)).to(dtype)


def expected(
    plan: Plan, rank: int, length: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """What ``rank`` ends with, computed by itself; flat."""
    give = partial(handed_in, plan, length=length, dtype=dtype, device=device)
    match plan.collective:
        case Collective.BROADCAST:
            whole = give(plan.root)
        case Collective.ALL_GATHER | Collective.ALL_TO_ALL:
            whole = torch.cat([give(other) for other in range(plan.world_size)])
        case _:
            whole = give(0)
            for other in range(1, plan.world_size):
                whole += give(other)
    at = plan.bounds(length)
    parts = [whole[at[chunk] : at[chunk + 1]] for chunk in chunks_out(plan, rank)]
    return torch.cat([whole[:0], *parts])


def _backend(plan: Plan, given: torch.Tensor, length: int) -> Callable[[], object]:
    """The backend's own collective; of parts that are not all alike, all are as large as the largest."""
    n = plan.world_size
    part = given.new_zeros(-(-length // n))
    whole = given.new_zeros(n * len(part))
    match plan.collective:
        case Collective.ALL_REDUCE:
            return partial(dist.all_reduce, given.clone())
        case Collective.REDUCE:
            return partial(dist.reduce, given.clone(), plan.root)
        case Collective.BROADCAST:
            return partial(dist.broadcast, given.clone(), plan.root)
        case Collective.ALL_GATHER:
            return partial(dist.all_gather_into_tensor, whole, part)
        case Collective.REDUCE_SCATTER:
            return partial(dist.reduce_scatter_tensor, part, whole)
        case _:
            sent = given.new_zeros(n * -(-length // n**2))
            return partial(dist.all_to_all_single, torch.empty_like(sent), sent)


def table(measurements: Sequence[Measurement]) -> str:
    """Times and bandwidths as text, as nccl-tests prints them: GB/s of 10**9 bytes.

    Parameters
    ----------
    measurements : sequence of Measurement
        From :func:`measure`.

    Returns
    -------
    str
        One line each.
    """
    width = max(len(name) for name in ("plan", *(m.plan.name for m in measurements)))
    head = f"{'plan':<{width}}{'bytes':>12}{'pieces':>8}{'time (us)':>11}{'algbw':>9}{'busbw':>9}"
    lines = [f"{head}{'backend (us)':>14}{'check':>7}"]
    lines += [
        f"{m.plan.name:<{width}}{m.nbytes:>12}{m.pieces:>8}{1e6 * m.time_s:>11.1f}"
        f"{m.algorithm_bandwidth / 1e9:>9.3f}{m.bus_bandwidth / 1e9:>9.3f}"
        f"{1e6 * m.backend_time_s:>14.1f}{'ok' if m.correct else 'WRONG':>7}"
        for m in measurements
    ]
    return "\n".join(lines)
