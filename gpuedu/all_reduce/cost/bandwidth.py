"""Algorithm bandwidth and bus bandwidth, by the definitions of nccl-tests."""

from __future__ import annotations

from gpuedu.checks import check_amount, check_count

from ..plan import Collective


def algorithm_bandwidth(nbytes: float, seconds: float) -> float:
    """Bytes of the array over the time ("algbw").

    Parameters
    ----------
    nbytes : float
        Bytes S of the array, above 0. It is the **total** array: for all-gather and reduce-scatter the
        large side, n times what one rank contributes or keeps; for all-to-all what one rank sends in all,
        to itself too.
    seconds : float
        How long the collective took, above 0.

    Returns
    -------
    float
        Bytes/s.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number above 0.

    References
    ----------
    NVIDIA nccl-tests, ``doc/PERFORMANCE.md``.

    Examples
    --------
    >>> algorithm_bandwidth(8e9, 0.05) / 1e9
    160.0
    """
    check_amount("nbytes", nbytes, positive=True)
    check_amount("seconds", seconds, positive=True)
    return nbytes / seconds


def bus_factor(collective: Collective, world_size: int) -> float:
    """What algorithm bandwidth times this is bus bandwidth.

    Parameters
    ----------
    collective : Collective
        Which one.
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    float
        2 (n - 1) / n for all-reduce; (n - 1) / n for all-gather, reduce-scatter and all-to-all; 1 for
        broadcast and reduce: the bytes that the busiest link has to carry, over those of the array.

    Raises
    ------
    TypeError, ValueError
        If ``collective`` is none or ``world_size`` no int of at least 1.

    References
    ----------
    NVIDIA nccl-tests, ``doc/PERFORMANCE.md``.

    Examples
    --------
    >>> bus_factor(Collective.ALL_REDUCE, 8), bus_factor(Collective.ALL_GATHER, 8)
    (1.75, 0.875)
    """
    if not isinstance(collective, Collective):
        raise TypeError(f"collective={collective!r}: must be a Collective")
    check_count("world_size", world_size)
    if collective in (Collective.BROADCAST, Collective.REDUCE):
        return 1.0
    share = (world_size - 1) / world_size
    return 2 * share if collective is Collective.ALL_REDUCE else share


def bus_bandwidth(collective: Collective, world_size: int, nbytes: float, seconds: float) -> float:
    """Algorithm bandwidth made comparable with the hardware's, whatever n ("busbw").

    It is how fast a link would have to be, in one direction, for an algorithm that sends no more bytes
    than it must. A sum taken inside the switch (NVLS, SHARP) sends fewer and may exceed the link.

    Parameters
    ----------
    collective : Collective
        Which one.
    world_size : int
        Number of ranks n, at least 1.
    nbytes : float
        Bytes of the **total** array, as for :func:`algorithm_bandwidth`.
    seconds : float
        How long it took.

    Returns
    -------
    float
        Bytes/s: :func:`bus_factor` times :func:`algorithm_bandwidth`; 0 for one rank and a collective
        that then sends nothing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    References
    ----------
    NVIDIA nccl-tests, ``doc/PERFORMANCE.md``.

    Examples
    --------
    >>> bus_bandwidth(Collective.ALL_REDUCE, 8, 8e9, 0.05) / 1e9
    280.0
    """
    return bus_factor(collective, world_size) * algorithm_bandwidth(nbytes, seconds)
