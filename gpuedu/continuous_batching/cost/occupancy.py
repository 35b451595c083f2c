"""How full the slots of a static batch are: expected length over expected longest length."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.serving.workload import Lengths, mean


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    float
        The harmonic number.

    Examples
    --------
    >>> [round(harmonic(n), 2) for n in (4, 8, 16, 32)]
    [2.08, 2.72, 3.38, 4.06]
    """
    check_count("n", n)
    return sum(1 / k for k in range(1, n + 1))


def expected_longest(lengths: Lengths, batch_size: int) -> float:
    """Expected length of the longest of a batch.

    Parameters
    ----------
    lengths : Lengths
        Of each member.
    batch_size : int
        Members, at least 1.

    Returns
    -------
    float
        Tokens.

    Notes
    -----
    The longest of B independent draws has the quantile function ``Q(u ** (1 / B))``, and its mean is the
    integral over u.

    Examples
    --------
    >>> from gpuedu.serving.workload import Fixed
    >>> expected_longest(Fixed(100), 8)
    100.0
    """
    check_count("batch_size", batch_size)
    return mean(_Longest(lengths, batch_size))


@dataclass(frozen=True)
class _Longest:
    """The longest of a batch, as a distribution."""

    lengths: Lengths
    batch_size: int

    def quantile(self, probability: float) -> int:
        return self.lengths.quantile(probability ** (1 / self.batch_size))


def static_occupancy(lengths: Lengths, batch_size: int) -> float:
    """Share of a static batch's slots that compute for somebody, with a backlog to fill every batch.

    Parameters
    ----------
    lengths : Lengths
        Of the outputs.
    batch_size : int
        Members of a batch.

    Returns
    -------
    float
        ``E[L] / E[max of B]``, 0 to 1. A prompt's iteration produces a token and counts as one.

    Notes
    -----
    The batch runs for ``max L`` iterations, in which B slots could have produced ``B max L`` tokens and
    have produced ``sum L``. Over many batches the ratio of sums tends to the ratio of means.

    For exponential lengths the longest of B takes ``H_B`` times the mean (the first of B to end takes 1/B
    of it, the next 1/(B - 1), ...), so that the occupancy is ``1 / H_B``. For lengths uniform from 0 it is
    ``(B + 1) / (2 B)``, never below a half.

    Examples
    --------
    >>> from gpuedu.serving.workload import TRAFFIC, Exponential, Uniform
    >>> azure = TRAFFIC["azure_conversation"].output
    >>> [round(100 * static_occupancy(x, 8), 1) for x in (Exponential(500), Uniform(1, 1000), azure)]
    [36.8, 56.3, 45.6]
    """
    return mean(lengths) / expected_longest(lengths, batch_size)


def static_gain(lengths: Lengths, batch_size: int) -> float:
    """How many times the throughput of static batching continuous batching has, by the lengths of answers.

    Parameters
    ----------
    lengths : Lengths
        Of the outputs.
    batch_size : int
        Slots.

    Returns
    -------
    float
        ``1 / static_occupancy``: with a backlog, if every slot of a continuous batch is filled again at
        once, and an iteration takes the same time whatever its slots compute. ``H_B`` for exponential
        lengths. Prompts are left out: what they cost both ways makes the gain smaller, and static batches
        that pad them to the longest make it larger.

    Examples
    --------
    >>> from gpuedu.serving.workload import Fixed
    >>> static_gain(Fixed(100), 8)
    1.0
    """
    return 1 / static_occupancy(lengths, batch_size)
