"""Collectives carried out on real arrays: in one process, or by one process a rank.

``python -m gpuedu.all_reduce.run --help`` measures them.
"""

from .checksum import Finding, run_checked
from .distributed import run_distributed
from .faults import BitFlip, Death, Straggler
from .local import run_local
from .measure import Measurement, measure, table

__all__ = [
    "BitFlip",
    "Death",
    "Finding",
    "Measurement",
    "Straggler",
    "measure",
    "run_checked",
    "run_distributed",
    "run_local",
    "table",
]
