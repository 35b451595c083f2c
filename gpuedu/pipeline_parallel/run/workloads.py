"""Something to run: a transformer, or parts that sleep for as long as they are told."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ..plan import Schedule


@dataclass(frozen=True)
class Transformer:
    """Transformer blocks between hidden states, cut into equal parts.

    Without embedding and head, so that all parts are alike; the input asks for a gradient, as if an
    embedding stood before it.

    Parameters
    ----------
    layers : int
        Number of blocks, a multiple of the number of parts.
    hidden_size : int
        Width of a hidden state, a multiple of 64 (one attention head each) or below it (one head).
    microbatch_size : int
        Sequences in a microbatch.
    sequence_length : int
        Tokens in a sequence.
    dtype : str
        Name of a torch dtype of floats, such as ``"float32"`` or ``"bfloat16"``.
    """

    layers: int = 8
    hidden_size: int = 256
    microbatch_size: int = 1
    sequence_length: int = 128
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("layers", "hidden_size", "microbatch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_size > 64 and self.hidden_size % 64:
            raise ValueError(f"hidden_size={self.hidden_size}: must be below 64 or a multiple of it")
        dtype = getattr(torch, self.dtype, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype={self.dtype!r}: must be a torch dtype of floats, such as 'float32'")

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError unless the blocks can be cut into the parts of ``schedule``."""
        if self.layers % schedule.depth:
            raise ValueError(
                f"layers={self.layers}: must be a multiple of stages * chunks = {schedule.depth} "
                f"for {schedule.name}"
            )

    def part(self, schedule: Schedule, part: int, device: torch.device | str = "cpu") -> nn.Module:
        """One of the model's equal parts, the same on each call."""
        self.check(schedule)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(part)
            blocks = [Block(self.hidden_size) for _ in range(self.layers // schedule.depth)]
        return nn.Sequential(*blocks).to(device, getattr(torch, self.dtype))

    def batch(
        self, schedule: Schedule, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of one step, each (samples, sequence length, hidden size)."""
        samples = self.microbatch_size * schedule.microbatches
        generator = torch.Generator().manual_seed(0)
        both = torch.randn(2, samples, self.sequence_length, self.hidden_size, generator=generator)
        inputs, targets = both.to(device, getattr(torch, self.dtype))
        return inputs.requires_grad_(), targets


@dataclass(frozen=True)
class Sleep:
    """Parts that sleep instead of computing, so that any number of ranks share a machine's cores.

    Parameters
    ----------
    forward_s, backward_input_s, backward_weight_s : float
        Time of one microbatch in one whole stage, in s; a chunk of v sleeps a v-th of it.
    """

    forward_s: float = 0.02
    backward_input_s: float = 0.02
    backward_weight_s: float = 0.02

    def __post_init__(self):
        for name in ("forward_s", "backward_input_s", "backward_weight_s"):
            if not 0 <= getattr(self, name) < 60:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 and below 60 s")

    def check(self, schedule: Schedule) -> None:
        """Sleep can be cut into any number of parts."""

    def part(self, schedule: Schedule, part: int, device: torch.device | str = "cpu") -> nn.Module:
        """One of the equal parts."""
        times = (self.forward_s, self.backward_input_s, self.backward_weight_s)
        return Sleeper(*(time / schedule.chunks for time in times)).to(device)

    def batch(
        self, schedule: Schedule, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of one step, each one number per microbatch."""
        inputs, targets = torch.ones(2, schedule.microbatches, 1, device=device)
        return inputs.requires_grad_(), targets


class Block(nn.Module):
    """A transformer block: causal attention and a GELU MLP, each behind a LayerNorm and a shortcut."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.heads = max(1, hidden_size // 64)
        self.norm_1, self.norm_2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.qkv, self.out = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)
        self.up, self.down = nn.Linear(hidden_size, 4 * hidden_size), nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states in, hidden states out: (batch, tokens, hidden size)."""
        x = x + self.out(self._attention(self.norm_1(x)))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return attended.transpose(1, 2).flatten(-2)


class Sleeper(nn.Module):
    """Takes its time for the forward and for each gradient, and adds its one weight to the input."""

    def __init__(self, forward_s: float, backward_input_s: float, backward_weight_s: float):
        super().__init__()
        self.times = forward_s, backward_input_s, backward_weight_s
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input plus the weight, later."""
        forward_s, backward_input_s, backward_weight_s = self.times
        return _Pause.apply(x, forward_s, backward_input_s) + _Pause.apply(self.weight, 0, backward_weight_s)


class _Pause(torch.autograd.Function):
    """The identity, which sleeps in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.backward_s)
        return gradient, None, None
