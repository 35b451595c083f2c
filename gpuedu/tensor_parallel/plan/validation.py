"""The proof that a sharding computes what the whole model computes."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from gpuedu.all_reduce.plan import Collective

from .communication import (
    BACKWARD,
    FORWARD,
    LAYER_SITES,
    RECOMPUTE,
    STEP,
    Communication,
    Phase,
    unequal_gradients,
)
from .sharding import Sharding


class State(Enum):
    """What the ranks hold of an array."""

    WHOLE = "whole on each rank"
    PARTIAL = "a part of a sum on each rank"
    TOKENS = "cut by tokens"
    WIDTH = "cut by width"


_AFTER = {
    (State.PARTIAL, Collective.ALL_REDUCE): State.WHOLE,
    (State.PARTIAL, Collective.REDUCE_SCATTER): State.TOKENS,
    (State.TOKENS, Collective.ALL_GATHER): State.WHOLE,
    (State.WIDTH, Collective.ALL_GATHER): State.WHOLE,
}


def validate(sharding: Sharding) -> None:
    """Prove that the collectives of ``sharding`` bring every rank what its next product needs.

    Parameters
    ----------
    sharding : Sharding
        Any, for example one with a collective taken out.

    Raises
    ------
    ValueError
        If the ranks would compute something else than the whole model; the message says where.

    Notes
    -----
    Executed are the states of the arrays, as DTensor's placements: an array is whole on every rank, one
    part of a sum on each, or cut by tokens or by width. A column-parallel product needs its input whole and
    gives an output cut by width; a row-parallel product needs that and gives parts of a sum; the backward
    of each is the reverse. What meets the residual stream must be in the stream's state: cut by tokens with
    sequence parallelism, else whole. An all-reduce turns parts of a sum into the whole, a reduce-scatter into
    a cut, an all-gather a cut into the whole; anything else is an error.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> plan = shard(MODELS["llama-3-8b"], 2)
    >>> validate(replace(plan, communications=plan.communications[:1] + plan.communications[2:]))
    Traceback (most recent call last):
        ...
    ValueError: attention_out, forward: the output is a part of a sum on each rank: must be whole on each rank
    """
    _check_sizes(sharding)
    _run_forward(sharding, FORWARD)
    if sharding.training:
        if sharding.recompute == "full":
            _run_layer_forward(sharding, RECOMPUTE)
        _run_loss(sharding)
        _run_backward(sharding)
        _check_gradients(sharding)


def _stream(plan: Sharding) -> State:
    """State of the residual stream."""
    return State.TOKENS if plan.sequence_parallel and plan.tensor_parallel > 1 else State.WHOLE


def _partial(plan: Sharding) -> State:
    """State of what a row-parallel product gives; a sum of one part is whole."""
    return State.PARTIAL if plan.tensor_parallel > 1 else State.WHOLE


def _follow(state: State, calls: Iterable[Communication]) -> State:
    """State of an array after ``calls``."""
    for call in calls:
        if (state, call.collective) not in _AFTER:
            raise ValueError(
                f"{call.site}, {call.phase.value}: {call.collective.value} of an array that is {state.value}"
            )
        state = _AFTER[state, call.collective]
    return state


def _need(needed: State, state: State, site: str, phase: Phase, what: str) -> None:
    if state is not needed:
        raise ValueError(f"{site}, {phase.value}: the {what} is {state.value}: must be {needed.value}")


def _run_forward(plan: Sharding, phase: Phase) -> None:
    embedded = _follow(_partial(plan), plan.at("embedding", phase))
    _need(_stream(plan), embedded, "embedding", phase, "output")
    _run_layer_forward(plan, phase)
    calls = plan.at("head", phase)
    if plan.training:
        _need(State.WHOLE, _follow(_stream(plan), calls), "head", phase, "input")
        return
    if not calls and plan.tensor_parallel > 1:
        raise ValueError("head, forward: the logits are cut by width: must be whole on each rank")
    _need(State.WHOLE, _follow(_stream(plan), calls[:-1]), "head", phase, "input")
    logits = State.WIDTH if plan.tensor_parallel > 1 else State.WHOLE
    _need(State.WHOLE, _follow(logits, calls[-1:]), "head", phase, "output")


def _run_layer_forward(plan: Sharding, phase: Phase) -> None:
    for half in ("attention", "ffn"):
        gathered = _follow(_stream(plan), plan.at(f"{half}_in", phase))
        _need(State.WHOLE, gathered, f"{half}_in", phase, "input")
        output = _follow(_partial(plan), plan.at(f"{half}_out", phase))
        _need(_stream(plan), output, f"{half}_out", phase, "output")


def _run_backward(plan: Sharding) -> None:
    _run_column_backward(plan, "head")
    for half in ("ffn", "attention"):
        gradient = _follow(_stream(plan), plan.at(f"{half}_out", BACKWARD))
        _need(State.WHOLE, gradient, f"{half}_out", BACKWARD, "gradient of the output")
        _run_column_backward(plan, f"{half}_in")
    gradient = _follow(_stream(plan), plan.at("embedding", BACKWARD))
    _need(State.WHOLE, gradient, "embedding", BACKWARD, "gradient of the output")


def _run_column_backward(plan: Sharding, site: str) -> None:
    calls = plan.at(site, BACKWARD)
    kept = _stream(plan) if plan.regather else State.WHOLE
    _need(State.WHOLE, _follow(kept, (c for c in calls if c.again)), site, BACKWARD, "input")
    gradient = _follow(_partial(plan), (c for c in calls if not c.again))
    _need(_stream(plan), gradient, site, BACKWARD, "gradient of the input")


def _run_loss(plan: Sharding) -> None:
    """Maximum, target and sum of exponentials: each rank knows those of its own logits alone."""
    calls, t = plan.at("loss", FORWARD), plan.tensor_parallel
    expected = 3 if t > 1 else 0
    if len(calls) != expected or any(c.collective is not Collective.ALL_REDUCE for c in calls):
        raise ValueError(f"loss, forward: {len(calls)} collectives: must be {expected} all_reduces")


def _check_gradients(plan: Sharding) -> None:
    """Gradients that see only a part are summed once, by all ranks that hold them; no other is summed."""
    found = [(c.what, c.collective, c.shape, c.ranks, c.count) for c in plan.at("gradients", STEP)]
    for what, weights in unequal_gradients(plan.weights, plan.sequence_parallel).items():
        if not weights:
            continue
        elements, copies = sum(w.count * w.local_elements for w in weights), weights[0].copies
        once = what, Collective.ALL_REDUCE, (elements,), copies, 1
        if once not in found:
            raise ValueError(
                f"gradients, step: {what}: must be summed once, {elements} elements on {copies} ranks"
            )
        found.remove(once)
    if found:
        raise ValueError(f"gradients, step: {found[0][0]}: must not be summed so")


def _check_sizes(plan: Sharding) -> None:
    """Every collective carries the whole of its array, on all ranks, in every layer."""
    stream = (plan.batch, plan.sequence, plan.model.hidden_size)
    for c in plan.communications:
        if c.phase is STEP:
            continue
        count = plan.model.layers if c.site in LAYER_SITES else 1
        if c.ranks != plan.tensor_parallel or c.count != count:
            raise ValueError(
                f"{c.site}, {c.phase.value}: {c.count} times on {c.ranks} ranks: must be {count} times on "
                f"{plan.tensor_parallel}"
            )
        last = (plan.batch, 1, plan.model.vocab_size)
        allowed = {"loss": (stream[:2],), "head": (stream, last)}.get(c.site, (stream,))
        if c.shape not in allowed:
            raise ValueError(f"{c.site}, {c.phase.value}: shape {c.shape}: must be {allowed[0]}")
