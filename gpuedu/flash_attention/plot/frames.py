"""A plan as frames: what is on the chip and what has moved, after each computation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from gpuedu.flash_attention.plan import (
    BACKWARDS,
    FORWARDS,
    AttentionShape,
    Op,
    Step,
    TilePlan,
    Tiles,
    split_kv,
)

TENSOR_BYTES, STATISTIC_BYTES = 2, 4
ON_CHIP_IN_FP32 = {"O", "dQ", "dK", "dV"}
SCORES_AT_ONCE = {"gradients by m, l": 2, "gradients": 2, "gradients of K, V": 2, "gradient of Q": 2}
FIELDS = {Op.READ: 0, Op.WRITE: 1, Op.FILL: 1}


@dataclass(frozen=True)
class Frame:
    """One computation, with the moves before it and the ones that follow at once.

    ``moved`` holds ``(read, written)`` bytes by tensor so far; ``chip`` bytes on the chip by tensor while
    it computes; ``program`` the number of its program within its phase.
    """

    step: Step
    phase: int
    program: int
    moved: dict[str, tuple[int, int]]
    chip: dict[str, int]


@lru_cache(maxsize=32)
def make(name: str, attention: AttentionShape, tiles: Tiles, splits: int) -> TilePlan:
    """A plan by its name."""
    if name == "split_kv":
        return split_kv(attention, tiles, splits)
    return (FORWARDS | BACKWARDS)[name](attention, tiles)


@lru_cache(maxsize=32)
def frames(plan: TilePlan) -> tuple[Frame, ...]:
    """A frame for each computation of one unit, programs one after the other.

    What the chip holds is left open for standard attention, whose products a library cuts as it likes.
    """
    by_library = plan.name.startswith("standard")
    found: list[Frame] = []
    moved: dict[str, tuple[int, int]] = {}
    for phase, programs in enumerate(plan.phases):
        for number, program in enumerate(programs):
            chip: dict[str, int] = {}
            for step in program:
                if step.op in FIELDS:
                    counts = list(moved.get(step.what, (0, 0)))
                    counts[FIELDS[step.op]] += step.elements * _hbm_bytes(step.what)
                    moved[step.what] = tuple(counts)
                if step.op in (Op.READ, Op.HOLD):
                    chip[step.what] = step.elements * _chip_bytes(step.what)
                elif step.op is Op.COMPUTE and step.what != "finish":
                    found.append(Frame(step, phase, number, {}, {} if by_library else chip | _made(step)))
                if found and step.op is not Op.READ:
                    _settle(found, moved)
    return tuple(found)


def _settle(found: list[Frame], moved: dict[str, tuple[int, int]]) -> None:
    """What follows a computation belongs to it."""
    last = found[-1]
    found[-1] = Frame(last.step, last.phase, last.program, dict(moved), last.chip)


def _made(step: Step) -> dict[str, int]:
    """The tile of scores, and in the backward as many gradients, which are made and stay on the chip."""
    pairs = STATISTIC_BYTES * step.elements
    if step.what.startswith(("tile", "gradient")):
        return {"S": SCORES_AT_ONCE.get(step.what, 1) * pairs}
    return {}


def _hbm_bytes(tensor: str) -> int:
    return STATISTIC_BYTES if tensor in ("m", "l", "LSE", "D") or "parts" in tensor else TENSOR_BYTES


def _chip_bytes(tensor: str) -> int:
    return STATISTIC_BYTES if tensor in ON_CHIP_IN_FP32 else _hbm_bytes(tensor)


@dataclass(frozen=True)
class Running:
    """The online softmax of one query at one tile of keys: before, what the tile brings, after."""

    query: int
    keys: tuple[int, int]
    before: tuple[float, float, float]  # m, l, O
    shrink: float
    sum: float
    after: tuple[float, float, float]


def running(plan: TilePlan, step: Step) -> Running | None:
    """m, l and one number of O of the first query of ``step`` that sees a key of the tile, worked through.

    The scores and values are made up, the same each time.
    """
    attention = plan.attention
    seeing = (i for i in range(*step.rows) if _seen(attention, i, step.columns))
    query = next(seeing, None)
    if query is None:
        return None
    begin, _ = attention.visible(query)
    start, stop = _seen(attention, query, step.columns)
    part = start // plan_part(plan) * plan_part(plan) if plan.splits > 1 else begin
    m, total, out = _online(query, max(begin, part), start)
    top = max([m, *(score(query, key) for key in range(start, stop))])
    shrink = math.exp(m - top) if total else 0.0
    weights = [(math.exp(score(query, key) - top), value(key)) for key in range(start, stop)]
    added = sum(weight for weight, _ in weights)
    new_total = total * shrink + added
    new_out = (out * total * shrink + sum(w * v for w, v in weights)) / new_total
    return Running(query, (start, stop), (m, total, out), shrink, added, (top, new_total, new_out))


def plan_part(plan: TilePlan) -> int:
    """Keys of one part of a split plan."""
    columns = -(-plan.attention.keys // plan.tiles.columns)
    return -(-columns // plan.splits) * plan.tiles.columns


def _seen(attention: AttentionShape, query: int, keys: tuple[int, int]) -> tuple[int, int] | None:
    begin, end = attention.visible(query)
    start, stop = max(begin, keys[0]), min(end, keys[1])
    return (start, stop) if start < stop else None


def _online(query: int, begin: int, stop: int) -> tuple[float, float, float]:
    """m, l and O over the keys from ``begin`` to ``stop``."""
    scores = [score(query, key) for key in range(begin, stop)]
    if not scores:
        return -math.inf, 0.0, 0.0
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    return top, total, sum(w * value(begin + i) for i, w in enumerate(weights)) / total


def score(query: int, key: int) -> float:
    """A made-up score, from -4 to 4."""
    return 4 * math.sin(12.9898 * query + 78.233 * key) * math.cos(0.37 * key + 1.7 * query)


def value(key: int) -> float:
    """A made-up number of V, from -1 to 1."""
    return math.sin(5.3 * key + 0.7)
