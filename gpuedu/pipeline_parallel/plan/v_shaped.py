"""Schedules with the model folded into a V: rank 0 holds its first and its last layers."""

from __future__ import annotations

from gpuedu.checks import check_count

from .schedule import Placement, Schedule, numbered


def zb_v(stages: int, microbatches: int) -> Schedule:
    """ZB-V: no bubble within a rank's span, for the memory of 1F1B.

    Two chunks a rank in V placement: a microbatch runs down the ranks through the first chunks and
    up again through the second ones, so that the rank it entered by also starts its backward.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1; below 2p - 1 there are too few to fill the pipeline.

    Returns
    -------
    Schedule
        Two chunks a rank in V placement, backwards split into input and weight gradients.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    Notes
    -----
    The order is fixed, laid out for forward, input and weight gradient that take equally long, and
    leaves no gap then. Each rank holds at most 2p chunks' activations: as much as p microbatches of
    a whole stage.

    References
    ----------
    Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", section 3 and appendix; the same
    order as PyTorch's ``ScheduleZBVZeroBubble``.

    Examples
    --------
    >>> [f"{a.kind.value}{a.microbatch}.{a.chunk}" for a in zb_v(1, 2).actions[0]]
    ['F0.0', 'F0.1', 'I0.1', 'W0.1', 'F1.0', 'I0.0', 'W0.0', 'F1.1', 'I1.1', 'W1.1', 'I1.0', 'W1.0']
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    p, m = stages, max(microbatches, 2 * stages - 1)

    def program(rank: int) -> list[tuple[str, int]]:
        from_end = p - rank
        return [
            ("F0", 2 * from_end - 1),
            ("F1 F0", rank),
            ("F1 I1 W1", from_end),
            ("F0 I0 W0 F1 I1 W1", m - p - from_end + 1),
            ("I0 W0 F1 I1 W1", from_end - 1),
            ("I0 I1", rank),
            ("I0 W0", from_end),
            ("W1", rank),
            ("W0", rank),
        ]

    actions = tuple(numbered(rank, microbatches, program(rank)) for rank in range(p))
    return Schedule("zb_v", stages, microbatches, 2, Placement.V, actions)


def dualpipe_v(stages: int, microbatches: int) -> Schedule:
    """DualPipeV: V placement, a forward of one chunk paired with a backward of the other.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 2p.

    Returns
    -------
    Schedule
        Two chunks a rank in V placement; backwards are full in the steady state and split at both
        ends, as in the original.

    Raises
    ------
    ValueError
        If ``stages`` is below 1 or ``microbatches`` below twice ``stages``.

    Notes
    -----
    The original runs the forward and the backward of a pair at the same time, to hide the one's
    communication behind the other's arithmetic. Here a rank does one action at a time, so the two run
    one after the other, the forward first: the order is the original's, that gain is not shown.

    References
    ----------
    DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.2.1, and the DualPipe repository; the
    same order as PyTorch's ``ScheduleDualPipeV``.

    Examples
    --------
    >>> [f"{a.kind.value}{a.microbatch}.{a.chunk}" for a in dualpipe_v(1, 2).actions[0]]
    ['F0.0', 'F0.1', 'F1.0', 'B0.1', 'F1.1', 'B0.0', 'B1.1', 'I1.0', 'W1.0']
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches, minimum=2 * stages)
    p, m = stages, microbatches

    def program(rank: int) -> list[tuple[str, int]]:
        from_end = p - 1 - rank
        # The last rank + 1 backwards are alternately of chunk 1 and 0; their second half is split.
        full = 2 * ((rank + 1) // 2) + (rank + 1) % 2
        return [
            ("F0", 2 * from_end),
            ("F0 F1", rank + 1),
            ("I1 W F1", from_end),
            ("F0 B1 F1 B0", m - p - from_end),
            ("B1 F1 B0", from_end),
            *_alternate("B", 0, full),
            *_alternate("I", full, 2 * (rank + 1)),
            ("W I0", from_end),
            ("W", rank + 1),
        ]

    actions = tuple(numbered(rank, microbatches, program(rank)) for rank in range(p))
    return Schedule("dualpipe_v", stages, microbatches, 2, Placement.V, actions)


def _alternate(letter: str, first: int, last: int) -> list[tuple[str, int]]:
    """Backwards ``first`` to ``last - 1`` of a run over chunks 1, 0, 1, 0, ..."""
    return [(f"{letter}{(k + 1) % 2}", 1) for k in range(first, last)]
