"""Attention plans as figures, and their explorers: plain Plotly dicts, no library."""

from .tile_explorer import explorer
from .traffic_explorer import traffic_explorer

__all__ = ["explorer", "traffic_explorer"]
