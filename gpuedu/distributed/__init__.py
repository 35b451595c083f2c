"""Processes that run together: started, joined into a group, and ended together when one fails.

Everything in the package that needs more than one process starts and ends them here.
"""

from .processes import RankFailed, launch, process_group
from .watch import PeerLost, talking_to

__all__ = ["PeerLost", "RankFailed", "launch", "process_group", "talking_to"]
