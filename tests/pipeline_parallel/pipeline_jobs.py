"""What the processes of test_run.py's pipelines do; here, because new processes must import it by name."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from gpuedu.pipeline_parallel.cost import peak_activations
from gpuedu.pipeline_parallel.plan import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    SCHEDULES,
    Action,
    Placement,
    Schedule,
    interleaved_1f1b,
    validate,
    zb_auto,
)
from gpuedu.pipeline_parallel.run import Run, Sleep, measure, predict, run_distributed, run_local

VOCABULARY, WIDTH, TOKENS, SAMPLES = 11, 8, 5, 2


class Block(nn.Module):
    """What a part must cope with: a bare parameter, LayerNorm, biases, GELU, a residual connection."""

    def __init__(self, *, embedding: bool, head: bool):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH) if embedding else nn.Identity()
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False) if head else nn.Identity()

    def forward(self, x):
        x = self.embedding(x) + self.position
        return self.head(x + self.down(functional.gelu(self.up(self.norm(x)))))


def model(schedule: Schedule, seed: int = 0) -> list[nn.Module]:
    """The parts of a small language model in float64, the same in every process."""
    torch.manual_seed(seed)
    last = schedule.depth - 1
    return [Block(embedding=i == 0, head=i == last).double() for i in range(schedule.depth)]


def batch(schedule: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the tokens to predict."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, SAMPLES * schedule.microbatches, TOKENS)
    return tuple(torch.randint(VOCABULARY, shape, generator=generator))


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def all_schedules(p: int, m: int) -> list[Schedule]:
    """Every schedule of the package that p ranks and m microbatches allow."""
    schedules = [zb_auto(p, m, limit) for limit in (1, p, 2 * p)]
    for name, make in SCHEDULES.items():
        if make is interleaved_1f1b:
            schedules += [make(p, m, chunks) for chunks in (1, 2, 3) if m % p == 0]
        elif name != "dualpipe_v" or m >= 2 * p:
            schedules.append(make(p, m))
    return schedules


def random_schedule(seed: int, p: int) -> Schedule:
    """Any valid schedule: a random order of all actions that keeps the dependencies."""
    rng = random.Random(seed)
    placement, chunks = rng.choice([(Placement.LOOP, 1), (Placement.LOOP, 2), (Placement.V, 2)])
    m = rng.randint(1, 5)
    shell = Schedule(f"random_{seed}", p, m, chunks, placement, ((),) * p)
    needs: dict[Action, list[Action]] = {}
    for j in range(m):
        before = None
        for part in range(shell.depth):
            stage, chunk = shell.home(part)
            forward = Action(stage, FORWARD, j, chunk)
            needs[forward] = [before] if before else []
            before = forward
        for part in reversed(range(shell.depth)):
            stage, chunk = shell.home(part)
            split = rng.random() < 0.5
            backward = Action(stage, BACKWARD_INPUT if split else FULL_BACKWARD, j, chunk)
            needs[backward] = [before]
            if split:
                needs[Action(stage, BACKWARD_WEIGHT, j, chunk)] = [backward]
            before = backward
    done: set[Action] = set()
    orders: list[list[Action]] = [[] for _ in range(p)]
    while len(done) < len(needs):
        ready = [a for a, first in needs.items() if a not in done and all(b in done for b in first)]
        action = rng.choice(ready)
        done.add(action)
        orders[action.stage].append(action)
    schedule = Schedule(shell.name, p, m, chunks, placement, tuple(map(tuple, orders)))
    validate(schedule)
    return schedule


def worst_error(parts: list[nn.Module], reference: list[nn.Module]) -> float:
    """Largest difference of any gradient, relative to the largest value in that gradient."""
    pairs = [
        (ours.grad, uncut.grad)
        for part, uncut_part in zip(parts, reference, strict=True)
        for ours, uncut in zip(part.parameters(), uncut_part.parameters(), strict=True)
    ]
    return max(((ours - uncut).abs().max() / uncut.abs().max()).item() for ours, uncut in pairs)


def uncut(schedule: Schedule) -> tuple[list[nn.Module], float]:
    """The same model after the backward of the mean loss over the whole batch, and that loss."""
    parts, (inputs, targets) = model(schedule), batch(schedule)
    loss = loss_fn(nn.Sequential(*parts)(inputs), targets)
    loss.backward()
    return parts, loss.item()


def check(schedule: Schedule, *, local: bool) -> None:
    """Run ``schedule`` and hold loss, every gradient and the activations held against the uncut model."""
    parts, (inputs, targets) = model(schedule), batch(schedule)
    reference, loss = uncut(schedule)
    if local:
        run = run_local(schedule, parts, inputs, targets, loss_fn)
        error = worst_error(parts, reference)
    else:
        rank = dist.get_rank()
        numbers = [schedule.part(rank, chunk) for chunk in range(schedule.chunks)]
        own = [parts[number] for number in numbers]
        first, last = 0 in numbers, schedule.depth - 1 in numbers
        run = run_distributed(schedule, own, inputs if first else None, targets if last else None, loss_fn)
        error = worst_error(own, [reference[number] for number in numbers])
    what = (schedule.name, schedule.stages, schedule.microbatches, schedule.chunks)
    assert error <= 1e-12, (what, error)
    assert abs(run.loss - loss) <= 1e-12, (what, run.loss, loss)
    assert run.peak_activations == peak_activations(schedule), (what, run.peak_activations)


def check_all(microbatches: list[int], seeds: int) -> int:
    """``check`` every schedule on the processes of the group; how many there were."""
    p = dist.get_world_size()
    schedules = [schedule for m in microbatches for schedule in all_schedules(p, m)]
    schedules += [random_schedule(seed, p) for seed in range(seeds)]
    for schedule in schedules:
        check(schedule, local=False)
    return len(schedules)


def torch_against_ours() -> float:
    """Worst difference between our gradients and those of torch.distributed.pipelining's own runs."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    errors = []
    p, rank = dist.get_world_size(), dist.get_rank()
    for name, torch_schedule in (("gpipe", ScheduleGPipe), ("one_f_one_b", Schedule1F1B)):
        schedule = SCHEDULES[name](p, 2 * p)
        ours, theirs = model(schedule)[rank], model(schedule)[rank]
        inputs, targets = batch(schedule)
        run_distributed(schedule, [ours], inputs, targets, loss_fn)
        stage = PipelineStage(theirs, rank, p, torch.device("cpu"))
        arguments = (inputs,) if rank == 0 else ()
        torch_schedule(stage, schedule.microbatches, loss_fn=loss_fn).step(*arguments, target=targets)
        errors.append(worst_error([ours], [theirs]))
    return max(errors)


