"""What a pipeline schedule costs: time, bubble, memory and traffic; simulated, and in closed form.

The simulation (:func:`timeline`) takes any schedule and any times. The closed forms each belong to one
schedule and to even stages; the tests hold the two against each other.
"""

from .memory_formulas import (
    gpipe_peak_activations,
    interleaved_peak_activations,
    one_f_one_b_peak_activations,
    zb_h1_peak_activations,
    zb_h2_peak_activations,
    zb_v_peak_activations,
)
from .simulation import Span, Timeline, memory_over_time, peak_activations, timeline
from .time_formulas import (
    bubble_ratio,
    bubble_share,
    gpipe_makespan,
    interleaved_makespan,
    naive_makespan,
    one_f_one_b_makespan,
    zb_h1_span_bubble,
    zb_h2_span_bubble,
)
from .traffic import boundary_bytes, sends, tensor_parallel_bytes

__all__ = [
    "Span",
    "Timeline",
    "boundary_bytes",
    "bubble_ratio",
    "bubble_share",
    "gpipe_makespan",
    "gpipe_peak_activations",
    "interleaved_makespan",
    "interleaved_peak_activations",
    "memory_over_time",
    "naive_makespan",
    "one_f_one_b_makespan",
    "one_f_one_b_peak_activations",
    "peak_activations",
    "sends",
    "tensor_parallel_bytes",
    "timeline",
    "zb_h1_peak_activations",
    "zb_h1_span_bubble",
    "zb_h2_peak_activations",
    "zb_h2_span_bubble",
    "zb_v_peak_activations",
]
