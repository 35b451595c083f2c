"""The tile explorer: its controls, its presets, and what it shows for them."""

from __future__ import annotations

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Switch, Table
from gpuedu.flash_attention.cost import plan_work
from gpuedu.flash_attention.plan import AttentionShape, TilePlan, Tiles

from .frames import frames, make
from .odometer import in_bytes, tile_figure, total_bytes

NAMES = {
    "standard": "Standard attention",
    "version_1": "FlashAttention, version 1",
    "version_2": "FlashAttention, version 2",
    "split_kv": "Split-KV (decoding)",
}
PASSES = {"forward": "Forward", "backward": "Backward"}
SIZES = {str(size): str(size) for size in (16, 32, 64, 128, 256)}
HEAD_DIMS = {"64": "64", "128": "128"}


def _plan(*, plan, direction, queries, keys, d, rows, columns, causal, window, splits, **_) -> TilePlan:
    reach = (window, None) if window else (None, None)
    attention = AttentionShape(queries, keys, int(d), causal=causal, window=reach)
    name = plan if direction == "forward" or plan == "split_kv" else f"{plan}_backward"
    return make(name, attention, Tiles(int(rows), int(columns)), splits if plan == "split_kv" else 1)


def explorer_figure(*, sram, step, **values) -> dict:
    """The figure for the explorer's values, after ``step`` computations where one is given."""
    return tile_figure(_plan(**values), 1e3 * sram, step, {})


def explorer_steps(**values) -> int:
    """As many as computations."""
    return len(frames(_plan(**values)))


def explorer_unused(*, plan, queries, keys, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    unused = []
    unused.append("direction" if plan == "split_kv" else "splits")
    if plan == "standard":
        unused += ["columns", "causal", "window"]  # it computes and moves what is hidden
    smallest = min(map(int, SIZES))
    if queries == 1:
        unused.append("causal")
    if queries <= smallest:
        unused.append("rows")
    if keys <= smallest and plan != "standard":
        unused.append("columns")
    return tuple(unused)


def explorer_takeaway(*, sram, step, **values) -> str:
    """One sentence: bytes against standard attention's, the chip, the programs."""
    if values["plan"] == "split_kv":
        values["direction"] = "forward"
    plan = _plan(**values)
    film = frames(plan)
    bytes_here = total_bytes(plan)
    text = f"{NAMES[values['plan']]} moves **{in_bytes(bytes_here)}** for one head"
    if values["plan"] == "standard":
        scores = sum(sum(film[-1].moved.get(name, ())) for name in ("S", "P", "dP", "dS"))
        text += f", **{100 * scores / bytes_here:.0f} %** of it scores"
    else:
        standard = _plan(**values | {"plan": "standard"})
        others = total_bytes(standard)
        text += f", standard attention **{others / bytes_here:.3g} times** as much" if bytes_here else ""
        flops, standard_flops = plan_work(plan).matmul_flops, plan_work(standard).matmul_flops
        if flops != standard_flops and standard_flops:
            change = 100 * (flops / standard_flops - 1)
            text += f"; its products take {abs(change):.3g} % {'more' if change > 0 else 'fewer'} FLOPs"
    programs = max(len(programs) for programs in plan.phases)
    if values["plan"] != "standard":
        text += f". **{programs}** program{'s' * (programs != 1)} can run side by side"
    if values["plan"] == "split_kv":
        alone = _plan(**values | {"plan": "version_2"})
        text += f", where version 2 has {len(alone.phases[0])}"
    held = max((sum(frame.chip.values()) for frame in film), default=0)
    if held > 1e3 * sram:
        text += f". Its tile needs {in_bytes(held)} and **does not fit** the chip's {in_bytes(1e3 * sram)}"
    if step:
        so_far = in_bytes(sum(map(sum, film[step - 1].moved.values())))
        text += f". After {step} of {len(film)} computations {so_far} have moved"
    return text + "."


def explorer_table(*, sram, step, **values) -> Table:
    """Bytes by tensor, after the step: read, and written or filled."""
    film = frames(_plan(**values))
    shown = film if step is None else film[:step]
    moved = shown[-1].moved if shown else {}
    rows = tuple((name, read, written, read + written) for name, (read, written) in moved.items())
    return Table(("tensor", "bytes read", "bytes written", "bytes in all"), rows)


explorer = Explorer(
    id="attention-tiles",
    title="Tiles between HBM and chip",
    controls=(
        Choice("plan", "Attention", NAMES, "standard"),
        Choice("direction", "Pass", PASSES, "forward"),
        Integer("queries", "Queries", 1, 1024, 512),
        Integer("keys", "Keys", 1, 1024, 512),
        Choice("d", "Head dimension d", HEAD_DIMS, "64"),
        Choice("rows", "Rows of a tile", SIZES, "64", help="queries B_r"),
        Choice("columns", "Columns of a tile", SIZES, "64", help="keys B_c"),
        Real("sram", "SRAM", 8, 256, 128, 0.1, "log", unit="kB", help="for one program on the chip"),
        Switch("causal", "Causal", help="no query sees a later key; the last query stands at the last key"),
        Integer("window", "Window", 0, 1024, 0, unit="keys", help="keys before its own; 0: all"),
        Integer("splits", "Parts of the keys", 1, 16, 8, help="split-KV only"),
        Step("step", "Step through", help="one computation, with the moves around it"),
    ),
    presets=(
        Preset("standard", "Standard", {"plan": "standard"}),
        Preset("version_1", "Version 1", {"plan": "version_1", "columns": "128"}),
        Preset("version_2", "Version 2", {"plan": "version_2", "rows": "128"}),
        Preset("causal", "Causal", {"plan": "version_2", "rows": "128", "causal": True}),
        Preset("backward", "Backward", {"plan": "version_2", "direction": "backward"}),
        Preset("split_kv", "Split-KV", {"plan": "split_kv", "queries": 1, "keys": 1024, "rows": "16"}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    steps=explorer_steps,
    unused=explorer_unused,
)  # fmt: skip
