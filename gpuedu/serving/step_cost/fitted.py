"""An iteration's time from a short measurement: five coefficients, fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpuedu.checks import check_amount

from .interface import Line
from .least_squares import fit_seconds


class Iteration(NamedTuple):
    """One iteration, measured: who computed what, and the seconds it took."""

    seconds: float
    decodes: int
    context_tokens: int
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def new_tokens(self) -> int:
        """Tokens of prompts that were computed."""
        return sum(new for new, _ in self.chunks)

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key that it sees, in the chunks."""
        return sum(new * context + new * (new + 1) / 2 for new, context in self.chunks)


@dataclass(frozen=True)
class LinearStepCost:
    """Seconds linear in what an iteration holds.

    Parameters
    ----------
    iteration_s : float
        Seconds of any iteration.
    token_s : float
        Seconds for each prompt token computed.
    decode_s : float
        Seconds for each sequence that decodes.
    context_s : float
        Seconds for each token in the cache of those that decode.
    pair_s : float
        Seconds for each pair of query and key in the chunks.
    block_s : float
        Seconds to move one block between host and GPU.
    """

    iteration_s: float
    token_s: float = 0.0
    decode_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0
    block_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("iteration_s", "token_s", "decode_s", "context_s", "pair_s", "block_s"):
            check_amount(name, getattr(self, name))

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """Seconds of one iteration; see :class:`StepCost`."""
        total = self.iteration_s + self.decode_s * decodes + self.context_s * context_tokens
        for new, context in chunks:
            total += self.token_s * new + self.pair_s * (new * context + new * (new + 1) / 2)
        return total

    def line(self, decodes: int, context_tokens: int) -> Line:
        """Without chunks, seconds over the context."""
        return Line(self.iteration_s + self.decode_s * decodes, self.context_s)

    def swap_seconds(self, blocks: int) -> float:
        """Seconds to move blocks between host and GPU."""
        return self.block_s * blocks


def fit_step_cost(measured: Sequence[Iteration]) -> LinearStepCost:
    """The linear step cost closest to a measurement.

    Parameters
    ----------
    measured : sequence of Iteration
        At least five, of unlike batches.

    Returns
    -------
    LinearStepCost
        No coefficient below 0; each iteration's error counts in proportion to the fitted seconds.

    Raises
    ------
    ValueError
        For fewer than five iterations, or one that took no time or held no token.

    Notes
    -----
    See :func:`fit_piecewise_step_cost` for times that are no straight line in the batch.

    Examples
    --------
    >>> truth = LinearStepCost(0.01, 0.0002, 0.001, 1e-6, 1e-8)
    >>> batches = [(0, 0, ((64, 0),)), (0, 0, ((512, 0),)), (0, 0, ((512, 2048),)), (1, 100, ()),
    ...            (8, 900, ()), (8, 9000, ()), (32, 4000, ((128, 0),))]
    >>> fitted = fit_step_cost([Iteration(truth.seconds(*batch), *batch) for batch in batches])
    >>> round(fitted.decode_s, 6), round(fitted.token_s, 7)
    (0.001, 0.0002)
    """
    check_measured(measured, 5)
    features = [
        (1.0, iteration.new_tokens, iteration.decodes, iteration.context_tokens, iteration.pairs)
        for iteration in measured
    ]
    return LinearStepCost(*fit_seconds(features, [iteration.seconds for iteration in measured]))


def check_measured(measured: Sequence[Iteration], coefficients: int) -> None:
    """Raise unless so many coefficients can be fitted to these iterations, and each can be."""
    if len(measured) < coefficients:
        raise ValueError(
            f"measured: {len(measured)} iterations, must be at least {coefficients} for as many coefficients"
        )
    for iteration in measured:
        check_amount("seconds", iteration.seconds, positive=True)
        check_amount("decodes", iteration.decodes)
        check_amount("context_tokens", iteration.context_tokens)
        for name, counts in zip(("new tokens", "context"), zip(*iteration.chunks, strict=True), strict=False):
            check_amount(name, min(counts))
        if not iteration.decodes + iteration.new_tokens:
            raise ValueError(f"measured: {iteration!r} must hold a token")
