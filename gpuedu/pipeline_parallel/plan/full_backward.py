"""Schedules with an undivided backward: naive, GPipe, 1F1B and interleaved 1F1B."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuedu.checks import check_count

from .schedule import FORWARD, FULL_BACKWARD, Action, Placement, Schedule

Pass = tuple[int, int]  # (microbatch, chunk)


def naive(stages: int, microbatches: int) -> Schedule:
    """One microbatch in flight: each goes all the way down and back before the next starts.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    Schedule
        One chunk a rank, undivided backwards.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    Examples
    --------
    >>> [a.kind.value + str(a.microbatch) for a in naive(4, 2).actions[3]]
    ['F0', 'B0', 'F1', 'B1']
    """
    return _alternating("naive", stages, microbatches, 1, lambda rank: 0)


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards, microbatches in the same order in both.

    Every rank holds the activations of all m microbatches at once.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    Schedule
        One chunk a rank, undivided backwards.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    Notes
    -----
    The paper runs the backwards in reverse order of the forwards; PyTorch runs them in the same
    order, as here. Makespan and peak memory are the same.

    References
    ----------
    Huang et al. 2019, "GPipe: Efficient Training of Giant Neural Networks using Pipeline
    Parallelism", figure 2c.

    Examples
    --------
    >>> [a.kind.value + str(a.microbatch) for a in gpipe(4, 2).actions[3]]
    ['F0', 'F1', 'B0', 'B1']
    """
    return _alternating("gpipe", stages, microbatches, 1, lambda rank: microbatches)


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """1F1B: after a short warm-up, each rank alternates one forward and one backward.

    Rank r runs p - 1 - r forwards first, which is when the first gradient can reach it, and from
    then on never holds more than p - r microbatches: GPipe's makespan with less memory.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.

    Returns
    -------
    Schedule
        One chunk a rank, undivided backwards.

    Raises
    ------
    ValueError
        If ``stages`` or ``microbatches`` is below 1.

    References
    ----------
    Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using
    Megatron-LM", section 2.2 (there PipeDream-Flush).

    Examples
    --------
    >>> [a.kind.value + str(a.microbatch) for a in one_f_one_b(2, 3).actions[0]]
    ['F0', 'F1', 'B0', 'F2', 'B1', 'B2']
    """
    return _alternating("one_f_one_b", stages, microbatches, 1, lambda rank: stages - 1 - rank)


def interleaved_1f1b(stages: int, microbatches: int, chunks: int) -> Schedule:
    """1F1B over several model chunks a rank: the pipeline fills in steps of one chunk.

    Microbatches advance in groups of p: a rank runs a group through its first chunk, then the same
    group through its second, and so on, and the backwards likewise from the last chunk to the first.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, a multiple of ``stages``.
    chunks : int
        Number of model chunks v a rank, at least 1.

    Returns
    -------
    Schedule
        ``chunks`` chunks a rank in loop placement, undivided backwards.

    Raises
    ------
    ValueError
        If an argument is below 1 or ``microbatches`` is not a multiple of ``stages``.

    Notes
    -----
    Rank r warms up with (v - 1) p + 2 (p - 1 - r) forwards, Megatron-LM's formula. With one chunk
    this is not :func:`one_f_one_b` but 1F1B with its warm-up doubled: the same makespan, peak
    activations of 2p - 1 for p, and slack that hides a slow network.

    References
    ----------
    Narayanan et al. 2021, section 2.2 and figure 4.

    Examples
    --------
    >>> [f"{a.kind.value}{a.microbatch}.{a.chunk}" for a in interleaved_1f1b(2, 2, 2).actions[1]]
    ['F0.0', 'F1.0', 'F0.1', 'B0.1', 'F1.1', 'B1.1', 'B0.0', 'B1.0']
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    if microbatches % stages:
        raise ValueError(
            f"microbatches={microbatches}: interleaved 1F1B moves them in groups of stages={stages}, "
            f"so it must be a multiple of {stages}"
        )
    return _alternating(
        "interleaved_1f1b",
        stages,
        microbatches,
        chunks,
        lambda rank: (chunks - 1) * stages + 2 * (stages - 1 - rank),
    )


def _alternating(
    name: str, stages: int, microbatches: int, chunks: int, warm_up: Callable[[int], int]
) -> Schedule:
    """``warm_up(rank)`` forwards, then a forward and a backward in turn, then what backwards are left."""
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    check_count("chunks", chunks)
    forwards = [
        (microbatch, chunk)
        for group in range(0, microbatches, stages)
        for chunk in range(chunks)
        for microbatch in range(group, min(group + stages, microbatches))
    ]
    backwards = [(microbatch, chunks - 1 - chunk) for microbatch, chunk in forwards]
    actions = tuple(_one_rank(rank, forwards, backwards, warm_up(rank)) for rank in range(stages))
    return Schedule(name, stages, microbatches, chunks, Placement.LOOP, actions)


def _one_rank(
    rank: int, forwards: Sequence[Pass], backwards: Sequence[Pass], warm_up: int
) -> tuple[Action, ...]:
    warm_up = min(warm_up, len(forwards))
    steady = len(forwards) - warm_up
    actions = [Action(rank, FORWARD, *f) for f in forwards[:warm_up]]
    for f, b in zip(forwards[warm_up:], backwards[:steady], strict=True):
        actions += Action(rank, FORWARD, *f), Action(rank, FULL_BACKWARD, *b)
    actions += [Action(rank, FULL_BACKWARD, *b) for b in backwards[steady:]]
    return tuple(actions)
