"""Many simulations over a grid of parameters, in parallel: joblib, and so a cluster by its backends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

from joblib import Parallel, delayed


def grid(axes: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of some parameters.

    Examples
    --------
    >>> grid({"rate": [1, 2], "policy": ["fcfs"]})
    [{'rate': 1, 'policy': 'fcfs'}, {'rate': 2, 'policy': 'fcfs'}]
    """
    names = list(axes)
    return [dict(zip(names, values, strict=True)) for values in product(*map(list, axes.values()))]


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Iterable[Any]],
    *,
    n_jobs: int = -1,
    progress: bool = True,
) -> list[tuple[dict[str, Any], Any]]:
    """Call a function with every combination of parameters.

    Parameters
    ----------
    run : callable
        Takes the parameters by name; a function of a module, so that other processes find it.
    axes : dict
        Values of each parameter.
    n_jobs : int
        Processes; -1 is one a core. Inside ``joblib.parallel_config(backend="dask")`` or ``"ray"`` the
        work goes to that cluster.
    progress : bool
        Whether to say on standard error how many are done.

    Returns
    -------
    list of (dict, Any)
        Parameters and what ``run`` returned, in the order of the grid.

    Raises
    ------
    ValueError
        If the grid is empty.

    Examples
    --------
    >>> sweep(pow, {"base": [2, 3], "exp": [2]}, n_jobs=1, progress=False)
    [({'base': 2, 'exp': 2}, 4), ({'base': 3, 'exp': 2}, 9)]
    """
    points = grid(axes)
    if not points:
        raise ValueError(f"axes={axes!r}: must have at least one combination")
    jobs = (delayed(run)(**point) for point in points)
    results = []
    for result in Parallel(n_jobs=n_jobs, return_as="generator")(jobs):
        results.append(result)
        if progress:
            end = "\n" if len(results) == len(points) else ""
            print(f"\r{len(results)} of {len(points)}", end=end, file=sys.stderr, flush=True)
    return list(zip(points, results, strict=True))
