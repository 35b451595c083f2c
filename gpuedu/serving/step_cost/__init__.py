"""Seconds of one iteration: from the roofline, from tables of measured times, or from a fit."""

from .capacity import kv_cache_blocks
from .fitted import Iteration, LinearStepCost, fit_step_cost
from .interface import ConstantStepCost, Line, StepCost
from .piecewise import PiecewiseStepCost, fit_piecewise_step_cost
from .roofline import RooflineStepCost
from .table import TableStepCost

__all__ = [
    "ConstantStepCost",
    "Iteration",
    "Line",
    "LinearStepCost",
    "PiecewiseStepCost",
    "RooflineStepCost",
    "StepCost",
    "TableStepCost",
    "fit_piecewise_step_cost",
    "fit_step_cost",
    "kv_cache_blocks",
]
