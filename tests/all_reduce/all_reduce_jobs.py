"""What the processes of test_run.py do; here, because new processes must import it by name."""

from __future__ import annotations

from itertools import product

import torch
import torch.distributed as dist

from gpuedu.all_reduce import plan as plans
from gpuedu.all_reduce.plan import Collective, Plan
from gpuedu.all_reduce.run import BitFlip, run_checked, run_distributed, run_local
from gpuedu.all_reduce.run.engines import Memory, in_order
from gpuedu.all_reduce.run.layout import chunks_in
from gpuedu.all_reduce.run.program import program

# Elements of the whole array, pieces of a chunk, dtype: none, fewer than chunks, not divisible, divisible
CASES = [
    (0, 1, torch.int64),
    (1, 2, torch.int64),
    (3, 1, torch.int64),
    (48, 1, torch.int64),
    (101, 1, torch.int64),
    (101, 5, torch.int64),
    (101, 1, torch.float32),
    (301, 3, torch.float32),
    (101, 2, torch.bfloat16),
    (30, 1, torch.int8),
]


def all_plans(n: int) -> list[Plan]:
    """Every plan of every collective over ``n`` ranks, with every root."""
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    return [
        *(make(n) for make in plans.ALL_REDUCES.values()),
        *(plans.hierarchical(nodes, n // nodes) for nodes in divisors),
        plans.reduce_scatter(n),
        plans.all_gather(n),
        plans.all_to_all(n),
        *(make(n, root) for make in (plans.broadcast, plans.reduce) for root in range(n)),
    ]


def inputs(plan: Plan, length: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """What each rank hands in, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    at = plan.bounds(length)
    sizes = [at[chunks_in(plan, r).stop] - at[chunks_in(plan, r).start] for r in range(plan.world_size)]
    if dtype.is_floating_point:
        return [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    return [torch.randint(-100, 100, (size,), generator=generator).to(dtype) for size in sizes]


def by_gloo(plan: Plan, arrays: list[torch.Tensor], length: int) -> torch.Tensor | None:
    """What gloo's own collective gives this rank; where gloo wants equal parts, out of a larger one."""
    rank, n, at = dist.get_rank(), plan.world_size, plan.bounds(length)
    work = arrays[rank].clone()
    match plan.collective:
        case Collective.ALL_REDUCE:
            dist.all_reduce(work)
        case Collective.BROADCAST:
            dist.broadcast(work, plan.root)
        case Collective.REDUCE:
            dist.reduce(work, plan.root)
            return work if rank == plan.root else None
        case Collective.REDUCE_SCATTER if length % n == 0 and length:
            mine = work.new_empty(length // n)
            dist.reduce_scatter_tensor(mine, work)
            return mine
        case Collective.REDUCE_SCATTER:
            dist.all_reduce(work)
            return work[at[rank] : at[rank + 1]]
        case Collective.ALL_GATHER:
            largest = max(len(array) for array in arrays)
            parts = [work.new_empty(largest) for _ in range(n)]
            dist.all_gather(parts, torch.cat([work, work.new_zeros(largest - len(work))]))
            return torch.cat([part[: len(array)] for part, array in zip(parts, arrays, strict=True)])
        case Collective.ALL_TO_ALL:
            sent = [at[rank * n + to + 1] - at[rank * n + to] for to in range(n)]
            received = [at[of * n + rank + 1] - at[of * n + rank] for of in range(n)]
            work = work.new_empty(sum(received))
            dist.all_to_all_single(work, arrays[rank].clone(), received, sent)
    return work


def check_everything() -> int:
    """Every plan and case: by dependency, in order, in one process and by gloo; how many there were."""
    rank, n = dist.get_rank(), dist.get_world_size()
    checked = 0
    for plan, (length, pieces, dtype) in product(all_plans(n), CASES):
        arrays = inputs(plan, length, dtype)
        before = arrays[rank].clone()
        where = f"{plan.name} {plan.root}, {length} of {dtype} in {pieces} on rank {rank} of {n}"
        local = run_local(plan, arrays)[rank]
        ours = run_distributed(plan, arrays[rank], pieces=pieces)
        assert torch.equal(arrays[rank], before), where
        assert_same(ours, local, where)
        assert_same(one_by_one(plan, arrays[rank], length, pieces, ours), local, where)
        if not dtype.is_floating_point:
            assert_same(ours, by_gloo(plan, arrays, length), where)
        elif plan.collective is Collective.ALL_REDUCE:
            everybody = [torch.empty_like(ours) for _ in range(n)]
            dist.all_gather(everybody, ours)
            assert all(torch.equal(theirs, ours) for theirs in everybody), where
            torch.testing.assert_close(ours, by_gloo(plan, arrays, length), rtol=0.02, atol=0.1)
        checked += 1
    return checked


def assert_same(ours: torch.Tensor | None, theirs: torch.Tensor | None, where: str) -> None:
    assert (ours is None) == (theirs is None), where
    assert ours is None or torch.equal(ours, theirs), where


def one_by_one(
    plan: Plan, tensor: torch.Tensor, length: int, pieces: int, like: torch.Tensor | None
) -> torch.Tensor | None:
    """As NCCL would be driven."""
    out = tensor.new_empty(0) if like is None else torch.full_like(like, 77)
    memory = Memory(program(plan, dist.get_rank(), length, pieces), tensor, out)
    in_order(memory, lambda version, data: None)
    memory.finish()
    return None if like is None else out


def flipped_everywhere(dtype: torch.dtype, bit: int) -> list[tuple]:
    """A bit flips in each rank's contribution in turn, and in none: plan, culprit, element, findings."""
    n = dist.get_world_size()
    found = []
    for plan, pieces in product(all_plans(n), (1, 3)):
        arrays = inputs(plan, 100, dtype)
        for culprit in [None, *range(n)]:
            element = 7 % len(arrays[culprit or 0])
            faults = () if culprit is None else (BitFlip(culprit, element, bit),)
            result, findings = run_checked(plan, arrays[dist.get_rank()], pieces=pieces, faults=faults)
            if culprit is None:
                assert_same(result, run_local(plan, arrays)[dist.get_rank()], plan.name)
            found.append((plan, culprit, element, findings))
    return found


def refused(make_tensor, options: dict, error: type[Exception]) -> str:
    """What each rank is told when ``make_tensor(rank)`` is handed in; then the group still works."""
    rank, n = dist.get_rank(), dist.get_world_size()
    options = {name: value(rank) if callable(value) else value for name, value in options.items()}
    plan = options.pop("plan", plans.ring(n))
    try:
        run_distributed(plan, make_tensor(rank), **options)
    except error as raised:
        assert run_distributed(plans.ring(n), torch.ones(5))[0] == n
        return str(raised)
    raise AssertionError("not refused")


# Data parallelism by hand, for claim C03


def network(batch_norm: bool = False) -> torch.nn.Module:
    """A small model, the same in every process."""
    torch.manual_seed(0)
    middle = torch.nn.BatchNorm1d(16) if batch_norm else torch.nn.Identity()
    layers = (torch.nn.Linear(8, 16), middle, torch.nn.Tanh(), torch.nn.Linear(16, 5))
    return torch.nn.Sequential(*layers).double()


def batch(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and classes, the same in every process; later tokens are larger, so that shards differ."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 8, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.5, 2, tokens, dtype=torch.float64)[:, None]
    return x, torch.randint(0, 5, (tokens,), generator=generator)


def gradient(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the mean loss over these tokens, flat."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def summed_gradients(
    variants: list[tuple[tuple[int, ...], bool, bool]],
) -> list[torch.Tensor]:
    """What this process gets when all add up the gradients of their shards: shards, weighted, batch norm."""
    results = []
    for shards, weigh, batch_norm in variants:
        own = [torch.split(part, shards)[dist.get_rank()] for part in batch(sum(shards))]
        local = gradient(network(batch_norm), *own)
        if weigh:
            local *= len(own[1]) / sum(shards)
        results.append(run_distributed(plans.ring(len(shards)), local))
    return results
