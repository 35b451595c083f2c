"""An iteration's time from a short measurement: five coefficients, fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpuedu.checks import check_amount

from .interface import Line


class Iteration(NamedTuple):
    """One iteration, measured: who computed what, and the seconds it took."""

    seconds: float
    decodes: int
    context_tokens: int
    chunks: tuple[tuple[int, int], ...] = ()


REWEIGHTINGS = 3  # another moves no time by a thousandth: tested


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


def _features(iteration: Iteration) -> tuple[float, ...]:
    tokens = sum(new for new, _ in iteration.chunks)
    pairs = sum(new * context + new * (new + 1) / 2 for new, context in iteration.chunks)
    return (1.0, tokens, iteration.decodes, iteration.context_tokens, pairs)


def fit_step_cost(measured: Sequence[Iteration], *, rounds: int = 5000) -> LinearStepCost:
    """The linear step cost closest to a measurement.

    Parameters
    ----------
    measured : sequence of Iteration
        At least five, of unlike batches.
    rounds : int
        Sweeps over the coefficients, at most.

    Returns
    -------
    LinearStepCost
        No coefficient below 0; each iteration's error counts in proportion to the fitted seconds.

    Raises
    ------
    ValueError
        For fewer than five iterations, or one that took no time.

    Notes
    -----
    Non-negative least squares by coordinate descent: each coefficient in turn goes to its best value, or
    to 0 if that is negative. The problem is convex, so this converges to the optimum.

    Errors relative to the *measured* seconds would make slow outliers count less than fast ones, and the
    fit too fast, by about twice the squared coefficient of variation: on a machine whose times vary by 25 %,
    an eighth. So the weights come from the fit before, a few times over (iteratively reweighted least
    squares; the fixed point is that of a quasi-likelihood with a constant coefficient of variation).

    Examples
    --------
    >>> truth = LinearStepCost(0.01, 0.0002, 0.001, 1e-6, 1e-8)
    >>> batches = [(0, 0, ((64, 0),)), (0, 0, ((512, 0),)), (0, 0, ((512, 2048),)), (1, 100, ()),
    ...            (8, 900, ()), (8, 9000, ()), (32, 4000, ((128, 0),))]
    >>> fitted = fit_step_cost([Iteration(truth.seconds(*batch), *batch) for batch in batches])
    >>> round(fitted.decode_s, 6), round(fitted.token_s, 7)
    (0.001, 0.0002)
    """
    if len(measured) < 5:
        raise ValueError(f"measured: {len(measured)} iterations, must be at least 5 for five coefficients")
    for iteration in measured:
        check_amount("seconds", iteration.seconds, positive=True)
    features = [_features(iteration) for iteration in measured]
    seconds = [iteration.seconds for iteration in measured]
    weights = seconds
    for _ in range(REWEIGHTINGS):
        fitted = _weighted_fit(features, seconds, weights, rounds)
        weights = [fitted.seconds(*iteration[1:]) for iteration in measured]
    return fitted


def _weighted_fit(
    features: Sequence[Sequence[float]], seconds: Sequence[float], weights: Sequence[float], rounds: int
) -> LinearStepCost:
    """Coefficients >= 0 that minimize the sum of (error / weight) squared."""
    rows = [[value / weight for value in row] for row, weight in zip(features, weights, strict=True)]
    wanted = [value / weight for value, weight in zip(seconds, weights, strict=True)]
    scale = [max(abs(row[j]) for row in rows) or 1.0 for j in range(5)]
    rows = [[value / size for value, size in zip(row, scale, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(5)] for i in range(5)]
    target = [sum(row[i] * want for row, want in zip(rows, wanted, strict=True)) for i in range(5)]
    coefficients = [0.0] * 5
    for _ in range(rounds):
        largest = 0.0
        for i in range(5):
            if gram[i][i] == 0:
                continue
            rest = target[i] - sum(gram[i][j] * coefficients[j] for j in range(5) if j != i)
            best = max(0.0, rest / gram[i][i])
            largest = max(largest, abs(best - coefficients[i]))
            coefficients[i] = best
        if largest < 1e-13:
            break
    return LinearStepCost(*(value / size for value, size in zip(coefficients, scale, strict=True)))
