"""Published measurements of all-reduce, as data: to lay over the model's curves. And a line through some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuedu.checks import check_amount
from gpuedu.hardware import GPUS, LINKS, Cluster

from ..plan import Collective
from .bandwidth import bus_factor

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
    cluster : Cluster, optional
        The machine as its datasheets describe it; None where the source does not name GPU and network.
    """

    name: str
    world_size: int
    gpus_per_node: int
    points: tuple[tuple[int, float], ...]
    source: str
    cluster: Cluster | None = None

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


_BEKMAN = "Bekman, Machine Learning Engineering, network/benchmarks (github.com/stas00/ml-engineering)"


def _by_torch(name: str, nodes: int, cluster: Cluster | None, gigabytes: tuple, source: str) -> Sweep:
    """Bekman's: bus bandwidths in GB/s from 32 KiB on, sizes doubling, the call from PyTorch timed."""
    points = tuple((32 * KIB << i, busbw * 1e9) for i, busbw in enumerate(gigabytes))
    return Sweep(name, 8 * nodes, 8, points, f"{_BEKMAN}: {source}", cluster)


def _by_nccl_tests(name: str, gpu: str, link: str, version: str, microseconds: tuple) -> Sweep:
    """NVIDIA's: times of nccl-tests in microseconds from 512 B on, sizes doubling, 16-bit numbers."""
    cluster = Cluster(GPUS[gpu], 8, 1, LINKS[link], LINKS["InfiniBand-NDR"])
    factor = bus_factor(Collective.ALL_REDUCE, 8)
    points = tuple((512 << i, factor * (512 << i) / (t * 1e-6)) for i, t in enumerate(microseconds))
    source = f"aiconfigurator-core 0.12 (NVIDIA, Apache-2.0), nccl_perf: all_reduce of half, NCCL {version}"
    return Sweep(name, 8, 8, points, source, cluster)


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        _by_nccl_tests(
            "8 x A100", "A100-80GB", "NVLink3", "2.27.3",
            (22.57, 21.77, 21.53, 21.43, 21.27, 22.55, 25.96, 28.06, 27.41, 27.5, 30.08, 38.85, 53.7, 77.31,
             128, 216.5, 367, 595.3, 1169.1, 2182.5, 4225.9),
        ),
        _by_nccl_tests(
            "8 x H100", "H100-SXM", "NVLink4", "2.29.2",
            (15.59, 15.6, 15.68, 16.02, 15.96, 18.98, 18.44, 18.68, 19, 19.15, 20.13, 25.4, 38.18, 50.49,
             78.91, 121.91, 199.8, 324.53, 578.74, 1092.1, 2111.06),
        ),
        _by_nccl_tests(
            "8 x H200", "H200", "NVLink4", "2.29.2",
            (16.01, 16.76, 15.98, 16.04, 16.67, 18.3, 18.38, 19.89, 21.45, 20.8, 20.46, 26.14, 37.46, 51.37,
             78.3, 121.74, 197.34, 319.63, 564.52, 1052.63, 2040.31),
        ),
        _by_torch(
            "8 x H200, by PyTorch", 1, Cluster(GPUS["H200"], 8, 1, LINKS["NVLink4"], LINKS["InfiniBand-NDR"]),
            (1.44, 2.93, 5.73, 11.74, 23.94, 39.93, 64.53, 107.16, 155.53, 219.89,
             275.84, 346.51, 401.93, 436.15, 450.29, 463.58, 469.17, 473.10, 477.45, 482.26),
            "results/all-reduce-8xH200.md, torch 2.9.1, NCCL 2.27.7. NCCL took Ring up to 1 MiB and NVLS, "
            "which adds in the switch, from 2 MiB on; without NVLS 367.61 GB/s",
        ),
        _by_nccl_tests(
            "8 x B200", "B200", "NVLink5", "2.29.2",
            (25.09, 25.19, 25.65, 25.98, 26.02, 26.55, 27.33, 29.02, 28.08, 28.32, 28.45, 30.14, 32.08, 53.37,
             71.58, 99.07, 167.82, 278.33, 398.37, 715.41, 1334.56),
        ),
        _by_torch(
            "4 x 8 B200", 4, Cluster(GPUS["B200"], 8, 4, LINKS["NVLink5"], LINKS["InfiniBand-NDR"]),
            (0.65, 1.27, 2.35, 4.06, 6.99, 12.47, 20.79, 31.63, 50.61, 71.80,
             142.90, 197.77, 260.50, 283.23, 309.91, 365.99, 371.26, 374.66, 376.14, 376.71),
            "README.md of 2026, all_reduce_bench.py; 400 Gbit/s of network for each GPU",
        ),
        _by_torch(
            "4 x 8, unnamed", 4, None,
            (0.92, 1.61, 3.05, 5.18, 9.17, 17.13, 23.79, 40.30, 68.62, 93.93,
             98.34, 84.90, 88.23, 91.01, 92.95, 94.15, 92.66, 92.09, 91.80, 91.69),
            "README.md until 2025, all_reduce_bench.py on 4 nodes; GPU and network not stated",
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
"""Alpha-beta fits to other measurements, by machine."""
