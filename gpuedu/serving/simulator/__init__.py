"""Router, replicas and their schedulers, event by event."""

from .events import SimulationLog, simulate
from .occupancy import kv_occupancy, mean_in_system, roofline_utilization, slot_occupancy
from .replica import Iterations, Replica, Usage
from .routing import LeastOutstanding, RandomChoice, RoundRobin, Router

__all__ = [
    "Iterations",
    "LeastOutstanding",
    "RandomChoice",
    "Replica",
    "RoundRobin",
    "Router",
    "SimulationLog",
    "Usage",
    "kv_occupancy",
    "mean_in_system",
    "roofline_utilization",
    "simulate",
    "slot_occupancy",
]
