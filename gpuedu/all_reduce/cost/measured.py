"""Published measurements of all-reduce, as data: to lay over the model's curves. And a line through some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan import Collective
from .bandwidth import bus_factor
from .checks import check_amount

KIB = 2**10


@dataclass(frozen=True)
class Sweep:
    """Measured all-reduces of growing size.

    Parameters
    ----------
    name : str
        The machine.
    world_size : int
        GPUs.
    gpus_per_node : int
        GPUs of a node.
    points : tuple
        ``(bytes, bus bandwidth in bytes/s)``.
    source : str
        Who measured it, where it stands.
    """

    name: str
    world_size: int
    gpus_per_node: int
    points: tuple[tuple[int, float], ...]
    source: str

    @property
    def times(self) -> tuple[tuple[int, float], ...]:
        """``(bytes, seconds)``, from the bus bandwidths."""
        factor = bus_factor(Collective.ALL_REDUCE, self.world_size)
        return tuple((nbytes, factor * nbytes / busbw) for nbytes, busbw in self.points)


@dataclass(frozen=True)
class Fit:
    """A line through measured all-reduces: seconds = latency + factor * bytes / bus bandwidth.

    Parameters
    ----------
    name : str
        The machine.
    world_size : int
        GPUs, in one node.
    latency_s : float
        Of the whole collective, in seconds; not of one hop.
    bus_bandwidth : float
        Bytes/s that large arrays approach.
    source : str
        Who measured it, where it stands.

    Examples
    --------
    >>> fit = FITS["8 x H100"]
    >>> round(1e3 * fit.seconds(1e9), 2)  # milliseconds
    4.82
    """

    name: str
    world_size: int
    latency_s: float
    bus_bandwidth: float
    source: str

    def seconds(self, nbytes: float) -> float:
        """What an all-reduce of ``nbytes`` takes by the fit."""
        check_amount("nbytes", nbytes)
        factor = bus_factor(Collective.ALL_REDUCE, self.world_size)
        return self.latency_s + factor * nbytes / self.bus_bandwidth


def fit_latency_and_bandwidth(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line seconds = latency + bytes / bandwidth that is nearest to measured points.

    Parameters
    ----------
    points : sequence
        ``(bytes, seconds)``, at two sizes or more.

    Returns
    -------
    tuple of float
        Latency in seconds, bandwidth in bytes/s, such that the squares of the *relative* errors are
        least: small arrays count as much as large ones. A latency that would be negative is 0.

    Raises
    ------
    TypeError, ValueError
        For points that are not positive, are all of one size, or get no slower with size.

    Examples
    --------
    >>> latency_s, bandwidth = fit_latency_and_bandwidth([(1e3, 21e-6), (1e6, 1020e-6), (1e7, 10020e-6)])
    >>> round(latency_s * 1e6, 3), round(bandwidth / 1e9, 6)
    (20.0, 1.0)
    """
    for nbytes, seconds in points:
        check_amount("bytes", nbytes, positive=True)
        check_amount("seconds", seconds, positive=True)
    if len({nbytes for nbytes, _ in points}) < 2:
        raise ValueError(f"points={points!r}: must be at two sizes or more")
    # Least squares of latency / t + slope * s / t = 1
    rows = [(1 / t, s / t) for s, t in points]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(row[0] for row in rows), sum(row[1] for row in rows)
    determinant = aa * bb - ab * ab
    latency, slope = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if latency < 0:
        latency, slope = 0.0, b / bb
    if slope <= 0:
        raise ValueError(f"points={points!r}: must get slower with size")
    return latency, 1 / slope


def _sweep(name: str, world_size: int, gpus_per_node: int, gigabytes: tuple, source: str) -> Sweep:
    """Bus bandwidths in GB/s from 32 KiB on, sizes doubling."""
    points = tuple((32 * KIB << i, busbw * 1e9) for i, busbw in enumerate(gigabytes))
    return Sweep(name, world_size, gpus_per_node, points, source)


_BEKMAN = "Bekman, Machine Learning Engineering, network/benchmarks (github.com/stas00/ml-engineering)"

SWEEPS = {
    sweep.name: sweep
    for sweep in (
        _sweep(
            "8 x H200", 8, 8,
            (1.44, 2.93, 5.73, 11.74, 23.94, 39.93, 64.53, 107.16, 155.53, 219.89,
             275.84, 346.51, 401.93, 436.15, 450.29, 463.58, 469.17, 473.10, 477.45, 482.26),
            _BEKMAN + ": results/all-reduce-8xH200.md, torch 2.9.1, NCCL 2.27.7, NVLink 4. NCCL took Ring "
            "up to 1 MiB and NVLS, which adds in the switch, from 2 MiB on; without NVLS 367.61 GB/s",
        ),
        _sweep(
            "4 x 8 B200", 32, 8,
            (0.65, 1.27, 2.35, 4.06, 6.99, 12.47, 20.79, 31.63, 50.61, 71.80,
             142.90, 197.77, 260.50, 283.23, 309.91, 365.99, 371.26, 374.66, 376.14, 376.71),
            _BEKMAN + ": README.md of 2026, all_reduce_bench.py; 400 Gbit/s of network for each GPU",
        ),
        _sweep(
            "32 GPUs", 32, 8,
            (0.92, 1.61, 3.05, 5.18, 9.17, 17.13, 23.79, 40.30, 68.62, 93.93,
             98.34, 84.90, 88.23, 91.01, 92.95, 94.15, 92.66, 92.09, 91.80, 91.69),
            _BEKMAN + ": README.md until 2025, all_reduce_bench.py on 4 nodes; GPU and network not stated",
        ),
    )
}  # fmt: skip
"""Whole sweeps by machine."""

_VIDUR = "fitted to the all-reduce profiles that Vidur publishes (github.com/microsoft/vidur, MIT), one node"

FITS = {
    fit.name: fit
    for fit in (
        Fit("8 x A100", 8, 70e-6, 181e9, _VIDUR),
        Fit("8 x H100", 8, 35e-6, 366e9, _VIDUR),
    )
}
"""Alpha-beta fits by machine."""

LARGE_BUS_BANDWIDTH = {"A100": 222e9, "H100": 445e9, "H200": 461e9, "B200": 704e9}
"""Bus bandwidth of an all-reduce of 512 MB over one node of 8 GPUs, bytes/s: aiconfigurator-core 0.12."""

SMALL_LATENCY_S = {"A100": 23e-6, "H100": 16e-6, "H200": 16e-6, "B200": 25e-6}
"""Time of an all-reduce of few bytes over one node of 8 GPUs, seconds: aiconfigurator-core 0.12."""
