"""What attention costs: traffic by tensor, arithmetic, memory and time; enumerated, and in closed form."""

from .bounds import leading_traffic, least_traffic
from .figure_2 import GPT2_MEDIUM, PUBLISHED, SRAM_ELEMENTS, Figure2Row, figure_2
from .flash_decoding import DECODING_TABLE, DecodingRow, decoding_table
from .kernels import KernelCost, kernel_costs
from .memory import extra_elements, plan_extra_elements
from .time import KernelTime, attention_time, best_splits, kernel_times
from .traffic import FP32_TENSORS, Elements, Traffic, plan_traffic, total_traffic, traffic
from .visits import Visits, floor_sum, visits
from .work import Work, plan_work, work

__all__ = [
    "DECODING_TABLE",
    "FP32_TENSORS",
    "GPT2_MEDIUM",
    "PUBLISHED",
    "SRAM_ELEMENTS",
    "DecodingRow",
    "Elements",
    "Figure2Row",
    "KernelCost",
    "KernelTime",
    "Traffic",
    "Visits",
    "Work",
    "attention_time",
    "best_splits",
    "decoding_table",
    "extra_elements",
    "figure_2",
    "floor_sum",
    "kernel_costs",
    "kernel_times",
    "leading_traffic",
    "least_traffic",
    "plan_extra_elements",
    "plan_traffic",
    "plan_work",
    "total_traffic",
    "traffic",
    "visits",
    "work",
]
