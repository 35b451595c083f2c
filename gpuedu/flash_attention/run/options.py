"""What attention does to the scores beside the softmax: scale, cap, bias, dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpuedu.checks import check_amount, check_count


@dataclass(frozen=True)
class Options:
    """What happens to a score q k, in this order.

    Parameters
    ----------
    scale : float
        It is multiplied by this.
    softcap : float
        If above 0, it becomes softcap tanh(score / softcap), which keeps it below ``softcap``.
    alibi_slopes : Tensor, optional
        Of shape (heads,): slope times the distance of query and key is taken away.
    dropout_p : float
        Share of the probabilities set to 0, at least 0 and below 1; the others are divided by
        1 - ``dropout_p``.
    seed : int
        Of the dropout's random numbers.
    sequence : int
        Number of the sequence in a packed batch, so that each draws numbers of its own.

    Raises
    ------
    TypeError, ValueError
        For a value out of its range.
    """

    scale: float
    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None
    dropout_p: float = 0.0
    seed: int = 0
    sequence: int = 0

    def __post_init__(self) -> None:
        check_amount("scale", self.scale, positive=True)
        check_amount("softcap", self.softcap)
        check_amount("dropout_p", self.dropout_p)
        if self.dropout_p >= 1:
            raise ValueError(f"dropout_p={self.dropout_p}: must be at least 0 and below 1")
        check_count("seed", self.seed, 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed={self.seed}: must be below 2**64")
        check_count("sequence", self.sequence, 0)
