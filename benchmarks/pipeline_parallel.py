"""How fast a schedule is priced, against what one would write or find instead.

Run with ``python -m benchmarks.pipeline_parallel``.
"""

from __future__ import annotations

from functools import partial

import networkx as nx
from torch.distributed.pipelining import schedules as torch_schedules

from benchmarks._harness import row, sample, write
from gpuedu.pipeline_parallel.cost import memory_over_time, timeline
from gpuedu.pipeline_parallel.plan import (
    FORWARD,
    FULL_BACKWARD,
    SCHEDULES,
    Schedule,
    one_f_one_b,
    zb_auto,
)

FORWARD_TIME, BACKWARD_TIME = 1, 2


def inputs(schedule: Schedule, stage: int, kind: object, microbatch: int) -> list[tuple]:
    """What an action of a schedule with one chunk and undivided backwards needs."""
    if kind is FORWARD:
        return [(stage - 1, FORWARD, microbatch)] if stage > 0 else []
    needs = [(stage, FORWARD, microbatch)]
    return [*needs, (stage + 1, FULL_BACKWARD, microbatch)] if stage < schedule.stages - 1 else needs


def with_networkx(schedule: Schedule) -> float:
    """Makespan as the longest path of a graph: the textbook way, by a well-kept library."""
    graph = nx.DiGraph()
    for actions in schedule.actions:
        before = None
        for stage, kind, microbatch, _ in actions:
            action = (stage, kind, microbatch)
            time = FORWARD_TIME if kind is FORWARD else BACKWARD_TIME
            graph.add_edge("start", action, time=time)
            for source in [*inputs(schedule, *action), *([before] if before else [])]:
                graph.add_edge(source, action, time=time)
            before = action
    return nx.dag_longest_path_length(graph, weight="time")


def with_sweeps(schedule: Schedule) -> float:
    """Makespan by sweeping over all actions until no end moves: the simulator one writes first."""
    ends: dict[tuple, float] = {}
    moved = True
    while moved:
        moved = False
        for actions in schedule.actions:
            clock = 0
            for stage, kind, microbatch, _ in actions:
                action = (stage, kind, microbatch)
                for source in inputs(schedule, *action):
                    clock = max(clock, ends.get(source, 0))
                clock += FORWARD_TIME if kind is FORWARD else BACKWARD_TIME
                if ends.get(action) != clock:
                    ends[action], moved = clock, True
    return max(ends.values())


def with_torch(schedule: Schedule) -> int:
    """PyTorch's dry run, with sends and receives put in first: steps of one length, no times."""
    order = {
        rank: [
            torch_schedules._Action(stage, torch_schedules._ComputationType(kind.value), microbatch)
            for stage, kind, microbatch, _ in actions
        ]
        for rank, actions in enumerate(schedule.actions)
    }
    home = int  # one stage a rank: stage 3 is on rank 3
    order = torch_schedules._add_send_recv(order, home, schedule.stages)
    steps = torch_schedules._simulate_comms_compute(order, home, schedule.stages)
    return max(map(len, steps.values()))


def ours(schedule: Schedule) -> float:
    """Makespan and everything else that a timeline holds."""
    return timeline(schedule, forward=FORWARD_TIME, backward_input=1, backward_weight=1).makespan


# Each is measured up to as many microbatches as it does in seconds, not minutes.
RIVALS = {
    "gpuedu": (ours, 2048),
    "networkx": (with_networkx, 1024),
    "torch dry run": (with_torch, 512),
    "sweeps": (with_sweeps, 128),
}


def timeline_as_it_grows() -> dict:
    rows = []
    for microbatches in (64, 128, 256, 512, 1024, 2048):
        schedule = one_f_one_b(64, microbatches)
        assert ours(schedule) == (microbatches + 63) * (FORWARD_TIME + BACKWARD_TIME)
        samples = {
            name: sample(partial(price, schedule), repeats=7 if price is ours else 3)
            for name, (price, most) in RIVALS.items()
            if microbatches <= most
        }
        size = {"stages": 64, "microbatches": microbatches, "actions": 2 * 64 * microbatches}
        rows.append(row(size, samples))
        print(size, {name: f"{seconds:.3f} s" for name, seconds in rows[-1]["median_s"].items()})
    targets = {"target_s": {"microbatches": 1024, "seconds": 0.6}, "target_growth": 2.4}
    return {"name": "timeline of 1F1B", **targets, "rows": rows}


def what_an_explorer_asks() -> dict:
    makers = {name: make for name, make in SCHEDULES.items() if name != "interleaved_1f1b"}
    makers["interleaved_1f1b"] = partial(SCHEDULES["interleaved_1f1b"], chunks=2)
    makers["zb_auto"] = partial(zb_auto, memory_limit=8, transfer=0.1)

    def ask(make, microbatches):
        memory_over_time(timeline(make(8, microbatches), transfer=0.1))

    rows = []
    for microbatches in (32, 64, 128):
        samples = {name: sample(partial(ask, make, microbatches)) for name, make in makers.items()}
        rows.append(row({"stages": 8, "microbatches": microbatches}, samples))
        print(rows[-1]["size"], {name: f"{1e3 * s:.1f} ms" for name, s in rows[-1]["median_s"].items()})
    for each in rows:
        del each["times_ours"]  # these are not rivals
    return {"name": "plan, timeline and memory of each schedule", "rows": rows}


def main() -> None:
    benchmarks = [timeline_as_it_grows(), what_an_explorer_asks()]
    print(write("pipeline_parallel", ["networkx", "torch"], benchmarks).name)


if __name__ == "__main__":
    main()
