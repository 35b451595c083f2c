"""Tensor parallelism as data: which tensor is cut along which axis, which collective runs where.

A sharding knows neither clock nor numbers. :mod:`gpuedu.tensor_parallel.cost` prices it,
:mod:`gpuedu.tensor_parallel.plot` draws it and :mod:`gpuedu.tensor_parallel.run` carries it out.
"""

from .communication import (
    BACKWARD,
    FORWARD,
    LAYER_SITES,
    RECOMPUTE,
    SITES,
    STEP,
    Communication,
    Phase,
)
from .sharding import Sharding, shard
from .tensor import Tensor
from .validation import validate
from .weights import padded_vocabulary, usable

__all__ = [
    "BACKWARD",
    "FORWARD",
    "LAYER_SITES",
    "RECOMPUTE",
    "SITES",
    "STEP",
    "Communication",
    "Phase",
    "Sharding",
    "Tensor",
    "padded_vocabulary",
    "shard",
    "usable",
    "validate",
]
