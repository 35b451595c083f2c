"""The computations of a plan's steps: online softmax, recomputation, gradients.

Scores are kept in units of log2: exp2 is several times as fast as exp here, and one instruction on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..plan import Op, Step
from .machine import Machine
from .philox import keep_mask

LOG2_E = math.log2(math.e)
NOTHING = float("-inf")


# Scores ------------------------------------------------------------------------------------------


def scores(machine: Machine, step: Step) -> torch.Tensor:
    """Scores of a tile times log2(e), hidden ones minus infinity: (units, heads x rows, columns)."""
    chip, options = machine.chip, machine.options
    key, capped = chip["K"], options.softcap > 0
    if "scaled Q" not in chip:
        factor = options.scale / options.softcap if capped else options.scale * LOG2_E
        chip["scaled Q"] = torch.mul(chip["Q"], factor, out=machine.buffer("scaled Q", *chip["Q"].shape))
    query = chip["scaled Q"]
    tile = machine.buffer("S", query.shape[0], query.shape[1], key.shape[1])
    torch.bmm(query, key.transpose(1, 2), out=tile)
    if capped:
        tile.tanh_().mul_(options.softcap * LOG2_E)
    if options.alibi_slopes is not None:
        _by_head(tile, step).add_(_alibi(machine, step), alpha=-LOG2_E)
    if _needs_mask(machine, step):
        _by_head(tile, step).masked_fill_(_hidden(machine, step), NOTHING)
    return tile


def _by_head(tile: torch.Tensor, step: Step) -> torch.Tensor:
    """(units, heads, rows, columns)"""
    return tile.view(tile.shape[0], step.heads[1] - step.heads[0], -1, tile.shape[2])


def _needs_mask(machine: Machine, step: Step) -> bool:
    return not machine.plan.attention.sees_all(step.rows, step.columns)


def _distance(machine: Machine, step: Step) -> torch.Tensor:
    """Position of the key minus that of the query: (rows, columns)."""
    attention, device = machine.plan.attention, machine.device
    queries = torch.arange(*step.rows, device=device) + (attention.keys - attention.queries)
    return torch.arange(*step.columns, device=device) - queries[:, None]


def _hidden(machine: Machine, step: Step) -> torch.Tensor:
    """Which keys of the tile a query does not see: (rows, columns); it depends on the distance alone."""
    rows, columns = step.rows[1] - step.rows[0], step.columns[1] - step.columns[0]
    where = ("hidden", step.rows[0] - step.columns[0], rows, columns)
    if where not in machine.workspace:
        left, right = machine.plan.attention.reach
        distance = _distance(machine, step)
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if left is not None:
            hidden |= distance < -left
        if right is not None:
            hidden |= distance > right
        machine.workspace[where] = hidden
    return machine.workspace[where]


def _heads(machine: Machine, step: Step) -> torch.Tensor:
    """Numbers of the query heads of the tile, counted through the batch: (units, heads)."""
    group = machine.plan.attention.group
    units = torch.arange(machine.first_unit, machine.first_unit + machine.units, device=machine.device)
    return units[:, None] * group + torch.arange(*step.heads, device=machine.device)


def _alibi(machine: Machine, step: Step) -> torch.Tensor:
    """Slope times distance: (units, heads, rows, columns)."""
    slopes = machine.options.alibi_slopes.to(machine.dtype)
    slope = slopes[_heads(machine, step) % machine.plan.attention.heads]
    return slope[:, :, None, None] * _distance(machine, step).abs()


def _dropped(machine: Machine, step: Step, tile: torch.Tensor) -> torch.Tensor:
    """``tile`` with what dropout takes away set to 0 and the rest scaled up; ``tile`` itself without it."""
    options = machine.options
    if not options.dropout_p:
        return tile
    heads = _heads(machine, step).flatten()
    keep = keep_mask(
        options.seed, options.sequence, heads, range(*step.rows), range(*step.columns), options.dropout_p
    )
    return (tile * keep.view(tile.shape)).div_(1 - options.dropout_p)


# The forward in tiles ----------------------------------------------------------------------------


def tile(machine: Machine, step: Step) -> None:
    """Version 2: fold a tile of keys into the running m, l and O."""
    chip = machine.chip
    p, factor = _online(machine, step)
    chip["l"].mul_(factor).add_(p.sum(-1, keepdim=True))
    output = chip["O"].mul_(factor)
    torch.baddbmm(output, _dropped(machine, step, p), chip["V"], out=output)


def tile_with_division(machine: Machine, step: Step) -> None:
    """Version 1: the same, but O is kept divided by l."""
    chip = machine.chip
    p, factor = _online(machine, step)
    before = chip["l"] * factor
    chip["l"].copy_(before + p.sum(-1, keepdim=True))
    inverse = chip["l"].reciprocal().masked_fill_(chip["l"] == 0, 0.0)
    output = chip["O"].mul_(before * inverse)
    torch.baddbmm(output, _dropped(machine, step, p) * inverse, chip["V"], out=output)


def _online(machine: Machine, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """exp of the scores less the new maximum, and by how much what was summed before shrinks."""
    maximum = machine.chip["m"]
    p = scores(machine, step)
    new = torch.maximum(maximum, p.amax(-1, keepdim=True))
    # A row that has seen nothing yet: minus infinity less minus infinity is no number
    base = new.masked_fill(new == NOTHING, 0.0)
    factor = torch.exp2(maximum - base)
    maximum.copy_(new)
    return p.sub_(base).exp2_(), factor


def finish(machine: Machine, step: Step) -> None:
    """Divide O by l once; LSE = m + log l, minus infinity where nothing was visible."""
    chip = machine.chip
    total = chip["l"]
    chip["O"].div_(total.masked_fill(total == 0, 1.0))
    chip["LSE"] = chip["m"] / LOG2_E + total.log()


def combine(machine: Machine, step: Step) -> None:
    """The parts of split keys: each weighs exp(its LSE less the LSE of all)."""
    attention, parts = machine.plan.attention, machine.plan.splits
    rows = step.rows[1] - step.rows[0]
    shape = (machine.units, parts, attention.group * rows)
    outputs = machine.chip["O parts"].reshape(*shape, attention.head_dim)
    output, lse = combine_parts(outputs, machine.chip["LSE parts"].reshape(shape), dim=1)
    machine.chip["O"], machine.chip["LSE"] = output, lse[..., None]


def combine_parts(
    outputs: torch.Tensor, lses: torch.Tensor, dim: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention over all keys from attentions over parts of them.

    Parameters
    ----------
    outputs : Tensor
        O of each part, stacked along ``dim``: (..., parts, ..., d).
    lses : Tensor
        LSE of each part, the shape of ``outputs`` without its last axis.
    dim : int
        The axis of the parts, counted from the front.

    Returns
    -------
    tuple of Tensor
        O and LSE over all keys. A row that no part sees is 0, its LSE minus infinity.

    Examples
    --------
    >>> o, lse = combine_parts(torch.tensor([[[2.0]], [[4.0]]]), torch.tensor([[0.0], [0.0]]))
    >>> o.item(), round(lse.exp().item(), 6)
    (3.0, 2.0)
    """
    lse = torch.logsumexp(lses, dim)
    base = lse.masked_fill(lse == NOTHING, 0.0).unsqueeze(dim)
    return ((lses - base).exp().unsqueeze(-1) * outputs).sum(dim), lse


