"""All-reduce as pictures: a plan step by step, which algorithm wins where, and what others have measured."""

from gpuedu.all_reduce.plot.measured import measured
from gpuedu.all_reduce.plot.stepper import plan_figure, stepper
from gpuedu.all_reduce.plot.winner_map import winner_map

__all__ = ["measured", "plan_figure", "stepper", "winner_map"]
