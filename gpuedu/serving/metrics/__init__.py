"""Latencies, throughput and occupancy, from the records of a simulation or of a real engine."""

from .records import RequestLog, RequestRecord
from .statistics import Interval, batch_interval, percentile, student_t
from .summary import (
    SLO,
    Spread,
    Summary,
    after_warmup,
    backlog_growth,
    goodput_per_gpu,
    require_steady_state,
    slo_attainment,
    summarize,
)

__all__ = [
    "SLO",
    "Interval",
    "RequestLog",
    "RequestRecord",
    "Spread",
    "Summary",
    "after_warmup",
    "backlog_growth",
    "batch_interval",
    "goodput_per_gpu",
    "percentile",
    "require_steady_state",
    "slo_attainment",
    "student_t",
    "summarize",
]
