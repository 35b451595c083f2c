"""Requests drawn from distributions: the same seed, the same requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Protocol

from gpuedu.checks import check_count

from .lengths import Lengths
from .request import Request


class Arrivals(Protocol):
    """How requests come."""

    def times(self, random: Random) -> Iterator[float]:
        """Arrival times in seconds, without end."""


def make_requests(
    count: int, arrivals: Arrivals, prompt: Lengths, output: Lengths, *, seed: int = 0
) -> list[Request]:
    """Draw a workload.

    Parameters
    ----------
    count : int
        How many requests.
    arrivals : Arrivals
        When they come.
    prompt, output : Lengths
        How long prompts and answers are, independently of each other.
    seed : int
        Fixes everything that is drawn.

    Returns
    -------
    list of Request
        In order of arrival, numbered from 0.

    Raises
    ------
    TypeError, ValueError
        If ``count`` is no int of at least 1.

    Notes
    -----
    Times, prompts and outputs each have a random stream of their own, so that another rate meets the same
    lengths: comparisons are between equal workloads.

    Examples
    --------
    >>> from gpuedu.serving.workload import Fixed, Poisson, Uniform
    >>> requests = make_requests(3, Poisson(2.0), Fixed(100), Uniform(1, 9), seed=1)
    >>> [(round(r.arrival_s, 2), r.prompt_tokens, r.output_tokens) for r in requests]
    [(0.41, 100, 1), (0.98, 100, 9), (1.6, 100, 2)]
    """
    check_count("count", count)
    times = arrivals.times(Random(f"{seed} arrivals"))
    prompts, outputs = Random(f"{seed} prompts").random, Random(f"{seed} outputs").random
    prompt_at, output_at = prompt.quantile, output.quantile
    return [
        Request(number, now, prompt_at(prompts()), output_at(outputs()))
        for number, now in zip(range(count), times, strict=False)
    ]


def offered_load(requests: Iterable[Request]) -> tuple[float, float, float]:
    """Requests, prompt tokens and output tokens a second, from the first arrival to the last.

    Raises
    ------
    ValueError
        If fewer than two times of arrival differ.
    """
    requests = list(requests)
    times = [request.arrival_s for request in requests]
    span = max(times, default=0.0) - min(times, default=0.0)
    if span <= 0:
        raise ValueError("requests: must arrive at two times at least for a rate")
    gaps = len(requests) - 1
    scale = gaps / len(requests) / span
    return (
        gaps / span,
        sum(request.prompt_tokens for request in requests) * scale,
        sum(request.output_tokens for request in requests) * scale,
    )
