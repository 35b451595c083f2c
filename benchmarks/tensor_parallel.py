"""A training step of a tensor-parallel MLP on processes, against DTensor's.

Run with ``python -m benchmarks.tensor_parallel``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from benchmarks._harness import row, write
from gpuedu.distributed import launch
from gpuedu.tensor_parallel.run import ColumnParallelLinear, RowParallelLinear, layout, shard, world

TOKENS = 256
REPEATS = 15
TARGET = {"of": "DTensor", "at_most": 1.2, "size": {}}


def whole_mlp(hidden: int) -> nn.Sequential:
    """The MLP of a GPT layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))


def ours(hidden: int) -> nn.Module:
    """Cut by this package."""
    group = world()
    mlp = nn.Sequential(
        ColumnParallelLinear(hidden, 4 * hidden, group),
        nn.GELU(),
        RowParallelLinear(4 * hidden, hidden, group),
    )
    mlp.load_state_dict(shard(whole_mlp(hidden).state_dict(), layout(mlp), group.size)[group.rank])
    return mlp


def dtensor(hidden: int) -> nn.Module:
    """Cut by torch."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(whole_mlp(hidden), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


RIVALS = {"gpuedu": ours, "DTensor": dtensor}


def step(mlp: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward; the output and the gradient of the input."""
    mlp.zero_grad()
    x = x.clone().requires_grad_()
    y = mlp(x)
    y.backward(torch.ones_like(y))
    return y.detach(), x.grad


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call that all ranks begin together."""
    gc.collect()
    dist.barrier()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(hidden: int) -> dict[str, list[float]]:
    """Samples of all rivals in turns, after two steps that are not counted and have to agree."""
    x = torch.randn(1, TOKENS, hidden, generator=torch.Generator().manual_seed(1))
    models = {name: make(hidden) for name, make in RIVALS.items()}
    for _ in range(2):
        results = [step(mlp, x) for mlp in models.values()]
    for result in results[1:]:
        for mine, theirs in zip(results[0], result, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    samples: dict[str, list[float]] = {name: [] for name in models}
    for i in range(REPEATS):
        for name in sorted(models, reverse=i % 2 == 1):
            samples[name].append(timed(lambda: step(models[name], x)))  # noqa: B023
    return samples


def mlp_step_as_it_grows(ranks: int) -> dict:
    rows = []
    for hidden in (128, 256, 512, 1024):
        samples = launch(ranks, measure, hidden, timeout_s=300)[0]
        rows.append(row({"ranks": ranks, "tokens": TOKENS, "hidden": hidden, "inner": 4 * hidden}, samples))
        times = {name: f"{1e3 * seconds:.1f} ms" for name, seconds in rows[-1]["median_s"].items()}
        print(rows[-1]["size"], times, f"of DTensor's time: {1 / rows[-1]['times_ours']['DTensor']:.2f}")
    return {"name": f"MLP step on {ranks} processes", "target_ratio": TARGET, "rows": rows}


def main() -> None:
    benchmarks = [mlp_step_as_it_grows(ranks) for ranks in (2, 4)]
    print(write("tensor_parallel", ["torch"], benchmarks).name)


if __name__ == "__main__":
    main()
