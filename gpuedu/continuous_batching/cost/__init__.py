"""What batching gains: occupancy in closed form and simulated, latency against throughput."""

from .frontier import BATCHING, Point, frontier_point, make_scheduler
from .occupancy import expected_longest, harmonic, static_gain, static_occupancy
from .slots import SlotChart, SlotSpan, slot_chart
from .trial import Trial, trial

__all__ = [
    "BATCHING",
    "Point",
    "SlotChart",
    "SlotSpan",
    "Trial",
    "expected_longest",
    "frontier_point",
    "harmonic",
    "make_scheduler",
    "slot_chart",
    "static_gain",
    "static_occupancy",
    "trial",
]
