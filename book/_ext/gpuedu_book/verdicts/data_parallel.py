"""Numbers in the verdicts on data parallelism."""

from __future__ import annotations

import torch
from torch import nn

from gpuedu.all_reduce.plan import ring
from gpuedu.all_reduce.run import run_local


def model(batch_norm: bool) -> nn.Module:
    """A small classifier."""
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(8, 16), middle, nn.Tanh(), nn.Linear(16, 5)).double()


def gradient(batch_norm: bool, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the mean loss over these tokens, flat."""
    network = model(batch_norm)
    nn.functional.cross_entropy(network(x), y).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])


def off(shards: list[int], batch_norm: bool = False) -> str:
    """How far the mean of the shards' gradients is from the batch's, in percent of its length."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(shards), 8, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.5, 2, len(x), dtype=torch.float64)[:, None]
    y = torch.randint(0, 5, (len(x),), generator=generator)
    local = [gradient(batch_norm, *part) for part in zip(x.split(shards), y.split(shards), strict=True)]
    mean = run_local(ring(len(shards)), local)[0] / len(shards)
    whole = gradient(batch_norm, x, y)
    return f"{100 * float((mean - whole).norm() / whole.norm()):.0f}"


def c03() -> dict[str, object]:
    """What unequal shards and batch statistics do to a mean of gradients."""
    ragged, equal = [21, 3, 9, 15], [12] * 4
    return {
        "n": len(ragged),
        "shards": ", ".join(map(str, ragged[:-1])) + f" and {ragged[-1]}",
        "ragged": off(ragged),
        "batch_norm": off(equal, batch_norm=True),
    }
