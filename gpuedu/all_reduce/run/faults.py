"""Things that go wrong on purpose."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import torch

from gpuedu.checks import check_amount, check_count


@dataclass(frozen=True)
class Straggler:
    """A rank that begins ``delay_s`` s later than the others."""

    rank: int
    delay_s: float

    def __post_init__(self) -> None:
        check_count("rank", self.rank, 0)
        check_amount("delay_s", self.delay_s)


@dataclass(frozen=True)
class Death:
    """A rank whose process is killed when it has received ``messages`` messages."""

    rank: int
    messages: int = 0

    def __post_init__(self) -> None:
        check_count("rank", self.rank, 0)
        check_count("messages", self.messages, 0)


@dataclass(frozen=True)
class BitFlip:
    """A rank in whose contribution one bit of one element flips, after its checksum was taken.

    ``element`` counts in what the rank hands in; ``bit`` in the element's bytes, the lowest first.
    """

    rank: int
    element: int
    bit: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "element", "bit"):
            check_count(name, getattr(self, name), 0)


Fault = Straggler | Death | BitFlip


def before(faults: tuple[Fault, ...], rank: int, flat: torch.Tensor) -> torch.Tensor:
    """Let happen what happens to ``rank`` before it begins; its contribution as it then is."""
    for fault in faults:
        match fault:
            case Straggler(rank=victim) if victim == rank:
                time.sleep(fault.delay_s)
            case BitFlip(rank=victim) if victim == rank:
                flat = _flipped(flat, fault)
    return flat


def after(faults: tuple[Fault, ...], rank: int, received: int) -> None:
    """Let happen what happens to ``rank`` once it has received so many messages."""
    for fault in faults:
        if isinstance(fault, Death) and fault.rank == rank and fault.messages == received:
            os.kill(os.getpid(), signal.SIGKILL)


def check_faults(faults: tuple[Fault, ...], world_size: int, tensor: torch.Tensor) -> None:
    """Raise unless each fault can happen to the rank it names; ``tensor`` is what this rank hands in."""
    if not isinstance(faults, tuple) or not all(isinstance(fault, Fault) for fault in faults):
        raise TypeError(f"faults={faults!r}: must be a tuple of Straggler, Death and BitFlip")
    for fault in faults:
        if fault.rank >= world_size:
            raise ValueError(f"{fault}: rank must be below {world_size}")
        if isinstance(fault, BitFlip) and fault.element >= tensor.numel():
            raise ValueError(f"{fault}: element must be below {tensor.numel()}")
        if isinstance(fault, BitFlip) and fault.bit >= 8 * tensor.element_size():
            raise ValueError(f"{fault}: bit must be below {8 * tensor.element_size()}")


def _flipped(flat: torch.Tensor, fault: BitFlip) -> torch.Tensor:
    """A copy of ``flat`` with one bit changed."""
    flat = flat.clone()
    byte, bit = divmod(fault.bit, 8)
    flat[fault.element : fault.element + 1].view(torch.uint8)[byte] ^= 1 << bit
    return flat
