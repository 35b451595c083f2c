"""Zero-bubble schedules by hand: the backward split so that weight gradients fill the gaps."""

from __future__ import annotations

from collections.abc import Sequence

from gpuedu.checks import check_count

from .schedule import Placement, Schedule, numbered


def zb_h1(stages: int, microbatches: int) -> Schedule:
    """ZB-H1: 1F1B with split backwards and 1F1B's peak memory, a third of its bubble.

    Rank r runs p - r forwards, then input gradients and forwards in turn; its weight gradients
    follow r microbatches behind, which evens the memory of all ranks out to p microbatches.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    Schedule
        One chunk a rank, backwards split into input and weight gradients.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    Notes
    -----
    The order is fixed, laid out for forward, input and weight gradient that take equally long;
    :func:`gpuedu.pipeline_parallel.plan.zb_auto` looks at the times.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 2.2 and figure 2 (their B is I here).

    Examples
    --------
    >>> [a.kind.value + str(a.microbatch) for a in zb_h1(2, 2).actions[1]]
    ['F0', 'I0', 'F1', 'I1', 'W0', 'W1']
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    warm_up = [stages - rank for rank in range(stages)]
    return delayed_weights("zb_h1", microbatches, warm_up, delay=range(stages))


def zb_h2(stages: int, microbatches: int) -> Schedule:
    """ZB-H2: enough forwards before the first backward to leave no gap, for twice the memory.

    Rank r runs 2 (p - r) - 1 forwards before its first backward, and its weight gradients follow 2r
    microbatches behind. With equal times each rank then works without a pause: the schedule is a
    parallelogram.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1; below 2p - 1 there are too few to fill the gap.

    Returns
    -------
    Schedule
        One chunk a rank, backwards split into input and weight gradients.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    Notes
    -----
    No bubble *within the span of a rank*: the last rank still starts p - 1 forwards after the first.
    To let the next step start in that gap, the optimizer step must not synchronize all ranks, which
    the paper solves by validating the global gradient norm afterwards.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 2.2, figure 3, and section 4.

    Examples
    --------
    >>> [a.kind.value + str(a.microbatch) for a in zb_h2(2, 3).actions[0]]
    ['F0', 'F1', 'F2', 'I0', 'W0', 'I1', 'W1', 'I2', 'W2']
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    warm_up = [2 * (stages - rank) - 1 for rank in range(stages)]
    return delayed_weights("zb_h2", microbatches, warm_up, delay=range(0, 2 * stages, 2))


def delayed_weights(name: str, microbatches: int, warm_up: Sequence[int], delay: Sequence[int]) -> Schedule:
    """Per rank ``warm_up`` forwards, then in turn I, the W of ``delay`` microbatches before, and F.

    A rank holds at most ``warm_up + delay`` microbatches.
    """

    def program(rank: int) -> list[tuple[str, int]]:
        first = min(warm_up[rank], microbatches)
        rounds = [("F0", first)]
        for j in range(microbatches):
            rounds.append(("I0", 1))
            rounds.append(("W0", int(j >= delay[rank])))
            rounds.append(("F0", int(first + j < microbatches)))
        return [*rounds, ("W0", min(delay[rank], microbatches))]

    stages = len(warm_up)
    actions = tuple(numbered(rank, microbatches, program(rank)) for rank in range(stages))
    return Schedule(name, stages, microbatches, 1, Placement.LOOP, actions)
