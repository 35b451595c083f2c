"""What crosses between HBM and chip: elements and bytes by tensor, enumerated and in closed form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gpuedu.checks import check_amount

from ..plan import AttentionShape, Op, TilePlan, Tiles
from .kernels import kernel_costs

FP32_TENSORS = frozenset({"m", "l", "LSE", "D", "O parts", "LSE parts"})
"""What 16-bit kernels keep in 32 bits in HBM. Scores, outputs and gradients take 16; a dQ that several tiles
add to counts with them, though kernels that add with atomic operations hold it in 32 until it is done."""


@dataclass(frozen=True)
class Elements:
    """Elements of one tensor: read from HBM, written to it, and filled with a constant there.

    Parameters
    ----------
    read, written, filled : int
        Elements. The paper's own counts leave out what is filled.
    """

    read: int = 0
    written: int = 0
    filled: int = 0

    @property
    def moved(self) -> int:
        """Read and written."""
        return self.read + self.written

    def __add__(self, other: Elements) -> Elements:
        return Elements(self.read + other.read, self.written + other.written, self.filled + other.filled)

    def __mul__(self, times: int) -> Elements:
        return Elements(self.read * times, self.written * times, self.filled * times)


@dataclass(frozen=True)
class Traffic:
    """Elements by tensor.

    Parameters
    ----------
    tensors : dict
        :class:`Elements` by a tensor's name; one that is never moved is absent.
    """

    tensors: Mapping[str, Elements]

    @property
    def total(self) -> Elements:
        """Of all tensors together."""
        return sum(self.tensors.values(), Elements())

    def nbytes(self, dtype_bytes: float, *, fp32: Collection[str] = frozenset(), fills: bool = True) -> float:
        """Bytes that cross between HBM and chip.

        Parameters
        ----------
        dtype_bytes : float
            Bytes of one element: elements are no bytes.
        fp32 : collection of str
            Tensors that take 4 bytes whatever the others take; for kernels of today ``FP32_TENSORS``.
        fills : bool
            Whether what is filled with a constant counts; the papers leave it out.

        Returns
        -------
        float
            Bytes.

        Raises
        ------
        TypeError, ValueError
            If ``dtype_bytes`` is no number above 0.
        """
        check_amount("dtype_bytes", dtype_bytes, positive=True)
        return sum(
            (e.moved + (e.filled if fills else 0)) * (4 if name in fp32 else dtype_bytes)
            for name, e in self.tensors.items()
        )


def plan_traffic(plan: TilePlan) -> Traffic:
    """Traffic of a plan, counted step by step.

    Parameters
    ----------
    plan : TilePlan
        Any plan.

    Returns
    -------
    Traffic
        Of all units: what one moves, times their number.

    Examples
    --------
    >>> from gpuedu.flash_attention.plan import standard
    >>> plan_traffic(standard(AttentionShape(128, 128, 64), Tiles(64, 64))).tensors["S"]
    Elements(read=16384, written=16384, filled=0)
    """
    counts: dict[str, Elements] = {}
    for step in plan.steps:
        if step.op in _FIELDS:
            moved = Elements(**{_FIELDS[step.op]: step.elements * plan.attention.units})
            counts[step.what] = counts.get(step.what, Elements()) + moved
    return Traffic(_present(counts))


_FIELDS = {Op.READ: "read", Op.WRITE: "written", Op.FILL: "filled"}


def traffic(plan: str, attention: AttentionShape, tiles: Tiles, splits: int = 1) -> Traffic:
    """Traffic of a plan in closed form, without making the plan.

    Parameters
    ----------
    plan : str
        ``standard``, ``version_1``, ``version_2``, ``split_kv``, ``standard_backward``,
        ``version_1_backward``, ``version_2_backward`` or ``two_pass_backward``.
    attention, tiles, splits
        As for the plan.

    Returns
    -------
    Traffic
        Of all heads and sequences; the same as :func:`plan_traffic` of the plan.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Notes
    -----
    For one head without a mask, with T_c = ceil(N_k / B_c) and T_r = ceil(N_q / B_r), in elements:

    ====================  ================================================================
    plan                  read and written
    ====================  ================================================================
    standard              2 N_q d + 2 N_k d + 4 N_q N_k
    version_1             2 N_k d + T_c N_q (3 d + 4); filled N_q (d + 2)
    version_2             2 N_q d + N_q + T_r 2 N_k d
    standard_backward     4 N_q d + 4 N_k d + 7 N_q N_k
    version_1_backward    4 N_k d + T_c N_q (5 d + 2); filled (N_q + 2 N_k) d
    version_2_backward    2 N_q d + N_q + 4 N_k d + T_c N_q (4 d + 2); filled N_q d
    two_pass_backward     5 N_q d + 3 N_q + 4 N_k d + T_c N_q (2 d + 2) + T_r 2 N_k d
    ====================  ================================================================

    Examples
    --------
    The paper's Figure 2 (GPT-2 medium, 64 sequences of 1,024), forward and backward in GB:

    >>> gpt2 = AttentionShape(1024, 1024, 64, heads=16, batch=64)
    >>> for names in (("standard", "standard_backward"), ("version_1", "version_1_backward")):
    ...     both = [traffic(name, gpt2, Tiles(64, 384)).nbytes(2, fills=False) for name in names]
    ...     print(round(sum(both) / 1e9, 2))
    25.23
    4.06
    """
    return total_traffic(kernel.tensors for kernel in kernel_costs(plan, attention, tiles, splits))


def total_traffic(parts: Iterable[Mapping[str, tuple[int, int, int]]]) -> Traffic:
    """The sum of kernels or sequences.

    Parameters
    ----------
    parts : iterable of dict
        ``(read, written, filled)`` by tensor, each.

    Returns
    -------
    Traffic
        Their sum.

    Examples
    --------
    >>> total_traffic([{"Q": (2, 0, 0)}, {"Q": (3, 1, 0), "S": (0, 0, 0)}]).tensors
    {'Q': Elements(read=5, written=1, filled=0)}
    """
    counts: dict[str, Elements] = {}
    for part in parts:
        for name, moved in part.items():
            counts[name] = counts.get(name, Elements()) + Elements(*moved)
    return Traffic(_present(counts))


def _present(counts: dict[str, Elements]) -> dict[str, Elements]:
    return {name: e for name, e in counts.items() if e != Elements()}
