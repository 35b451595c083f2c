"""Which algorithm to take, by what each would take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuedu.checks import check_amount
from gpuedu.hardware import Link

from ..plan import ALL_REDUCES
from .closed_forms import Terms, best_pieces, collective_time, terms

NCCL_ALGORITHMS = ("ring", "double_binary_tree")
"""What NCCL has over point-to-point links; it also has algorithms that add inside the switch."""

_PIECEWISE = "double_binary_tree"


def candidate_times(
    world_size: int,
    nbytes: float,
    link: Link,
    *,
    algorithms: Iterable[str] = tuple(ALL_REDUCES),
    gamma: float = 0.0,
) -> dict[str, float]:
    """What an all-reduce takes by each algorithm, the double binary tree with the best number of pieces.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.
    nbytes : float
        Bytes of the array.
    link : Link
        Between any two ranks.
    algorithms : iterable of str
        Names from :data:`~gpuedu.all_reduce.plan.ALL_REDUCES`.
    gamma : float
        Seconds to add one byte.

    Returns
    -------
    dict
        Seconds by name.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> times = candidate_times(64, 1e6, LINKS["InfiniBand-NDR"], algorithms=NCCL_ALGORITHMS)
    >>> {name: round(1e6 * seconds) for name, seconds in times.items()}
    {'ring': 543, 'double_binary_tree': 220}
    """
    return _times(_prices(world_size, algorithms), world_size, nbytes, link, gamma)


def winner(
    world_size: int,
    nbytes: float,
    link: Link,
    *,
    algorithms: Iterable[str] = tuple(ALL_REDUCES),
    gamma: float = 0.0,
) -> str:
    """The algorithm that takes the least time; of equals the first one named.

    Parameters
    ----------
    world_size, nbytes, link, algorithms, gamma
        As for :func:`candidate_times`.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed, or no algorithm is named.

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> [winner(384, size, LINKS["InfiniBand-NDR"]) for size in (1e3, 1e6, 1e8, 1e10)]
    ['recursive_doubling', 'recursive_halving_doubling', 'double_binary_tree', 'ring']
    """
    times = candidate_times(world_size, nbytes, link, algorithms=algorithms, gamma=gamma)
    return min(times, key=times.__getitem__)


def winner_map(
    world_sizes: Sequence[int],
    sizes: Sequence[float],
    link: Link,
    *,
    algorithms: Iterable[str] = tuple(ALL_REDUCES),
    gamma: float = 0.0,
) -> list[list[str]]:
    """:func:`winner` over a grid.

    Parameters
    ----------
    world_sizes : sequence of int
        Numbers of ranks, one row each.
    sizes : sequence of float
        Bytes, one column each.
    link, algorithms, gamma
        As for :func:`candidate_times`.

    Returns
    -------
    list of list of str
        ``[row][column]``, names.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed, or no algorithm is named.

    Notes
    -----
    All have the same link to all, which is kind to algorithms with far partners; and the double binary
    tree is priced by its formula, which :func:`~gpuedu.all_reduce.cost.simulate` does not quite reach.

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> winner_map((4, 64), (1e3, 1e9), LINKS["NVLink4"], algorithms=NCCL_ALGORITHMS)
    [['ring', 'ring'], ['double_binary_tree', 'ring']]
    """
    algorithms = tuple(algorithms)
    rows = []
    for n in world_sizes:
        prices = _prices(n, algorithms)
        columns = (_times(prices, n, size, link, gamma) for size in sizes)
        rows.append([min(times, key=times.__getitem__) for times in columns])
    return rows


def _prices(world_size: int, algorithms: Iterable[str]) -> dict[str, Terms]:
    """What is the same for every size."""
    prices = {name: terms(name, world_size) for name in algorithms}
    if not prices or not prices.keys() <= ALL_REDUCES.keys():
        raise ValueError(f"algorithms={[*prices]}: must be some of {', '.join(ALL_REDUCES)}")
    return prices


def _times(
    prices: dict[str, Terms], world_size: int, nbytes: float, link: Link, gamma: float
) -> dict[str, float]:
    """Seconds by name at one size."""
    check_amount("nbytes", nbytes)
    check_amount("gamma", gamma)
    times = {name: price.seconds(nbytes, link, gamma) for name, price in prices.items()}
    if _PIECEWISE in times and (pieces := best_pieces(world_size, nbytes, link)) > 1:
        times[_PIECEWISE] = collective_time(_PIECEWISE, world_size, nbytes, link, pieces=pieces, gamma=gamma)
    return times
