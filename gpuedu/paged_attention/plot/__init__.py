"""Two memories side by side: one piece a request, and blocks; and what the slots are for."""

from .memory_explorer import explorer

__all__ = ["explorer"]
