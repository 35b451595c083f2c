"""An iteration's time from a short measurement, bent where the machine's is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

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
        after = min(bisect_left(knots, tokens), len(knots) - 1)
        rise = times[after] - times[after - 1]
        if tokens > knots[-1]:
            rise = max(0.0, rise)
            return times[-1] + rise * (tokens - knots[-1]) / (knots[-1] - knots[-2])
        return times[after - 1] + rise * (tokens - knots[after - 1]) / (knots[after] - knots[after - 1])

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


def fit_piecewise_step_cost(
    measured: Sequence[Iteration], knots: Sequence[int] | None = None
) -> PiecewiseStepCost:
    """The step cost closest to a measurement, with knots where something was measured.

    Parameters
    ----------
    measured : sequence of Iteration
        At least five, and three more than there are knots.
    knots : sequence of int, optional
        Tokens of an iteration, rising, from the fewest measured to the most; each with a measurement between
        its neighbors. Otherwise numbers of tokens that were measured, each at least 1.4 times the one
        before.

    Returns
    -------
    PiecewiseStepCost
        No time below 0, none at a knot below that at the knot before; each iteration's error counts in
        proportion to the fitted seconds.

    Raises
    ------
    TypeError, ValueError
        For too few iterations, one that took no time or held no token, or knots that do not rise, leave out
        what was measured, or have nothing measured beside them.

    Notes
    -----
    Non-negative least squares over the first time and the rises from knot to knot. What a sequence costs
    beyond its token (``decode_s``) is told from these by iterations that hold both prompts and sequences that
    decode; what a pair costs (``pair_s``) by prompts with and without context. Where these were not measured,
    the knots take them in, and batches of another kind are told less well: a prompt longer than any measured
    above all.

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
    check_measured(measured, 5 if knots is None else max(5, len(knots) + 3))
    tokens = sorted(iteration.decodes + iteration.new_tokens for iteration in measured)
    knots = spaced(tokens, len(measured) - 3) if knots is None else tuple(knots)
    check_knots(knots)
    if tokens[0] < knots[0] or tokens[-1] > knots[-1]:
        raise ValueError(f"knots={knots}: must reach from {tokens[0]} to {tokens[-1]} tokens, as measured")
    for before, knot, after in zip((0, *knots), knots, (*knots[1:], inf), strict=False):
        if bisect_right(tokens, before) == bisect_left(tokens, after):
            raise ValueError(f"knots: nothing was measured beside {knot} tokens")
    features = [
        (
            *rises(knots, iteration.decodes + iteration.new_tokens),
            iteration.decodes,
            iteration.context_tokens,
            iteration.pairs,
        )
        for iteration in measured
    ]
    fitted = fit_seconds(features, [iteration.seconds for iteration in measured])
    times = accumulate(fitted[: len(knots)])
    return PiecewiseStepCost(knots, tuple(times), *fitted[len(knots) :])


def rises(knots: Sequence[int], tokens: int) -> list[float]:
    """The first time, and the share of each rise from knot to knot, that so many tokens take."""
    shares = [min(1.0, max(0.0, (tokens - before) / (knot - before))) for before, knot in pairwise(knots)]
    return [1.0, *shares]


def spaced(tokens: Iterable[int], most: int | None = None) -> tuple[int, ...]:
    """Some of these numbers: the least, the greatest, and between them those that are far enough apart.

    Parameters
    ----------
    tokens : iterable of int
        At least one.
    most : int, optional
        So many at most, at least 2.

    Returns
    -------
    tuple of int
        Rising, each 1.4 times the one before, or as much more as it takes; but for the last two.
    """
    rising = sorted(set(tokens))
    spacing = SPACING
    while True:
        chosen = rising[:1]
        for number in rising:
            if number >= spacing * chosen[-1]:
                chosen.append(number)
        if chosen[-1] != rising[-1]:
            chosen[1:] = [*chosen[1:-1], rising[-1]]
        if most is None or len(chosen) <= most:
            return tuple(chosen)
        spacing *= SPACING
