"""The proof that a plan computes the whole attention from what is on the chip."""

from __future__ import annotations

from collections import Counter, defaultdict

from .attention import Span
from .steps import KERNELS, Op, Step, TilePlan

INPUTS = {
    "forward": ("Q", "K", "V"),
    "backward": ("Q", "K", "V", "O", "LSE", "m", "l", "P", "dO"),
}
OUTPUTS = {"forward": ("O",), "backward": ("dQ", "dK", "dV")}
OF_KEYS = ("K", "V", "dK", "dV")
OF_PAIRS = ("S", "P", "dP", "dS")


def validate(plan: TilePlan) -> None:
    """Prove that every visible pair is computed exactly once, from operands that are on the chip.

    Parameters
    ----------
    plan : TilePlan
        Any plan, for example one written by hand.

    Raises
    ------
    ValueError
        If a step computes on what its program has not brought to the chip, reads from HBM what nobody has
        put there, or writes what is not on the chip; if two programs of a phase write the same place (but
        dQ, which they add to); if a tile is computed twice or a visible pair never; or if an output is not
        whole at the end. The message says what and where.

    Notes
    -----
    A tensor has one place on the chip: what is read or held there replaces what was. A computation changes
    its outputs in place.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from gpuedu.flash_attention.plan import AttentionShape, Tiles, version_2
    >>> plan = version_2(AttentionShape(8, 8, 4), Tiles(4, 4))
    >>> validate(plan)
    >>> program = plan.phases[0][0]
    >>> validate(replace(plan, phases=((program[1:], plan.phases[0][1]),)))
    Traceback (most recent call last):
        ...
    ValueError: version_2: tile of queries 0-3, keys 0-3 needs Q rows 0-3, and they are not on the chip
    """
    direction = "backward" if any(step.what.startswith("d") for step in plan.steps) else "forward"
    in_hbm = {name: None for name in INPUTS[direction]}  # None: whole from the start
    written: dict[str, list[Step]] = defaultdict(list)
    for programs in plan.phases:
        fresh: dict[str, list[tuple[int, Step]]] = defaultdict(list)
        for number, program in enumerate(programs):
            _run(plan, program, in_hbm, written, fresh, number)
        _check_apart(plan, fresh)
    _check_pairs(plan)
    for name in OUTPUTS[direction]:
        _check_whole(plan, name, written[name])


def _run(plan, program, in_hbm, written, fresh, number) -> None:
    chip: dict[str, Step] = {}
    for step in program:
        match step.op:
            case Op.READ:
                if step.what not in in_hbm and not _covered(step, written[step.what]):
                    raise ValueError(f"{plan.name}: reads {_words(step)}, which nobody has written")
                chip[step.what] = step
            case Op.HOLD:
                chip[step.what] = step
            case Op.FILL:
                written[step.what].append(step)
            case Op.WRITE:
                held = chip.get(step.what.removesuffix(" parts"))
                if held is None or held.rows != step.rows:
                    raise ValueError(f"{plan.name}: writes {_words(step)}, which is not on the chip")
                written[step.what].append(step)
                fresh[step.what].append((number, step))
            case Op.COMPUTE:
                _compute(plan, step, chip)


def _compute(plan: TilePlan, step: Step, chip: dict[str, Step]) -> None:
    kernel = KERNELS[step.what]
    accumulated = [name for name in kernel.changes if _is_accumulated(step.what, name)]
    for name in (*kernel.reads, *accumulated):
        held, rows = chip.get(name), step.columns if name in OF_KEYS else step.rows
        if held is None or not (held.rows[0] <= rows[0] and rows[1] <= held.rows[1]):
            raise ValueError(
                f"{plan.name}: {step.what} of queries {_run_words(step.rows)}, keys "
                f"{_run_words(step.columns)} needs {name} rows {_run_words(rows)}, and they are not on the "
                "chip"
            )
    for name in kernel.changes:
        if name not in accumulated:
            chip[name] = step


def _is_accumulated(kernel: str, name: str) -> bool:
    """Whether ``kernel`` adds to what the chip holds of ``name``, so that it must be there."""
    if kernel in ("tile", "tile with division"):
        return True
    if kernel == "finish":
        return name != "LSE"
    return kernel.startswith("gradient") or kernel in ("dV", "dK")


def _check_apart(plan: TilePlan, fresh: dict[str, list[tuple[int, Step]]]) -> None:
    """Raise if two programs of a phase write the same place; dQ they may add to."""
    for name, steps in fresh.items():
        owner: dict[tuple[int, int], int] = {}
        for number, step in steps:
            for head in range(*step.heads):
                for row in range(*step.rows):
                    if owner.setdefault((head, row), number) != number and name != "dQ":
                        raise ValueError(f"{plan.name}: two programs of a phase write {name} row {row}")


def _check_pairs(plan: TilePlan) -> None:
    """Raise unless each kernel with a product computes each visible pair once."""
    attention = plan.attention
    kernels = {s.what for s in plan.computes if KERNELS[s.what].matmuls}
    for kernel in sorted(kernels):
        seen: Counter[tuple[int, int, int]] = Counter()
        for step in plan.computes:
            if step.what == kernel:
                for head in range(*step.heads):
                    for row in range(*step.rows):
                        start, stop = attention.visible(row)
                        for key in range(max(start, step.columns[0]), min(stop, step.columns[1])):
                            seen[head, row, key] += 1
        twice = next((pair for pair, times in seen.items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"{plan.name}: {kernel} computes query {twice[1]}, key {twice[2]} twice")
        if len(seen) < attention.group * attention.visible_pairs:
            raise ValueError(f"{plan.name}: {kernel} leaves out pairs that are visible")


def _check_whole(plan: TilePlan, name: str, steps: list[Step]) -> None:
    attention = plan.attention
    length = attention.keys if name in OF_KEYS else attention.queries
    heads = 1 if name in OF_KEYS else attention.group
    there = {(head, row) for s in steps for head in range(*s.heads) for row in range(*s.rows)}
    missing = next(
        ((head, row) for head in range(heads) for row in range(length) if (head, row) not in there), None
    )
    if missing is not None:
        raise ValueError(f"{plan.name}: never writes {name} row {missing[1]} of head {missing[0]}")


def _covered(step: Step, written: list[Step]) -> bool:
    """Whether ``written`` has all of what ``step`` reads."""
    there = {(head, row) for s in written for head in range(*s.heads) for row in range(*s.rows)}
    return all((head, row) in there for head in range(*step.heads) for row in range(*step.rows))


def _words(step: Step) -> str:
    return f"{step.what} rows {_run_words(step.rows)}"


def _run_words(span: Span) -> str:
    return f"{span[0]}-{span[1] - 1}" if span[1] > span[0] else "none"
