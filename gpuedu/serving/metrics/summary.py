"""What users and owners of a cluster ask: how fast, how much, how good."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import nan
from statistics import fmean

from gpuedu.checks import check_amount, check_count

from .records import RequestLog
from .statistics import percentile

NANOSECOND_S = 1e-9  # differences of times are no more exact than that


@dataclass(frozen=True)
class SLO:
    """A service-level objective: what a request has to keep to count as good.

    Parameters
    ----------
    ttft_s : float
        Time to first token, at most.
    tpot_s : float
        Time per output token, at most; a single token keeps it.
    """

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        check_amount("ttft_s", self.ttft_s, positive=True)
        check_amount("tpot_s", self.tpot_s, positive=True)


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of one quantity, in seconds; NaN if nobody has it."""

    mean: float
    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values) -> Spread:
        """Of these values."""
        if not values:
            return cls(nan, nan, nan, nan, nan)
        ordered = sorted(values)
        at = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(fmean(values), *at, ordered[-1])


@dataclass(frozen=True)
class Summary:
    """A log in a few numbers.

    Parameters
    ----------
    requests : int
        How many.
    duration_s : float
        From the first arrival to the last token.
    requests_per_s, output_tokens_per_s : float
        Throughput over that time.
    ttft, tpot, worst_gap, latency : Spread
        Time to first token, time per output token, worst inter-token latency (of requests with more than
        one token), end-to-end latency.
    preemptions : int
        Of all requests together.
    """

    requests: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft: Spread
    tpot: Spread
    worst_gap: Spread
    latency: Spread
    preemptions: int


def _check_not_empty(log: RequestLog) -> None:
    if not len(log):
        raise ValueError("log: must have at least one request, has 0")


def summarize(log: RequestLog) -> Summary:
    """A log in a few numbers; ValueError if it is empty."""
    _check_not_empty(log)
    duration = max(log.finish_s) - min(log.arrival_s)
    gaps = [gap for gap, output in zip(log.worst_gap_s, log.output_tokens, strict=True) if output > 1]
    return Summary(
        requests=len(log),
        duration_s=duration,
        requests_per_s=len(log) / duration,
        output_tokens_per_s=sum(log.output_tokens) / duration,
        ttft=Spread.of(log.ttft_s()),
        tpot=Spread.of(log.tpot_s()),
        worst_gap=Spread.of(gaps),
        latency=Spread.of(log.latency_s()),
        preemptions=sum(log.preemptions),
    )


def after_warmup(log: RequestLog, seconds: float) -> RequestLog:
    """The requests that came ``seconds`` after the first one or later, in order of arrival.

    Raises
    ------
    ValueError
        If nobody came so late.
    """
    check_amount("seconds", seconds)
    _check_not_empty(log)
    begin = min(log.arrival_s) + seconds
    kept = sorted(
        (index for index in range(len(log)) if log.arrival_s[index] >= begin),
        key=lambda index: log.arrival_s[index],
    )
    if not kept:
        raise ValueError(f"seconds={seconds}: must leave somebody, the last came before")
    return RequestLog(log[index] for index in kept)


def slo_attainment(log: RequestLog, slo: SLO) -> float:
    """Share of the requests that keep the objective, both parts of it, to the nanosecond."""
    _check_not_empty(log)
    good = sum(
        record.ttft_s <= slo.ttft_s + NANOSECOND_S
        and (record.output_tokens == 1 or record.tpot_s <= slo.tpot_s + NANOSECOND_S)
        for record in log
    )
    return good / len(log)


def goodput_per_gpu(log: RequestLog, slo: SLO, gpus: int) -> float:
    """Requests a second that keep the objective, for each GPU."""
    check_count("gpus", gpus)
    return slo_attainment(log, slo) * summarize(log).requests_per_s / gpus


def backlog_growth(log: RequestLog) -> float:
    """Share of the arrivals of the second half by which the queue grew: 0 when the server keeps up.

    Raises
    ------
    ValueError
        If all came at once: then there is no second half.

    Notes
    -----
    The queue are those who have come and not begun. A server that is offered rho times what it can serve
    begins 1 / rho of it, and the rest piles up: the growth tends to ``1 - 1 / rho``. Below rho = 1 it tends
    to 0, and for a finite log it is noise around it.
    """
    _check_not_empty(log)
    arrivals, starts = sorted(log.arrival_s), sorted(log.start_s)
    last = arrivals[-1]
    middle = (arrivals[0] + last) / 2
    came = len(arrivals) - bisect_right(arrivals, middle)
    if came == 0:
        raise ValueError(f"log: all {len(log)} came at once, must come over time to have a steady state")
    began = bisect_right(starts, last) - bisect_right(starts, middle)
    return (came - began) / came


def require_steady_state(log: RequestLog, tolerance: float = 0.05) -> None:
    """Raise unless the server keeps up: means of a growing queue are means of nothing.

    Raises
    ------
    ValueError
        If the queue grew by more than ``tolerance`` of the arrivals, saying how much was offered; or if all
        came at once.

    Examples
    --------
    >>> from gpuedu.serving.metrics import RequestRecord
    >>> def late(n):  # one comes each second, one is answered every two
    ...     return RequestRecord(n, n, 2 * n, 2 * n + 1, 2 * n + 2, 1, 1)
    >>> require_steady_state(RequestLog(map(late, range(1000))))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: log: offered 2.0 times what was served, the queue grew by 0.50 of the arrivals; ...
    """
    growth = backlog_growth(log)
    if growth > tolerance:
        offered = 1 / (1 - growth) if growth < 1 else float("inf")
        raise ValueError(
            f"log: offered {offered:.1f} times what was served, the queue grew by {growth:.2f} of the "
            "arrivals; must have a utilization below 1 for a steady state"
        )