# The backward in tiles ---------------------------------------------------------------------------


def row_sums(machine: Machine, step: Step) -> None:
    """D, the sum of dO times O over each row: it is also that of dP times P, dropout or not."""
    machine.chip["D"] = (machine.chip["dO"] * machine.chip["O"]).sum(-1, keepdim=True)


def gradients(machine: Machine, step: Step) -> None:
    """All gradients of a tile, its probabilities computed once more."""
    score_gradient = _of_scores(machine, step, into_values=True)
    _add_key_gradient(machine, score_gradient)
    _add_query_gradient(machine, score_gradient)


def gradients_of_keys(machine: Machine, step: Step) -> None:
    """dK and dV of a tile."""
    _add_key_gradient(machine, _of_scores(machine, step, into_values=True))


def gradient_of_queries(machine: Machine, step: Step) -> None:
    """dQ of a tile."""
    _add_query_gradient(machine, _of_scores(machine, step, into_values=False))


def gradients_by_maximum(machine: Machine, step: Step) -> None:
    """Version 1: LSE from m and l, and D from O, anew in each tile."""
    chip = machine.chip
    chip["LSE"] = chip["m"] / LOG2_E + chip["l"].log()
    row_sums(machine, step)
    gradients(machine, step)


def _of_scores(machine: Machine, step: Step, *, into_values: bool) -> torch.Tensor:
    """dS of a tile before the scale; with ``into_values``, dV is added to on the way."""
    chip, options = machine.chip, machine.options
    lse = chip["LSE"] * LOG2_E
    s = scores(machine, step)
    slope = None
    if options.softcap > 0:  # tanh' = 1 - tanh^2, of the score before mask and bias
        slope = _cap_slope(machine)
    p = s.sub_(lse.masked_fill(lse == NOTHING, float("inf"))).exp2_()
    if into_values:
        chip["dV"].baddbmm_(_dropped(machine, step, p).transpose(1, 2), chip["dO"])
    dp = torch.bmm(chip["dO"], chip["V"].transpose(1, 2), out=machine.buffer("dP", *p.shape))
    ds = _dropped(machine, step, dp).sub_(chip["D"]).mul_(p)
    return ds if slope is None else ds.mul_(slope)


