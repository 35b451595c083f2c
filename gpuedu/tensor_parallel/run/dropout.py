"""Dropout with random state of one's own for each region."""

from __future__ import annotations

import torch
from torch import nn

from gpuedu.checks import check_count

SHARDED_OFFSET = 2718  # Megatron-LM's


class RandomState:
    """Random numbers that are the same on all ranks, and others that differ between them.

    Where all ranks hold the same activation they have to drop the same elements of it, or they would no
    longer hold the same. Where each has its own heads or tokens, equal masks would repeat one pattern t
    times.

    Parameters
    ----------
    seed : int
        At least 0, the same on all ranks.
    rank : int
        Of this rank in its group.

    Examples
    --------
    >>> ranks = [RandomState(1, rank) for rank in range(2)]
    >>> whole, own = ([r.generator(cut, torch.device("cpu")).initial_seed() for r in ranks] for cut in (0, 1))
    >>> whole[0] == whole[1], own[0] == own[1]
    (True, False)
    """

    def __init__(self, seed: int, rank: int):
        check_count("seed", seed, 0)
        self.seeds = {False: seed, True: seed + SHARDED_OFFSET + rank}
        self.generators: dict[tuple[bool, torch.device], torch.Generator] = {}

    def generator(self, sharded: bool, device: torch.device) -> torch.Generator:
        """The generator of the regions where each rank has its own part, or of those where all have the same.

        Its state goes on from call to call.
        """
        key = bool(sharded), device
        if key not in self.generators:
            self.generators[key] = torch.Generator(device).manual_seed(self.seeds[key[0]])
        return self.generators[key]


class Dropout(nn.Module):
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p), in training.

    Parameters
    ----------
    p : float
        From 0 to below 1.
    random : RandomState
        Where the masks come from; shared by all layers of a rank.
    sharded : bool
        Whether each rank holds its own part of the activation.

    Raises
    ------
    ValueError
        If ``p`` is out of range.
    """

    def __init__(self, p: float, random: RandomState, *, sharded: bool):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout={p}: must be at least 0 and below 1")
        self.p, self.random, self.sharded = p, random, sharded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        if not self.training or self.p == 0:
            return x
        generator = self.random.generator(self.sharded, x.device)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=generator) / (1 - self.p)