def sleep_until_close(schedule: Schedule, unit_s: float, delay_units: float, tolerance: float) -> Slept:
    """Measure, with longer sleeps again if other load on the machine has disturbed."""
    for stretch in (1, 2, 4, 8):
        unit = stretch * unit_s
        sleep, delay_s = Sleep(unit, unit, unit), delay_units * unit
        run = measure([schedule], sleep, 1, delay_s)[0]
        if run.timeline.makespan <= (1 + tolerance) * predict(run, delay_s).makespan:
            break
    return Slept(run, sleep, delay_s)


class Slept(NamedTuple):
    run: Run
    sleep: Sleep
    delay_s: float


def sleep_all(unit_s: float, delay_units: float, tolerance: float) -> list[Slept]:
    """Runs of sleeping parts: every schedule, and some over a slow network."""
    p = dist.get_world_size()
    fast = [
        make(p, 2 if name == "naive" else 2 * p, *([2] if name == "interleaved_1f1b" else []))
        for name, make in SCHEDULES.items()
    ]
    fast.append(zb_auto(p, 2 * p, p))
    slow = [SCHEDULES[name](p, 2 * p) for name in ("one_f_one_b", "zb_v")]
    jobs = [(schedule, 0.0) for schedule in fast] + [(schedule, delay_units) for schedule in slow]
    return [sleep_until_close(schedule, unit_s, delay, tolerance) for schedule, delay in jobs]


def on_two(microbatches: list[int], seeds: int) -> tuple[int, float, int]:
    return check_all(microbatches, seeds), torch_against_ours(), torch.get_num_threads()


def on_four(microbatches, seeds, unit_s, delay_units, tolerance) -> tuple[int, list[Slept]]:
    return check_all(microbatches, seeds), sleep_all(unit_s, delay_units, tolerance)
