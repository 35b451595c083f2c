"""Muon: the optimizer that makes each matrix's update as large in every direction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices whose singular values are all about 1.

    Parameters
    ----------
    matrices : Tensor
        (count, rows, columns).

    Returns
    -------
    Tensor
        Of the same shape: if a matrix is ``U S V^T``, then about ``U V^T``.

    Notes
    -----
    Five steps of a Newton-Schulz iteration, ``X <- a X + b (X X^T) X + c (X X^T)^2 X``, which map every
    singular value above 0.01 or so to between 0.7 and 1.2.

    References
    ----------
    Jordan et al. Muon: an optimizer for hidden layers in neural networks. 2024.

    Examples
    --------
    >>> found = orthogonalize(torch.diag(torch.tensor([5.0, 1.0, 0.5]))[None])
    >>> bool((torch.linalg.svdvals(found) - 1).abs().max() < 0.35)
    True
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized before they are added.

    Parameters
    ----------
    matrices : iterable of Tensor
        Parameters, each (rows, columns). Matrices of one shape are updated together.
    lr : float
        How far a step goes; times ``sqrt(rows / columns)`` where a matrix is tall.
    momentum : float
        Share of the past in the momentum, which looks a step ahead (Nesterov's).
    weight_decay : float
        Share of the weights that a step with ``lr=1`` would take away.

    Notes
    -----
    In float32, as PyTorch's own Muon is not: many processors multiply bfloat16 slowly.
    """

    def __init__(
        self, matrices: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            of_shape = defaultdict(list)
            for weights in group["params"]:
                of_shape[weights.shape].append(weights)
            for (rows, columns), alike in of_shape.items():
                updates = orthogonalize(torch.stack([self._ahead(w, group["momentum"]) for w in alike]))
                step = group["lr"] * max(1.0, rows / columns) ** 0.5
                for weights, update in zip(alike, updates, strict=True):
                    weights.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=step)

    def _ahead(self, weights: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient, averaged over the past with one more step of the average."""
        state = self.state[weights]
        average = state.setdefault("average", torch.zeros_like(weights)).lerp_(weights.grad, 1 - momentum)
        return weights.grad.lerp(average, momentum)