def _cap_slope(machine: Machine) -> torch.Tensor:
    """1 - tanh^2 of a tile's scores over the cap."""
    raw = torch.bmm(machine.chip["scaled Q"], machine.chip["K"].transpose(1, 2)).tanh_()
    return raw.square_().neg_().add_(1)


def _add_key_gradient(machine: Machine, score_gradient: torch.Tensor) -> None:
    chip = machine.chip
    chip["dK"].baddbmm_(score_gradient.transpose(1, 2), chip["Q"], alpha=machine.options.scale)


def _add_query_gradient(machine: Machine, score_gradient: torch.Tensor) -> None:
    chip = machine.chip
    chip["dQ"].baddbmm_(score_gradient, chip["K"], alpha=machine.options.scale)


# Standard attention ------------------------------------------------------------------------------


def all_scores(machine: Machine, step: Step) -> None:
    """S of all keys."""
    machine.chip["S"] = scores(machine, step)


def softmax(machine: Machine, step: Step) -> None:
    """P of all keys; 0 in a row that sees none."""
    machine.chip["P"] = torch.softmax(machine.chip["S"] / LOG2_E, -1).nan_to_num_(nan=0.0)


def values(machine: Machine, step: Step) -> None:
    """O = P V."""
    machine.chip["O"] = torch.bmm(_dropped(machine, step, machine.chip["P"]), machine.chip["V"])


def value_gradient(machine: Machine, step: Step) -> None:
    """dV += P^T dO."""
    p = _dropped(machine, step, machine.chip["P"])
    machine.chip["dV"].baddbmm_(p.transpose(1, 2), machine.chip["dO"])


def probability_gradient(machine: Machine, step: Step) -> None:
    """dP = dO V^T."""
    dp = torch.bmm(machine.chip["dO"], machine.chip["V"].transpose(1, 2))
    machine.chip["dP"] = _dropped(machine, step, dp)


def score_gradient(machine: Machine, step: Step) -> None:
    """dS = P (dP - rowsum(P dP))."""
    p, dp = machine.chip["P"], machine.chip["dP"]
    machine.chip["dS"] = p * (dp - (p * dp).sum(-1, keepdim=True))


def query_gradient(machine: Machine, step: Step) -> None:
    """dQ = dS K."""
    machine.chip["dQ"] = torch.bmm(machine.chip["dS"], machine.chip["K"]) * machine.options.scale


def key_gradient(machine: Machine, step: Step) -> None:
    """dK += dS^T Q."""
    _add_key_gradient(machine, machine.chip["dS"])


KERNEL_FUNCTIONS: dict[str, Callable[[Machine, Step], None]] = {
    "scores": all_scores,
    "softmax": softmax,
    "values": values,
    "dV": value_gradient,
    "dP": probability_gradient,
    "dS": score_gradient,
    "dQ": query_gradient,
    "dK": key_gradient,
    "tile": tile,
    "finish": finish,
    "combine": combine,
    "tile with division": tile_with_division,
    "D": row_sums,
    "gradients": gradients,
    "gradients by m, l": gradients_by_maximum,
    "gradients of K, V": gradients_of_keys,
    "gradient of Q": gradient_of_queries,
}
"""What a ``COMPUTE`` step does, by its name in the plan."""


def run(machine: Machine) -> None:
    """Carry out every step of a machine's plan."""
    for programs in machine.plan.phases:
        for program in programs:
            machine.chip = {}
            for step in program:
                if step.op is Op.COMPUTE:
                    KERNEL_FUNCTIONS[step.what](machine, step)
                else:
                    machine.move(step)
