"""Pipeline schedules carried out on real tensors, in one process or one process a stage.

``python -m gpuedu.pipeline_parallel.run --help`` measures them against what
:mod:`gpuedu.pipeline_parallel.cost` predicts.
"""

from .distributed import run_distributed
from .local import run_local
from .measure import measure, predict, table
from .result import Run
from .split_backward import WeightWork, backward_input, backward_weight
from .workloads import Sleep, Transformer

__all__ = [
    "Run",
    "Sleep",
    "Transformer",
    "WeightWork",
    "backward_input",
    "backward_weight",
    "measure",
    "predict",
    "run_distributed",
    "run_local",
    "table",
]
