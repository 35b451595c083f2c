"""The memories that a plan works on: what it moves is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..plan import Op, Step, TilePlan
from .options import Options

FILLS = {"m": float("-inf")}


@dataclass
class Odometer:
    """Bytes between HBM and chip, by tensor.

    Parameters
    ----------
    read, written, filled : Counter
        Bytes so far by the tensor's name.
    """

    read: Counter = field(default_factory=Counter)
    written: Counter = field(default_factory=Counter)
    filled: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All bytes."""
        return self.read.total() + self.written.total() + self.filled.total()


class Machine:
    """The memories of some units and the options of their attention.

    Parameters
    ----------
    plan : TilePlan
        What to carry out.
    hbm : dict
        Tensors of shape (units, heads, rows, columns) by name: inputs, and room for everything that the
        plan writes.
    options : Options
        What happens to scores.
    first_unit : int
        Number of the first unit in the batch, which the dropout's counter needs.
    odometer : Odometer, optional
        Counts what is moved.
    workspace : dict, optional
        Buffers of the chip, used again by the next machine of the same size.

    Notes
    -----
    A tile on the chip has shape (units, heads x rows, columns). On a CPU there is no chip: what is read is
    a view, and what is computed goes to buffers that are used again, small enough for the caches.
    """

    def __init__(
        self,
        plan: TilePlan,
        hbm: Mapping[str, torch.Tensor],
        options: Options,
        first_unit: int = 0,
        odometer: Odometer | None = None,
        workspace: dict | None = None,
    ) -> None:
        self.plan, self.hbm, self.options, self.odometer = plan, hbm, options, odometer
        self.units, self.first_unit = hbm["Q"].shape[0], first_unit
        self.device = hbm["Q"].device
        self.dtype = torch.promote_types(hbm["Q"].dtype, torch.float32)
        self.chip: dict[str, torch.Tensor] = {}
        self.workspace = {} if workspace is None else workspace

    def move(self, step: Step) -> None:
        """Carry out a step that is no computation."""
        match step.op:
            case Op.READ:
                self._read(step)
            case Op.WRITE:
                self._write(step)
            case Op.FILL:
                self._place(step).fill_(FILLS.get(step.what, 0.0))
                self._count("filled", step)
            case Op.HOLD:
                self._hold(step)

    def buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Room on the chip of this shape; the same room for the same name."""
        size = torch.Size(shape).numel()
        room = self.workspace.get(name)
        if room is None or room.numel() < size or room.dtype != self.dtype:
            room = self.workspace[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return room[:size].view(shape)

    def _place(self, step: Step) -> torch.Tensor:
        (h0, h1), (r0, r1), (c0, c1) = step.heads, step.rows, step.columns
        return self.hbm[step.what][:, h0:h1, r0:r1, c0:c1]

    def _read(self, step: Step) -> None:
        tile = self._place(step)
        self.chip[step.what] = (tile[:, 0] if tile.shape[1] == 1 else tile.flatten(1, 2)).to(self.dtype)
        self.chip.pop(f"scaled {step.what}", None)
        self._count("read", step)

    def _hold(self, step: Step) -> None:
        (h0, h1), (r0, r1), (c0, c1) = step.heads, step.rows, step.columns
        room = self.buffer(step.what, self.units, (h1 - h0) * (r1 - r0), c1 - c0)
        self.chip[step.what] = room.fill_(FILLS.get(step.what, 0.0))

    def _write(self, step: Step) -> None:
        place, tile = self._place(step), self.chip[step.what.removesuffix(" parts")]
        if tile.data_ptr() != place.data_ptr():  # else it was changed where it lies
            place.copy_(tile.view(place.shape))
        self._count("written", step)

    def _count(self, direction: str, step: Step) -> None:
        if self.odometer is not None:
            nbytes = self.units * step.elements * self.hbm[step.what].element_size()
            getattr(self.odometer, direction)[step.what] += nbytes
