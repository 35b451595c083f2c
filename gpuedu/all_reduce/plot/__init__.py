"""All-reduce as pictures: a plan step by step, and which algorithm wins where."""

from gpuedu.all_reduce.plot.stepper import stepper
from gpuedu.all_reduce.plot.winner_map import winner_map

__all__ = ["stepper", "winner_map"]
