"""What the prices ask of their arguments."""

from __future__ import annotations

from gpuedu.hardware import Cluster

from ..plan import Plan


def check_placed(plan: Plan, cluster: Cluster) -> None:
    """Raise unless the ranks of ``plan`` have a GPU each in ``cluster``."""
    if not isinstance(cluster, Cluster):
        raise TypeError(f"cluster={cluster!r}: must be a Cluster")
    if plan.world_size > cluster.world_size:
        raise ValueError(
            f"{plan.name} is over {plan.world_size} ranks, and the cluster has {cluster.world_size} GPUs: "
            "must not be more"
        )
