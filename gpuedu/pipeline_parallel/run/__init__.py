"""Pipeline schedules carried out on real tensors, in one process or one process a stage.

``python -m gpuedu.pipeline_parallel.run --help`` measures them against what
:mod:`gpuedu.pipeline_parallel.cost` predicts.
"""

from .distributed import run_distributed
from .local import run_local
from .measure import measure, predict, table
from .processes import RankFailed, launch, process_group
from .result import Run
from .split_backward import WeightWork, backward_input, backward_weight
from .watch import PeerLost
from .workloads import Sleep, Transformer

__all__ = [
    "PeerLost",
    "RankFailed",
    "Run",
    "Sleep",
    "Transformer",
    "WeightWork",
    "backward_input",
    "backward_weight",
    "launch",
    "measure",
    "predict",
    "process_group",
    "run_distributed",
    "run_local",
    "table",
]
