"""What tensor parallelism costs: bytes, times, activation memory; and a small memory planner."""

from .activations import (
    end_activation_bytes,
    gpt_activation_bytes,
    layer_activation_bytes,
    recompute_flops_share,
)
from .memory import Memory, model_state_bytes, training_memory
from .time import (
    StepTime,
    bytes_sent,
    communication_seconds,
    rank_flops,
    step_time,
    weight_bytes,
)

__all__ = [
    "Memory",
    "StepTime",
    "bytes_sent",
    "communication_seconds",
    "end_activation_bytes",
    "gpt_activation_bytes",
    "layer_activation_bytes",
    "model_state_bytes",
    "rank_flops",
    "recompute_flops_share",
    "step_time",
    "training_memory",
    "weight_bytes",
]
