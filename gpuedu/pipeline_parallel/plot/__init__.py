"""Pipeline schedules as pictures: the Gantt figure and the schedule explorer."""

from gpuedu.pipeline_parallel.plot.gantt import KIND_STYLE, gantt
from gpuedu.pipeline_parallel.plot.schedule_explorer import NAMES, explorer

__all__ = ["KIND_STYLE", "NAMES", "explorer", "gantt"]
