"""An independent account of what a schedule is: a graph of actions, and random orders that fit it."""

import graphlib
import random

import pytest

from gpuedu.pipeline_parallel.plan import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Action,
    Schedule,
)


def inputs_of(schedule):
    """For every action, the actions whose results it uses."""
    everything = {action for actions in schedule.actions for action in actions}

    def at(part, microbatch, *kinds):
        stage, chunk = schedule.home(part)
        return next(a for kind in kinds if (a := Action(stage, kind, microbatch, chunk)) in everything)

    graph = {}
    for action in everything:
        stage, kind, j, chunk = action
        part = schedule.part(stage, chunk)
        if kind is FORWARD:
            graph[action] = {at(part - 1, j, FORWARD)} if part > 0 else set()
        elif kind is BACKWARD_WEIGHT:
            graph[action] = {at(part, j, BACKWARD_INPUT)}
        else:
            graph[action] = {at(part, j, FORWARD)}
            if part < schedule.depth - 1:
                graph[action].add(at(part + 1, j, BACKWARD_INPUT, FULL_BACKWARD))
    return graph


def random_order(seed, stages, microbatches, chunks, placement):
    """A schedule in an arbitrary order that can run, with some backwards split and some not."""
    dice = random.Random(seed)
    ranks = [[] for _ in range(stages)]
    for rank, actions in enumerate(ranks):
        for j in range(microbatches):
            for chunk in range(chunks):
                backward = dice.choice([(FULL_BACKWARD,), (BACKWARD_INPUT, BACKWARD_WEIGHT)])
                actions += [Action(rank, kind, j, chunk) for kind in (FORWARD, *backward)]
    unordered = Schedule(f"random {seed}", stages, microbatches, chunks, placement, tuple(map(tuple, ranks)))
    sorter = graphlib.TopologicalSorter(inputs_of(unordered))
    sorter.prepare()
    ranks, ready = [[] for _ in range(stages)], []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=lambda a: (a.stage, a.kind.value, *a[2:]))
        action = ready.pop(dice.randrange(len(ready)))
        ranks[action.stage].append(action)
        sorter.done(action)
    return Schedule(unordered.name, stages, microbatches, chunks, placement, tuple(map(tuple, ranks)))


@pytest.fixture(scope="session", name="inputs_of")
def inputs_of_fixture():
    """The function of that name."""
    return inputs_of


@pytest.fixture(scope="session", name="random_order")
def random_order_fixture():
    """The function of that name."""
    return random_order
