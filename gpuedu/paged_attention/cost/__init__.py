"""What a block table costs and saves: waste over time, block sizes, shared blocks."""

from .beams_by_prefix import Recomputed, beams_by_prefix
from .lengths import sharegpt_like
from .occupancy import SCHEMES, Occupancy, occupancy
from .sharing import Sharing, decode, parallel_sampling_blocks, random_beams, two_beams_saving
from .waste import MemoryUse, average, reserved_to_the_maximum, table_bytes, tail_share, tail_slots

__all__ = [
    "SCHEMES",
    "MemoryUse",
    "Occupancy",
    "Recomputed",
    "Sharing",
    "average",
    "beams_by_prefix",
    "decode",
    "occupancy",
    "parallel_sampling_blocks",
    "random_beams",
    "reserved_to_the_maximum",
    "sharegpt_like",
    "table_bytes",
    "tail_share",
    "tail_slots",
    "two_beams_saving",
]
