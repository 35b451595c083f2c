"""The formulas for memory: peak activations of one schedule each.

p is ``stages``, m ``microbatches``, v ``chunks``, r the rank. The unit is the activations of one
microbatch on one whole stage; a chunk's are 1 / v of it.
"""

from __future__ import annotations

from numbers import Real

from gpuedu.checks import check_count

from ..plan.execution import share


def gpipe_peak_activations(stages: int, microbatches: int) -> tuple[Real, ...]:
    """GPipe: m on every rank.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> gpipe_peak_activations(4, 8)
    (8, 8, 8, 8)
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    return (microbatches,) * stages


def one_f_one_b_peak_activations(stages: int, microbatches: int) -> tuple[Real, ...]:
    """1F1B: min(m, p - r) on rank r.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> one_f_one_b_peak_activations(4, 8)
    (4, 3, 2, 1)
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    return tuple(min(microbatches, stages - rank) for rank in range(stages))


def interleaved_peak_activations(stages: int, microbatches: int, chunks: int) -> tuple[Real, ...]:
    """Interleaved 1F1B: min(v m, (v - 1) p + 2 (p - 1 - r) + 1) chunks on rank r.

    On rank 0, and from m = 2p on, that is p (1 + (p - 1) / (p v)) microbatches, where 1F1B holds p.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.
    chunks : int
        Number of model chunks v a rank, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> interleaved_peak_activations(4, 8, 2), interleaved_peak_activations(4, 8, 1)
    ((5.5, 4.5, 3.5, 2.5), (7, 5, 3, 1))
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    check_count("chunks", chunks)
    warm = [(chunks - 1) * stages + 2 * (stages - 1 - rank) for rank in range(stages)]
    return tuple(share(min(chunks * microbatches, forwards + 1), chunks) for forwards in warm)


def zb_h1_peak_activations(stages: int, microbatches: int) -> tuple[Real, ...]:
    """ZB-H1: min(m, p) on every rank.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> zb_h1_peak_activations(4, 8)
    (4, 4, 4, 4)
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    return (min(microbatches, stages),) * stages


def zb_h2_peak_activations(stages: int, microbatches: int) -> tuple[Real, ...]:
    """ZB-H2: min(m, 2p - 1) on every rank.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> zb_h2_peak_activations(4, 8)
    (7, 7, 7, 7)
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    return (min(microbatches, 2 * stages - 1),) * stages


def zb_v_peak_activations(stages: int) -> tuple[Real, ...]:
    """ZB-V, from m = 2p - 1 on: 2p chunks, that is p, on every rank.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.

    Returns
    -------
    tuple
        Per rank r, in microbatches of one whole stage.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> zb_v_peak_activations(4)
    (4, 4, 4, 4)
    """
    check_count("stages", stages)
    return (stages,) * stages
