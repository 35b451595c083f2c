"""Collectives as data: which rank sends which chunks to which rank, in which round.

A plan knows neither clock nor tensor. :mod:`gpuedu.all_reduce.cost` prices it,
:mod:`gpuedu.all_reduce.plot` draws it and :mod:`gpuedu.all_reduce.run` carries it out.
"""

from .collective import Collective, Plan, Transfer
from .direct import all_to_all, parameter_server
from .recursive import recursive_doubling, recursive_halving_doubling
from .rings import all_gather, hierarchical, reduce_scatter, ring
from .trees import broadcast, double_binary_tree, double_tree_links, reduce, tree
from .validation import contributions, validate

ALL_REDUCES = {
    plan.__name__: plan
    for plan in (
        ring,
        tree,
        double_binary_tree,
        recursive_doubling,
        recursive_halving_doubling,
        parameter_server,
    )
}
"""The all-reduces that need a world size alone, by name; ``hierarchical`` takes the nodes and their GPUs."""

__all__ = [
    "ALL_REDUCES",
    "Collective",
    "Plan",
    "Transfer",
    "all_gather",
    "all_to_all",
    "broadcast",
    "contributions",
    "double_binary_tree",
    "double_tree_links",
    "hierarchical",
    "parameter_server",
    "recursive_doubling",
    "recursive_halving_doubling",
    "reduce",
    "reduce_scatter",
    "ring",
    "tree",
    "validate",
]
