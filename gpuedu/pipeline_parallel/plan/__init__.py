"""Pipeline schedules as data: which rank runs which pass of which microbatch, in which order.

A schedule knows neither clock nor tensor. :mod:`gpuedu.pipeline_parallel.cost` prices it,
:mod:`gpuedu.pipeline_parallel.plot` draws it and :mod:`gpuedu.pipeline_parallel.run` carries it out.
"""

from .by_hand import from_text
from .full_backward import gpipe, interleaved_1f1b, naive, one_f_one_b
from .schedule import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Action,
    Kind,
    Placement,
    Schedule,
)
from .search import zb_auto
from .v_shaped import dualpipe_v, zb_v
from .validation import validate
from .zero_bubble import zb_h1, zb_h2

SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (naive, gpipe, one_f_one_b, interleaved_1f1b, zb_h1, zb_h2, zb_v, dualpipe_v)
}
"""The schedules that need no times, by name; ``interleaved_1f1b`` takes ``chunks`` besides p and m."""

__all__ = [
    "BACKWARD_INPUT",
    "BACKWARD_WEIGHT",
    "FORWARD",
    "FULL_BACKWARD",
    "SCHEDULES",
    "Action",
    "Kind",
    "Placement",
    "Schedule",
    "dualpipe_v",
    "from_text",
    "gpipe",
    "interleaved_1f1b",
    "naive",
    "one_f_one_b",
    "validate",
    "zb_auto",
    "zb_h1",
    "zb_h2",
    "zb_v",
]
