"""What the prices ask of their arguments."""

from __future__ import annotations

from math import isfinite
from numbers import Real

from gpuedu.hardware import Cluster

from ..plan import Plan


def check_amount(name: str, value: Real, *, positive: bool = False) -> None:
    """Raise unless ``value`` is a finite number of at least 0 (above it if ``positive``)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    if not isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name}={value}: must be finite and {'above 0' if positive else 'not negative'}")


def check_placed(plan: Plan, cluster: Cluster) -> None:
    """Raise unless the ranks of ``plan`` have a GPU each in ``cluster``."""
    if not isinstance(cluster, Cluster):
        raise TypeError(f"cluster={cluster!r}: must be a Cluster")
    if plan.world_size > cluster.world_size:
        raise ValueError(
            f"{plan.name} is over {plan.world_size} ranks, and the cluster has {cluster.world_size} GPUs: "
            "must not be more"
        )
