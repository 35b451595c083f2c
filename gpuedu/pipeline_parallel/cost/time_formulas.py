"""The formulas for time: makespan and bubble of one schedule each, for even stages.

p is ``stages``, m ``microbatches``, v ``chunks``; F, I and W are the times of one microbatch on one whole
stage, B = I + W the full backward, c the ``transfer``.
"""

from __future__ import annotations

from numbers import Real

from gpuedu.checks import check_amount, check_count

from ..plan.execution import share


def bubble_ratio(stages: int, microbatches: int, chunks: int = 1) -> float:
    """Bubble over ideal time of GPipe, 1F1B and interleaved 1F1B: (p - 1) / (v m).

    The step takes ideal * (1 + ratio), where ideal is m (F + B).

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
    float
        Without a unit.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> bubble_ratio(8, 32), bubble_ratio(8, 32, chunks=2)
    (0.21875, 0.109375)
    """
    _check(stages, microbatches, chunks)
    return (stages - 1) / (chunks * microbatches)


def bubble_share(stages: int, microbatches: int, chunks: int = 1) -> float:
    """Bubble over makespan of GPipe, 1F1B and interleaved 1F1B: (p - 1) / (v m + p - 1).

    The part of the step that a rank idles. Ideal time times 1 + *share* is not the step: that takes
    :func:`bubble_ratio`.

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
    float
        Without a unit.

    Raises
    ------
    ValueError
        If a count is below 1.

    Examples
    --------
    >>> round(bubble_share(8, 32), 4)
    0.1795
    """
    _check(stages, microbatches, chunks)
    return (stages - 1) / (chunks * microbatches + stages - 1)


def naive_makespan(
    stages: int, microbatches: int, *, forward: Real = 1, backward: Real = 2, transfer: Real = 0
) -> Real:
    """One microbatch in flight: m (p (F + B) + 2 (p - 1) c).

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.
    forward, backward : float
        Time of F and of the full backward B of one microbatch on one whole stage, any unit.
    transfer : float
        Time c from the end of an action to when another rank can use its result, same unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1 or a time negative.

    Examples
    --------
    >>> naive_makespan(4, 8)
    96
    """
    _check(stages, microbatches, forward=forward, backward=backward, transfer=transfer)
    return microbatches * (stages * (forward + backward) + 2 * (stages - 1) * transfer)


def gpipe_makespan(
    stages: int, microbatches: int, *, forward: Real = 1, backward: Real = 2, transfer: Real = 0
) -> Real:
    """GPipe: (m + p - 1) (F + B) + 2 (p - 1) c.

    The first microbatch runs down p stages and m - 1 follow at intervals of F; then the same upward. A
    slow network is paid once down and once up.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.
    forward, backward : float
        Time of F and of the full backward B of one microbatch on one whole stage, any unit.
    transfer : float
        Time c from the end of an action to when another rank can use its result, same unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1 or a time negative.

    Examples
    --------
    >>> gpipe_makespan(8, 32), round(gpipe_makespan(8, 32, transfer=0.1), 1)
    (117, 118.4)
    """
    _check(stages, microbatches, forward=forward, backward=backward, transfer=transfer)
    fill = stages - 1
    return (microbatches + fill) * (forward + backward) + 2 * fill * transfer


def one_f_one_b_makespan(
    stages: int, microbatches: int, *, forward: Real = 1, backward: Real = 2, transfer: Real = 0
) -> Real:
    """1F1B: (m + p - 1) (F + B) + 2 (p - 1 + k) c, where k = (m - 2) - floor((m - 2) / p).

    At c = 0 it is GPipe's. With c > 0 there is no slack: rank 0 lets microbatch j + p in only after
    microbatch j has come back, which takes p (F + B) + 2 (p - 1) c; so every p microbatches cost
    2 (p - 1) c more, and k counts how many of them pay 2c.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.
    forward, backward : float
        Time of F and of the full backward B of one microbatch on one whole stage, any unit.
    transfer : float
        Time c from the end of an action to when another rank can use its result, same unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1 or a time negative.

    Examples
    --------
    >>> one_f_one_b_makespan(8, 32), round(one_f_one_b_makespan(8, 32, transfer=0.1), 1)
    (117, 123.8)
    """
    _check(stages, microbatches, forward=forward, backward=backward, transfer=transfer)
    fill = stages - 1
    delayed = (microbatches - 2) - (microbatches - 2) // stages
    return (microbatches + fill) * (forward + backward) + 2 * (fill + delayed) * transfer


