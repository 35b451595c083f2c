"""Tensor parallelism carried out on real tensors, on processes or on ranks simulated in one process.

``python -m gpuedu.tensor_parallel.run --help`` trains a small model on processes and holds its traffic
against :mod:`gpuedu.tensor_parallel.plan`.
"""

from .block import Attention, Block, FeedForward, Setting
from .checkpoint import layout, reshard, shard, unshard
from .cut import Cut, Part
from .decoder import Decoder
from .distributed import DistributedGroup, world
from .dropout import Dropout, RandomState
from .gradients import sum_gradients
from .group import Call, Group, Traffic, tally
from .linear import ColumnParallelLinear, RowParallelLinear, column_parallel_linear
from .measure import Measurement, measure, planned_traffic, table
from .regions import (
    copy_to,
    gather_from,
    gather_tokens,
    reduce_from,
    reduce_scatter_tokens,
    scatter_to,
    scatter_tokens,
)
from .simulated import alone, simulate
from .vocabulary import VocabParallelEmbedding, VocabParallelTable, vocab_parallel_cross_entropy

__all__ = [
    "Attention",
    "Block",
    "Call",
    "ColumnParallelLinear",
    "Cut",
    "Decoder",
    "DistributedGroup",
    "Dropout",
    "FeedForward",
    "Group",
    "Measurement",
    "Part",
    "RandomState",
    "RowParallelLinear",
    "Setting",
    "Traffic",
    "VocabParallelEmbedding",
    "VocabParallelTable",
    "alone",
    "column_parallel_linear",
    "copy_to",
    "gather_from",
    "gather_tokens",
    "layout",
    "measure",
    "planned_traffic",
    "reduce_from",
    "reduce_scatter_tokens",
    "reshard",
    "scatter_to",
    "scatter_tokens",
    "shard",
    "simulate",
    "sum_gradients",
    "table",
    "tally",
    "unshard",
    "vocab_parallel_cross_entropy",
    "world",
]
