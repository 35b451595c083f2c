"""Tensor parallelism as pictures: a block cut into pieces, and what is left of t GPUs."""

from gpuedu.tensor_parallel.plot.block import block
from gpuedu.tensor_parallel.plot.block_explorer import explorer as block_explorer
from gpuedu.tensor_parallel.plot.speed import Fabric, speed
from gpuedu.tensor_parallel.plot.speed_explorer import explorer as speed_explorer

__all__ = ["Fabric", "block", "block_explorer", "speed", "speed_explorer"]
