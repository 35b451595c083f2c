"""Continuous batching as pictures: slots by iterations, and latency against throughput."""

from .frontier_explorer import explorer as frontier
from .slot_figure import slot_figure
from .slots_explorer import explorer as slots

__all__ = ["frontier", "slot_figure", "slots"]
