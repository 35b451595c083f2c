"""What a plan takes on given hardware: round by round, by dependency in pieces, and by formula.

Three prices of the same thing. :func:`round_times` takes any plan at its word, :func:`simulate` lets go
of the rounds and streams pieces through it, and :func:`collective_time` is the closed form, equal to the
first where it applies.
"""

from .bandwidth import algorithm_bandwidth, bus_bandwidth, bus_factor
from .choice import NCCL_ALGORITHMS, candidate_times, winner, winner_map
from .closed_forms import (
    Terms,
    best_pieces,
    collective_time,
    crossover,
    flat_ring_time,
    hierarchical_time,
    terms,
)
from .measured import (
    FITS,
    SWEEPS,
    Fit,
    Sweep,
    fit_latency_and_bandwidth,
)
from .rounds import plan_time, reduction_gamma, round_times
from .simulation import Message, Trace, simulate

__all__ = [
    "FITS",
    "NCCL_ALGORITHMS",
    "SWEEPS",
    "Fit",
    "Message",
    "Sweep",
    "Terms",
    "Trace",
    "algorithm_bandwidth",
    "best_pieces",
    "bus_bandwidth",
    "bus_factor",
    "candidate_times",
    "collective_time",
    "crossover",
    "fit_latency_and_bandwidth",
    "flat_ring_time",
    "hierarchical_time",
    "plan_time",
    "reduction_gamma",
    "round_times",
    "simulate",
    "terms",
    "winner",
    "winner_map",
]
