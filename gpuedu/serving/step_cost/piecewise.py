"""An iteration's time from a short measurement, bent where the machine's is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuedu.checks import check_amount, check_count

from .fitted import Iteration, check_measured
from .interface import Line
from .least_squares import fit_seconds

SPACING = 1.4
"""Each knot that a fit chooses has at least so many times the tokens of the one before."""


@dataclass(frozen=True)
class PiecewiseStepCost:
    """Seconds by the tokens that an iteration computes, straight between knots; linear in the rest.

    Parameters
    ----------
    knots : tuple of int
        Tokens of an iteration, those of prompts and one for each sequence that decodes; rising.
    knots_s : tuple of float
        Seconds at each knot. Below the first they stay, beyond the last they go on as between the last two,
        or stay if those fall.
    decode_s : float
        Seconds for each sequence that decodes, beside its token.
    context_s : float
        Seconds for each token in the cache of those that decode.
    pair_s : float
        Seconds for each pair of query and key in the chunks.
    block_s : float
        Seconds to move one block between host and GPU.

    Notes
    -----
    Every linear layer multiplies all tokens of an iteration at once. That takes as long for one as for
    some, where weights have to be read, and then grows with their number, in steps as kernels change: on no
    machine is it one straight line.

    Examples
    --------
    >>> cost = PiecewiseStepCost((1, 8, 512), (0.010, 0.012, 0.052), context_s=1e-6)
    >>> round(cost.seconds(8, 1000), 4), round(cost.seconds(8, 1000, [(252, 0)]), 4)
    (0.013, 0.033)
    """

    knots: tuple[int, ...]
    knots_s: tuple[float, ...]
    decode_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0
    block_s: float = 0.0

    def __post_init__(self) -> None:
        check_knots(self.knots)
        if len(self.knots_s) != len(self.knots):
            raise ValueError(f"knots_s: {len(self.knots_s)} times, must be one for each of {len(self.knots)}")
        for seconds in self.knots_s:
            check_amount("knots_s", seconds)
        for name in ("decode_s", "context_s", "pair_s", "block_s"):
            check_amount(name, getattr(self, name))

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """Seconds of one iteration; see :class:`StepCost`."""
        tokens, pairs = decodes, 0.0
        for new, context in chunks:
            tokens += new
            pairs += new * context + new * (new + 1) / 2
        return (
            self._at(tokens) + self.decode_s * decodes + self.context_s * context_tokens + self.pair_s * pairs
        )

    def _at(self, tokens: int) -> float:
        """Seconds by the tokens alone."""
        knots, times = self.knots, self.knots_s
        if tokens <= knots[0] or len(knots) == 1:
            return times[0]
        if tokens <= knots[-1]:
            return sum(share * times[place] for place, share in around(knots, tokens))
        slope = max(0.0, times[-1] - times[-2]) / (knots[-1] - knots[-2])
        return times[-1] + slope * (tokens - knots[-1])

    def line(self, decodes: int, context_tokens: int) -> Line:
        """Without chunks, seconds over the context."""
        return Line(self._at(decodes) + self.decode_s * decodes, self.context_s)

    def swap_seconds(self, blocks: int) -> float:
        """Seconds to move blocks between host and GPU."""
        return self.block_s * blocks


def check_knots(knots: Sequence[int]) -> None:
    """Raise unless there are knots and each is larger than the one before."""
    if not knots:
        raise ValueError("knots: must be at least one")
    before = 0
    for knot in knots:
        check_count("knots", knot)
        if knot <= before:
            raise ValueError(f"knots={tuple(knots)}: must rise")
        before = knot


def around(knots: Sequence[int], tokens: int) -> list[tuple[int, float]]:
    """The places of the knots on both sides, and the share of each; of one, at it and outside all."""
    if tokens <= knots[0]:
        return [(0, 1.0)]
    if tokens >= knots[-1]:
        return [(len(knots) - 1, 1.0)]
    after = bisect_left(knots, tokens)
    share = (tokens - knots[after - 1]) / (knots[after] - knots[after - 1])
    return [(after - 1, 1 - share), (after, share)] if share < 1 else [(after, 1.0)]


def fit_piecewise_step_cost(
    measured: Sequence[Iteration], knots: Sequence[int] | None = None
) -> PiecewiseStepCost:
    """The step cost closest to a measurement, with knots where something was measured.

    Parameters
    ----------
    measured : sequence of Iteration
        As many as there are coefficients, at least: one for each knot, and three.
    knots : sequence of int, optional
        Tokens of an iteration, rising, from the fewest measured to the most; each with a measurement between
        its neighbors. Otherwise numbers of tokens that were measured, so far apart that each is 1.4
        times the one before.

    Returns
    -------
    PiecewiseStepCost
        No time below 0; each iteration's error counts in proportion to the fitted seconds.

    Raises
    ------
    TypeError, ValueError
        For too few iterations, one that took no time, or knots that do not rise, leave out what was
        measured, or have nothing measured beside them.

    Notes
    -----
    Non-negative least squares over hat functions, :func:`fit_seconds`. What a sequence costs beyond its
    token (``decode_s``) is told from the knots by iterations that hold both prompts and sequences that
    decode; measure some.

    Examples
    --------
    >>> truth = PiecewiseStepCost((1, 16, 256), (0.010, 0.011, 0.050), 0.0, 1e-6)
    >>> batches = [(1, 50, ()), (4, 4000, ()), (16, 900, ()), (0, 0, ((64, 0),)), (8, 800, ((128, 64),)),
    ...            (0, 0, ((256, 0),)), (0, 0, ((128, 512),))]
    >>> measured = [Iteration(truth.seconds(*batch), *batch) for batch in batches]
    >>> fitted = fit_piecewise_step_cost(measured, (1, 16, 256))
    >>> [round(seconds, 4) for seconds in fitted.knots_s]
    [0.01, 0.011, 0.05]
    """
    tokens = [iteration.decodes + iteration.new_tokens for iteration in measured]
    knots = spaced(tokens) if knots is None else tuple(knots)
    check_measured(measured, len(knots) + 3)
    check_knots(knots)
    if min(tokens) < knots[0] or max(tokens) > knots[-1]:
        raise ValueError(f"knots={knots}: must reach from {min(tokens)} to {max(tokens)} tokens, as measured")
    features = []
    for iteration, count in zip(measured, tokens, strict=True):
        hats = [0.0] * len(knots)
        for place, share in around(knots, count):
            hats[place] = share
        features.append((*hats, iteration.decodes, iteration.context_tokens, iteration.pairs))
    for place, knot in enumerate(knots):
        if not any(row[place] for row in features):
            raise ValueError(f"knots: nothing was measured beside {knot} tokens")
    fitted = fit_seconds(features, [iteration.seconds for iteration in measured])
    return PiecewiseStepCost(knots, tuple(fitted[: len(knots)]), *fitted[len(knots) :])


def spaced(tokens: Iterable[int]) -> tuple[int, ...]:
    """Some of these numbers, the least and the greatest among them, ``SPACING`` times apart."""
    chosen: list[int] = []
    rising = sorted(set(tokens))
    for number in rising:
        if not chosen or number >= SPACING * chosen[-1]:
            chosen.append(number)
    if rising and chosen[-1] != rising[-1]:
        chosen[-1:] = [rising[-1]] if len(chosen) > 1 else [chosen[-1], rising[-1]]
    return tuple(chosen)
