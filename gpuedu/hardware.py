"""GPUs, links and clusters: datasheets as frozen dataclasses, each figure with its convention and source.

Conventions, the same for every entry of :data:`GPUS` and :data:`LINKS`:

- Peaks are **dense**. Datasheets since 2020 like to print the figure with 2:4 structured sparsity,
  which is twice as large. A peak is that of the fastest unit which takes the dtype's operands (tensor
  or matrix cores where they do), accumulating in FP32 for FP8 and FP16/BF16.
- ``memory_bytes`` is the total that the driver reports (``nvidia-smi``, ``rocm-smi``), which is neither
  the label times 10^9 nor the label times 2^30. A process can allocate one or two percent less.
- A link's bandwidth is that of **one direction**, per GPU, at the line rate. NVLink is sold by the sum
  of both directions. GB is 10^9 bytes.
- A link's latency is what one hop of a ring costs in NCCL's own tuning model with the LL128 protocol
  (``hwLat`` in ``src/graph/tuning.cc``; one value each for NVLink, PCIe and network): the time until the
  next GPU's kernel sees the data, not the time of flight on the wire, which is far below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DTYPE_BYTES = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,  # a way to multiply: the operands stay in FP32 in memory
    "fp16": 2,
    "bf16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
}
"""Bytes of one number in memory, by dtype."""

MIB = 2**20
KIB = 2**10


def _require_positive(owner: object, *names: str, integer: bool = False) -> None:
    """Raise unless each named attribute is a finite number > 0 (a whole one if ``integer``)."""
    kind = int if integer else int | float
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name}={value!r}: must be {'an int' if integer else 'a number'}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r}: must be > 0 and finite")


def _require_text(owner: object, *names: str) -> None:
    """Raise unless each named attribute is a string with something in it."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, str):
            raise TypeError(f"{name}={value!r}: must be a string")
        if not value.strip():
            raise ValueError(f"{name}={value!r}: must not be empty")


@dataclass(frozen=True)
class GPU:
    """One GPU's datasheet.

    Parameters
    ----------
    name : str
        What people call it; its key in :data:`GPUS`.
    memory_bytes : int
        Device memory in bytes, as the driver reports it.
    memory_bandwidth : float
        Peak bandwidth of the device memory in bytes/s.
    peak_flops : dict
        Dense peak by dtype, a key of :data:`DTYPE_BYTES`, in FLOP/s (for integers, operations/s). A
        dtype that the chip has no fast path for is absent.
    sms : int
        Streaming multiprocessors (AMD: compute units) that are switched on.
    sram_bytes_per_sm : int
        On-chip memory of one multiprocessor in bytes: L1 cache and shared memory, which NVIDIA
        carves from one array (a kernel may use somewhat less of it as shared memory); on AMD the
        local data share alone.
    tdp_watts : float
        Thermal design power in watts.
    source : str
        Where the figures come from.

    Raises
    ------
    TypeError, ValueError
        For a figure that is not a positive finite number, an unknown dtype or an empty name or source.

    Examples
    --------
    >>> a100 = GPUS["A100-80GB"]
    >>> a100.peak("bf16"), a100.memory_bandwidth
    (312000000000000.0, 2039000000000.0)
    >>> round(a100.ridge_point("bf16"), 1)
    153.0
    """

    name: str
    memory_bytes: int
    memory_bandwidth: float
    peak_flops: dict[str, float] = field(hash=False)
    sms: int
    sram_bytes_per_sm: int
    tdp_watts: float
    source: str

    def __post_init__(self) -> None:
        _require_text(self, "name", "source")
        _require_positive(self, "memory_bytes", "sms", "sram_bytes_per_sm", integer=True)
        _require_positive(self, "memory_bandwidth", "tdp_watts")
        if not self.peak_flops:
            raise ValueError(f"peak_flops={self.peak_flops!r}: must name at least one dtype")
        for dtype, peak in self.peak_flops.items():
            if dtype not in DTYPE_BYTES:
                raise ValueError(f"peak_flops: dtype {dtype!r} must be one of {', '.join(DTYPE_BYTES)}")
            if isinstance(peak, bool) or not isinstance(peak, int | float):
                raise TypeError(f"peak_flops[{dtype!r}]={peak!r}: must be a number")
            if not (peak > 0 and math.isfinite(peak)):
                raise ValueError(f"peak_flops[{dtype!r}]={peak!r}: must be > 0 and finite")

    def peak(self, dtype: str) -> float:
        """Dense peak in FLOP/s.

        Parameters
        ----------
        dtype : str
            A key of ``peak_flops``.

        Returns
        -------
        float
            FLOP/s; for integer dtypes operations/s.

        Raises
        ------
        ValueError
            If this GPU has no such path.

        Examples
        --------
        >>> GPUS["H100-SXM"].peak("bf16")  # not the 1979e12 with sparsity
        989400000000000.0
        """
        if dtype not in self.peak_flops:
            raise ValueError(f"dtype={dtype!r}: {self.name} has {', '.join(self.peak_flops)}")
        return self.peak_flops[dtype]

    def ridge_point(self, dtype: str) -> float:
        """Arithmetic intensity at which compute takes as long as memory.

        Work with fewer FLOP per byte of device memory than this is bound by bandwidth, work with more
        by the peak: the bend of the roofline.

        Parameters
        ----------
        dtype : str
            A key of ``peak_flops``.

        Returns
        -------
        float
            FLOP/byte: peak divided by memory bandwidth.

        Raises
        ------
        ValueError
            If this GPU has no such path.

        References
        ----------
        Williams, Waterman, Patterson. Roofline: an insightful visual performance
        model for multicore architectures. Communications of the ACM 52(4), 2009.

        Examples
        --------
        >>> round(GPUS["H100-SXM"].ridge_point("bf16"))
        295
        """
        return self.peak(dtype) / self.memory_bandwidth


