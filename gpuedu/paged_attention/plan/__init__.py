"""Who holds which block of the KV cache: a small state machine whose decisions are the plan.

It knows neither clock nor tensor. :mod:`gpuedu.paged_attention.cost` prices what it decides,
:mod:`gpuedu.paged_attention.plot` draws it and :mod:`gpuedu.paged_attention.run` carries it out.
"""

from .block_pool import PREFIX_INDEXES, BlockPool
from .buddy import BuddyAllocator
from .free_queue import EVICTIONS, FREE_QUEUES, FreeQueue, LinkedQueue, RankedQueue, make_free_queue
from .hash_chain import ROOT, HashChainIndex, extend_hashes
from .manager import NULL_BLOCK, KVCacheManager
from .radix_tree import RadixTreeIndex
from .reservation import RESERVATIONS, ContiguousManager, Piece, power_of_two
from .sequence import SequenceLike

__all__ = [
    "EVICTIONS",
    "FREE_QUEUES",
    "NULL_BLOCK",
    "PREFIX_INDEXES",
    "RESERVATIONS",
    "ROOT",
    "BlockPool",
    "BuddyAllocator",
    "ContiguousManager",
    "FreeQueue",
    "HashChainIndex",
    "KVCacheManager",
    "LinkedQueue",
    "Piece",
    "RadixTreeIndex",
    "RankedQueue",
    "SequenceLike",
    "extend_hashes",
    "make_free_queue",
    "power_of_two",
]
