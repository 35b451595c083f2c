"""What a plan is: steps that move tiles between HBM and chip, and steps that compute on what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .attention import AttentionShape, Span
from .tiles import Tiles


class Op(Enum):
    """What a step does.

    ===========  ====================================================  ===========
    op           meaning                                               HBM traffic
    ===========  ====================================================  ===========
    ``READ``     a tile comes from HBM; its tensor's last one leaves   read
    ``WRITE``    a tile goes to HBM                                    written
    ``FILL``     a constant goes to HBM (0; for m, minus infinity)     filled
    ``HOLD``     room on the chip, set to that constant                none
    ``COMPUTE``  work on the tiles on the chip                         none
    ===========  ====================================================  ===========
    """

    READ = "read"
    WRITE = "write"
    FILL = "fill"
    HOLD = "hold"
    COMPUTE = "compute"

    __hash__ = object.__hash__


class Step(NamedTuple):
    """One step of a program.

    ``what`` is a tensor's name, for ``COMPUTE`` a key of ``KERNELS``. ``heads`` are counted within the
    unit (the query heads of one key head); ``rows`` and ``columns`` are those of the tensor, for
    ``COMPUTE`` queries and keys.
    """

    op: Op
    what: str
    heads: Span
    rows: Span
    columns: Span

    @property
    def elements(self) -> int:
        """Elements of the tile."""
        return _length(self.heads) * _length(self.rows) * _length(self.columns)


class Kernel(NamedTuple):
    """What a ``COMPUTE`` step needs on the chip, what it changes there, and its matrix products.

    ``reads`` and ``changes`` name tensors; each of the ``matmuls`` takes 2 d FLOPs a pair of a query and
    a key.
    """

    reads: tuple[str, ...]
    changes: tuple[str, ...]
    matmuls: int


KERNELS = {
    # standard attention: one product or one pass over the scores at a time
    "scores": Kernel(("Q", "K"), ("S",), 1),
    "softmax": Kernel(("S",), ("P",), 0),
    "values": Kernel(("P", "V"), ("O",), 1),
    "dV": Kernel(("P", "dO"), ("dV",), 1),
    "dP": Kernel(("dO", "V"), ("dP",), 1),
    "dS": Kernel(("P", "dP"), ("dS",), 0),
    "dQ": Kernel(("dS", "K"), ("dQ",), 1),
    "dK": Kernel(("dS", "Q"), ("dK",), 1),
    # a tile with the scores on the chip
    "tile": Kernel(("Q", "K", "V"), ("O", "m", "l"), 2),
    "finish": Kernel((), ("O", "LSE", "m", "l"), 0),
    "combine": Kernel(("O parts", "LSE parts"), ("O", "LSE"), 0),
    "tile with division": Kernel(("Q", "K", "V"), ("O", "m", "l"), 2),
    "D": Kernel(("O", "dO"), ("D",), 0),
    "gradients by m, l": Kernel(("Q", "K", "V", "O", "dO", "m", "l"), ("dQ", "dK", "dV"), 5),
    "gradients": Kernel(("Q", "K", "V", "dO", "LSE", "D"), ("dQ", "dK", "dV"), 5),
    "gradients of K, V": Kernel(("Q", "K", "V", "dO", "LSE", "D"), ("dK", "dV"), 4),
    "gradient of Q": Kernel(("Q", "K", "V", "dO", "LSE", "D"), ("dQ",), 3),
}
"""The ``COMPUTE`` steps by name."""

Program = tuple[Step, ...]


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one unit (one key head of one sequence, and the query heads that use it), in order.

    Programs of one phase are independent: each can run on a multiprocessor of its own. A phase begins when
    the one before has ended.

    Parameters
    ----------
    name : str
        What the plan is called.
    attention : AttentionShape
        What is computed.
    tiles : Tiles
        How scores are cut.
    phases : tuple
        ``phases[i]`` is a tuple of programs, a program a tuple of :class:`Step`.
    splits : int
        Into how many parts the keys are split; more than 1 in split-KV plans alone.

    Examples
    --------
    >>> from gpuedu.flash_attention.plan import version_2
    >>> plan = version_2(AttentionShape(4, 4, 8, causal=True), Tiles(2, 2))
    >>> [[step.what for step in program if step.op is Op.READ] for program in plan.phases[0]]
    [['Q', 'K', 'V'], ['Q', 'K', 'V', 'K', 'V']]
    """

    name: str
    attention: AttentionShape
    tiles: Tiles
    phases: tuple[tuple[Program, ...], ...]
    splits: int = 1

    @property
    def steps(self) -> Iterator[Step]:
        """Every step, program by program."""
        return (step for programs in self.phases for program in programs for step in program)

    @property
    def computes(self) -> Iterator[Step]:
        """The ``COMPUTE`` steps."""
        return (step for step in self.steps if step.op is Op.COMPUTE)


def _length(span: Span) -> int:
    return span[1] - span[0]