def interleaved_makespan(
    stages: int,
    microbatches: int,
    chunks: int,
    *,
    forward: Real = 1,
    backward: Real = 2,
    transfer: Real = 0,
) -> Real:
    """Interleaved 1F1B: (m + (p - 1) / v) (F + B) + 2 (p v - 1) c.

    Its doubled warm-up leaves slack for the network: only the first microbatch on its way down through
    all p v parts and the last one on its way up pay for it, as long as c is at most one chunk's shorter
    pass, min(F, B) / v. With one stage nothing is sent, and the last term is 0.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, a multiple of ``stages``.
    chunks : int
        Number of model chunks v a rank, at least 1.
    forward, backward : float
        Time of F and of the full backward B of one microbatch on one whole stage, any unit.
    transfer : float
        Time c from the end of an action to when another rank can use its result, same unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1, a time negative, or ``transfer`` beyond what the formula covers.

    Examples
    --------
    >>> interleaved_makespan(8, 32, 2), round(interleaved_makespan(8, 32, 1, transfer=0.1), 1)
    (106.5, 118.4)
    """
    _check(stages, microbatches, chunks, forward=forward, backward=backward, transfer=transfer)
    if microbatches % stages:
        raise ValueError(f"microbatches={microbatches}: must be a multiple of stages={stages}")
    if transfer * chunks > min(forward, backward):
        raise ValueError(
            f"transfer={transfer}: the formula holds up to min(forward, backward) / chunks = "
            f"{min(forward, backward) / chunks}"
        )
    compute = share((chunks * microbatches + stages - 1) * (forward + backward), chunks)
    hops = stages * chunks - 1 if stages > 1 else 0
    return compute + 2 * hops * transfer


def zb_h1_span_bubble(
    stages: int, *, forward: Real = 1, backward_input: Real = 1, backward_weight: Real = 1
) -> Real:
    """ZB-H1, bubble within a rank's span, from m = p on: (p - 1) (F + I - min(F, W)).

    The paper's (p - 1) (F + I - W) is this for W <= F; a W longer than F fills no more of the gap.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    forward, backward_input, backward_weight : float
        Time of F, I and W of one microbatch on one whole stage, any unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1 or a time negative.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", table 2.

    Examples
    --------
    >>> zb_h1_span_bubble(8)
    7
    """
    _check(stages, forward=forward, backward_input=backward_input, backward_weight=backward_weight)
    return (stages - 1) * (forward + backward_input - min(forward, backward_weight))


def zb_h2_span_bubble(
    stages: int, *, forward: Real = 1, backward_input: Real = 1, backward_weight: Real = 1
) -> Real:
    """ZB-H2, bubble within a rank's span, from m = 2p - 1 on: (p - 1) max(0, F + I - 2 min(F, W)).

    The paper's (p - 1) (F + I - 2W) is this for W <= F, where it is not negative.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    forward, backward_input, backward_weight : float
        Time of F, I and W of one microbatch on one whole stage, any unit.

    Returns
    -------
    float
        In the unit of the times.

    Raises
    ------
    ValueError
        If a count is below 1 or a time negative.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", table 2.

    Examples
    --------
    >>> zb_h2_span_bubble(8), zb_h2_span_bubble(8, backward_input=2)
    (0, 7)
    """
    _check(stages, forward=forward, backward_input=backward_input, backward_weight=backward_weight)
    return (stages - 1) * max(0, forward + backward_input - 2 * min(forward, backward_weight))


def _check(stages: int, microbatches: int = 1, chunks: int = 1, **times: Real) -> None:
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    check_count("chunks", chunks)
    for name, time in times.items():
        check_amount(name, time)