@dataclass(frozen=True)
class Link:
    """What connects two GPUs, as the alpha-beta model sees it.

    Parameters
    ----------
    name : str
        What people call it; its key in :data:`LINKS`.
    latency_s : float
        Time for the first byte in seconds (alpha).
    bandwidth : float
        Bytes/s in **one direction**, per GPU (1 / beta).
    source : str
        Where the figures come from.

    Raises
    ------
    TypeError, ValueError
        For a bandwidth that is not a positive finite number, a latency that is negative or not finite,
        or an empty name or source.

    Examples
    --------
    >>> LINKS["NVLink4"].bandwidth  # sold as 900 GB/s, both directions together
    450000000000.0
    """

    name: str
    latency_s: float
    bandwidth: float
    source: str

    def __post_init__(self) -> None:
        _require_text(self, "name", "source")
        _require_positive(self, "bandwidth")
        if self.latency_s != 0:
            _require_positive(self, "latency_s")

    def transfer_time(self, nbytes: float) -> float:
        """Time to move one message over this link.

        Parameters
        ----------
        nbytes : float
            Size of the message in bytes, 0 or more.

        Returns
        -------
        float
            Seconds: ``latency_s + nbytes / bandwidth``. An empty message still costs the latency.

        Raises
        ------
        TypeError, ValueError
            If ``nbytes`` is not a number, negative or not finite.

        Notes
        -----
        Included are one latency and the line rate. Left out: protocol overhead (NCCL's LL128 spends 8
        of every 128 bytes on flags), traffic of others on the same link, and the other direction,
        which is free at the same time.

        References
        ----------
        Hockney. The communication challenge for MPP: Intel Paragon and Meiko CS-2.
        Parallel Computing 20(3), 1994.

        Examples
        --------
        >>> round(LINKS["InfiniBand-NDR"].transfer_time(50e6) * 1e6)  # microseconds, 4 of them latency
        1004
        """
        if isinstance(nbytes, bool) or not isinstance(nbytes, int | float):
            raise TypeError(f"nbytes={nbytes!r}: must be a number")
        if not (nbytes >= 0 and math.isfinite(nbytes)):
            raise ValueError(f"nbytes={nbytes!r}: must be >= 0 and finite")
        return self.latency_s + nbytes / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs; ranks are counted node by node.

    Parameters
    ----------
    gpu : GPU
        The GPU in every place.
    gpus_per_node : int
        GPUs in a node.
    nodes : int
        Nodes.
    intra_node : Link
        What connects two GPUs of one node.
    inter_node : Link
        What connects two GPUs of different nodes.

    Raises
    ------
    TypeError, ValueError
        For a field that is not of its type or a count below 1.

    Examples
    --------
    >>> cluster = Cluster(GPUS["H100-SXM"], 8, 4, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    >>> cluster.world_size
    32
    >>> cluster.link(0, 7).name, cluster.link(7, 8).name
    ('NVLink4', 'InfiniBand-NDR')
    """

    gpu: GPU
    gpus_per_node: int
    nodes: int
    intra_node: Link
    inter_node: Link

    def __post_init__(self) -> None:
        for name, kind in {"gpu": GPU, "intra_node": Link, "inter_node": Link}.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}={getattr(self, name)!r}: must be a {kind.__name__}")
        _require_positive(self, "gpus_per_node", "nodes", integer=True)

    @property
    def world_size(self) -> int:
        """Number of GPUs."""
        return self.gpus_per_node * self.nodes

    def link(self, a: int, b: int) -> Link:
        """The link between the GPUs of two ranks.

        Parameters
        ----------
        a, b : int
            Two different ranks, 0 to ``world_size - 1``.

        Returns
        -------
        Link
            ``intra_node`` if both are in one node, else ``inter_node``.

        Raises
        ------
        TypeError, ValueError
            For a rank that is no int or outside the cluster, or if both are the same.
        """
        for name, rank in {"a": a, "b": b}.items():
            if isinstance(rank, bool) or not isinstance(rank, int):
                raise TypeError(f"{name}={rank!r}: must be an int")
            if not 0 <= rank < self.world_size:
                raise ValueError(f"{name}={rank}: must be from 0 to {self.world_size - 1}")
        if a == b:
            raise ValueError(f"a={a}, b={b}: must be two different ranks")
        same_node = a // self.gpus_per_node == b // self.gpus_per_node
        return self.intra_node if same_node else self.inter_node


def _by_name(*entries: GPU | Link) -> dict:
    return {entry.name: entry for entry in entries}


_HOPPER = {
    "fp64": 66.9e12,
    "fp32": 66.9e12,
    "tf32": 494.7e12,
    "fp16": 989.4e12,
    "bf16": 989.4e12,
    "fp8": 1978.9e12,
    "int8": 1978.9e12,
}
_AMPERE = {
    "fp64": 19.5e12,
    "fp32": 19.5e12,
    "tf32": 156e12,
    "fp16": 312e12,
    "bf16": 312e12,
    "int8": 624e12,
}

GPUS = _by_name(
    GPU(
        "V100",
        memory_bytes=32768 * MIB,
        memory_bandwidth=900e9,
        peak_flops={"fp64": 7.8e12, "fp32": 15.7e12, "fp16": 125e12},
        sms=80,
        sram_bytes_per_sm=128 * KIB,
        tdp_watts=300,
        source="V100 SXM2, the 32 GB version: NVIDIA V100 datasheet (2020), NVIDIA Tesla V100 GPU "
        "Architecture whitepaper (2017). Memory: nvidia-smi, drivers from 510 on.",
    ),
    GPU(
        "A100-40GB",
        memory_bytes=40960 * MIB,
        memory_bandwidth=1555e9,
        peak_flops=_AMPERE,
        sms=108,
        sram_bytes_per_sm=192 * KIB,
        tdp_watts=400,
        source="A100 SXM4 40 GB: NVIDIA A100 Tensor Core GPU Architecture whitepaper (2020); FP64 on "
        "tensor cores, 9.7 TFLOP/s without. Memory: nvidia-smi, drivers from 510 on.",
    ),
    GPU(
        "A100-80GB",
        memory_bytes=81920 * MIB,
        memory_bandwidth=2039e9,
        peak_flops=_AMPERE,
        sms=108,
        sram_bytes_per_sm=192 * KIB,
        tdp_watts=400,
        source="A100 SXM4 80 GB: NVIDIA A100 datasheet (2021), whitepaper (2020); FP64 on tensor cores, "
        "9.7 TFLOP/s without. Memory: nvidia-smi, drivers from 510 on.",
    ),
    GPU(
        "H100-SXM",
        memory_bytes=81559 * MIB,
        memory_bandwidth=3350e9,
        peak_flops=_HOPPER,
        sms=132,
        sram_bytes_per_sm=256 * KIB,
        tdp_watts=700,
        source="H100 SXM5 80 GB: NVIDIA H100 Tensor Core GPU Architecture whitepaper (2022); FP64 on "
        "tensor cores, half of it without; bandwidth: NVIDIA H100 datasheet (2023). Memory: nvidia-smi.",
    ),
    GPU(
        "H200",
        memory_bytes=143771 * MIB,
        memory_bandwidth=4800e9,
        peak_flops=_HOPPER,
        sms=132,
        sram_bytes_per_sm=256 * KIB,
        tdp_watts=700,
        source="H200 SXM 141 GB: NVIDIA H200 datasheet (2024), whose peaks are the H100 SXM's: digits "
        "from the H100 whitepaper (2022). Memory: nvidia-smi.",
    ),
    GPU(
        "B200",
        memory_bytes=183359 * MIB,
        memory_bandwidth=7700e9,
        peak_flops={
            "fp64": 37e12,
            "fp32": 75e12,
            "tf32": 1.1e15,
            "fp16": 2.25e15,
            "bf16": 2.25e15,
            "fp8": 4.5e15,
            "int8": 4.5e15,
            "fp4": 9e15,
        },
        sms=148,
        sram_bytes_per_sm=256 * KIB,
        tdp_watts=1000,
        source="B200 SXM 180 GB as in HGX B200 (a package of two dies): NVIDIA Blackwell datasheet "
        "(2025), its sparse tensor figures halved; 8 TB/s in earlier documents. SMs and memory: "
        "CUDA device properties, nvidia-smi.",
    ),
    GPU(
        "MI300X",
        memory_bytes=196592 * MIB,
        memory_bandwidth=5300e9,
        peak_flops={
            "fp64": 163.4e12,
            "fp32": 163.4e12,
            "tf32": 653.7e12,
            "fp16": 1307.4e12,
            "bf16": 1307.4e12,
            "fp8": 2614.9e12,
            "int8": 2614.9e12,
        },
        sms=304,
        sram_bytes_per_sm=64 * KIB,
        tdp_watts=750,
        source="MI300X 192 GB (a package of eight compute dies): AMD Instinct MI300X datasheet (2023); "
        "FP64 on matrix cores, half of it without. Memory: rocminfo, rocm-smi.",
    ),
    GPU(
        "L4",
        memory_bytes=23034 * MIB,
        memory_bandwidth=300e9,
        peak_flops={
            "fp32": 30.3e12,
            "tf32": 60e12,
            "fp16": 121e12,
            "bf16": 121e12,
            "fp8": 242.5e12,
            "int8": 242.5e12,
        },
        sms=58,
        sram_bytes_per_sm=128 * KIB,
        tdp_watts=72,
        source="L4 24 GB: NVIDIA L4 datasheet (2023), its sparse tensor figures halved; SMs: its 7,424 "
        "CUDA cores by 128; SRAM: NVIDIA Ada GPU Architecture whitepaper (2023). Memory: nvidia-smi, "
        "with ECC.",
    ),
    GPU(
        "L40S",
        memory_bytes=46068 * MIB,
        memory_bandwidth=864e9,
        peak_flops={
            "fp32": 91.6e12,
            "tf32": 183e12,
            "fp16": 362.05e12,
            "bf16": 362.05e12,
            "fp8": 733e12,
            "int8": 733e12,
        },
        sms=142,
        sram_bytes_per_sm=128 * KIB,
        tdp_watts=350,
        source="L40S 48 GB: NVIDIA L40S datasheet (2023), the dense figures of its pairs; SRAM: NVIDIA "
        "Ada GPU Architecture whitepaper (2023). Memory: nvidia-smi, with ECC.",
    ),
    GPU(
        "RTX-4090",
        memory_bytes=24564 * MIB,
        memory_bandwidth=1008e9,
        peak_flops={
            "fp32": 82.6e12,
            "tf32": 82.6e12,
            "fp16": 165.2e12,
            "bf16": 165.2e12,
            "fp8": 330.3e12,
            "int8": 660.6e12,
        },
        sms=128,
        sram_bytes_per_sm=128 * KIB,
        tdp_watts=450,
        source="GeForce RTX 4090 24 GB: NVIDIA Ada GPU Architecture whitepaper (2023), with FP32 "
        "accumulation; with FP16 accumulation FP16 and FP8 are twice as fast. Memory: nvidia-smi.",
    ),
)
"""The GPUs of this book by name."""

_NVLINK_HOP = "latency: NCCL src/graph/tuning.cc, one NVLink hop of a ring, LL128"
_PCIE_HOP = "latency: NCCL src/graph/tuning.cc, one PCIe hop of a ring, LL128"
_NET_HOP = "latency: NCCL src/graph/tuning.cc, one network hop of a ring, LL128"

LINKS = _by_name(
    Link(
        "PCIe4",
        latency_s=2.5e-6,
        bandwidth=31.5e9,
        source="PCI Express Base Specification 4.0 (2017): 16 lanes of 16 GT/s, 128b/130b; " + _PCIE_HOP,
    ),
    Link(
        "PCIe5",
        latency_s=2.5e-6,
        bandwidth=63e9,
        source="PCI Express Base Specification 5.0 (2019): 16 lanes of 32 GT/s, 128b/130b; " + _PCIE_HOP,
    ),
    Link(
        "NVLink2",
        latency_s=1.9e-6,
        bandwidth=150e9,
        source="NVIDIA Tesla V100 whitepaper (2017): 6 links of 25 GB/s, sold as 300 GB/s; " + _NVLINK_HOP,
    ),
    Link(
        "NVLink3",
        latency_s=1.9e-6,
        bandwidth=300e9,
        source="NVIDIA A100 whitepaper (2020): 12 links of 25 GB/s, sold as 600 GB/s; " + _NVLINK_HOP,
    ),
    Link(
        "NVLink4",
        latency_s=1.9e-6,
        bandwidth=450e9,
        source="NVIDIA H100 whitepaper (2022): 18 links of 25 GB/s, sold as 900 GB/s; " + _NVLINK_HOP,
    ),
    Link(
        "NVLink5",
        latency_s=1.9e-6,
        bandwidth=900e9,
        source="NVIDIA Blackwell datasheet (2025): 18 links of 50 GB/s, sold as 1.8 TB/s; " + _NVLINK_HOP,
    ),
    Link(
        "InfiniBand-HDR",
        latency_s=4e-6,
        bandwidth=25e9,
        source="InfiniBand HDR, one 4x port of 200 Gbit/s for each GPU; " + _NET_HOP,
    ),
    Link(
        "InfiniBand-NDR",
        latency_s=4e-6,
        bandwidth=50e9,
        source="InfiniBand NDR, one 4x port of 400 Gbit/s for each GPU; " + _NET_HOP,
    ),
    Link(
        "RoCE-100",
        latency_s=4e-6,
        bandwidth=12.5e9,
        source="RoCE v2 on one port of 100 Gbit/s Ethernet for each GPU; " + _NET_HOP,
    ),
    Link(
        "RoCE-200",
        latency_s=4e-6,
        bandwidth=25e9,
        source="RoCE v2 on one port of 200 Gbit/s Ethernet for each GPU; " + _NET_HOP,
    ),
    Link(
        "RoCE-400",
        latency_s=4e-6,
        bandwidth=50e9,
        source="RoCE v2 on one port of 400 Gbit/s Ethernet for each GPU; " + _NET_HOP,
    ),
)
"""The links of this book by name."""
