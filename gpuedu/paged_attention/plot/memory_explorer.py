"""The memory explorer: its controls, its presets, and what it shows for them."""

from __future__ import annotations

from gpuedu.explorer import Choice, Explorer, Preset, Step, Switch, Table

from .film import CAPACITY, STRIDE, TICKS, Frame, film
from .memory_map import memory_map

WORKLOAD_NAMES = {
    "chats": "Chats",
    "shared_prompt": "One system prompt",
    "turns": "Several turns",
    "answers": "Three answers each",
}
RESERVATION_NAMES = {
    "max": "Reserved to the maximum",
    "pow2": "Reserved to a power of two",
    "oracle": "Reserved by an oracle",
}
EVICTION_NAMES = {"lru": "Least recently used", "lfu": "Least often used"}
QUEUE_NAMES = {"split": "Unnamed ones in front", "append": "All to the back"}
SIZES = {str(size): f"{size} tokens" for size in (4, 8, 16, 32, 64)}


def _film(*, workload, reservation, block_size, caching, eviction, free_queue) -> tuple[Frame, ...]:
    if not caching:
        eviction = "lru"
    if eviction != "lru":
        free_queue = "split"
    return film(workload, reservation, int(block_size), caching, eviction, free_queue)


def _shown(step: int | None, **values) -> Frame:
    return _film(**values)[TICKS - 1 if step is None else step]


def explorer_figure(*, step, **values) -> dict:
    """Both memories after ``step`` ticks; None: at the end."""
    return memory_map(_shown(step, **values), RESERVATION_NAMES[values["reservation"]])


def explorer_steps(**_) -> int:
    """The last tick."""
    return TICKS - 1


def explorer_unused(*, caching, eviction, **_) -> tuple[str, ...]:
    """Controls that change nothing under these values."""
    if not caching:
        return ("eviction",)
    return () if eviction == "lru" else ("free_queue",)


def explorer_takeaway(*, step, **values) -> str:
    """One sentence: what the memories hold, and for how many requests."""
    frames = _film(**values)
    frame = frames[TICKS - 1 if step is None else step]
    (left, one), (right, many) = (_while_full(frames, memory) for memory in ("contiguous", "paged"))
    text = (
        f"{RESERVATION_NAMES[values['reservation']]}, a full memory holds tokens in **{100 * left:.0f} %** "
        f"of its slots and serves **{one:.1f}** requests at a time; in blocks of {values['block_size']}, "
        f"**{100 * right:.0f} %** and **{many:.1f}**"
    )
    if values["caching"] and frames[-1].hit_tokens:
        text += f", and **{frames[-1].hit_tokens:,}** prompt tokens need not be computed again"
    copies = sum(len(f.copies) for f in frames)
    if copies:
        text += f", at the price of **{copies}** block copies"
    if step is not None:
        news = "; ".join(frame.news) or "nobody comes or goes"
        text += f". Tick {step}: {news}"
    return text + "."


def _while_full(frames: tuple[Frame, ...], memory: str) -> tuple[float, float]:
    """Mean share of the slots that hold tokens, and mean requests in, while somebody waits."""
    crowded = [getattr(f, memory) for f in frames if getattr(f, f"{memory}_waiting")]
    uses = crowded or [getattr(frames[-1], memory)]
    tokens = sum(use.tokens for use in uses) / len(uses)
    return tokens / CAPACITY, sum(use.requests for use in uses) / len(uses)


def explorer_table(*, step, **values) -> Table:
    """The requests that are in, with their blocks; then who waits."""
    frame = _shown(step, **values)
    tables: dict[str, list[tuple[int, int]]] = {}
    for number, block in enumerate(frame.blocks):
        for name in block.holders:
            tables.setdefault(name, []).append((block.first, number))
    rows = []
    for name in dict.fromkeys((*tables, *frame.pieces)):
        piece = frame.pieces[name][0] if name in frame.pieces else None
        where = "waits" if piece is None else f"{piece.address} to {piece.address + piece.given - 1}"
        table = " ".join(str(number) for _, number in sorted(tables.get(name, [])))
        rows.append((name, where, table or "waits or has left"))
    return Table(("request", "slots of its piece", "its block table"), tuple(rows))


explorer = Explorer(
    id="kv-memory",
    title="Where the KV cache goes",
    controls=(
        Choice("workload", "Requests", WORKLOAD_NAMES, "chats", help="what comes in, and what it shares"),
        Choice("reservation", "Contiguous memory", RESERVATION_NAMES, "max"),
        Choice("block_size", "Block size", SIZES, "16"),
        Switch("caching", "Prefix caching", help="full blocks are found again by requests that begin alike"),
        Choice("eviction", "Eviction", EVICTION_NAMES, "lru", help="which known block is given up first"),
        Choice("free_queue", "Released blocks", QUEUE_NAMES, "split",
               help="vLLM's rule since 2026, and the one before"),
        Step("step", "Step through", help=f"one tick: {STRIDE} tokens for every request that is in"),
    ),
    presets=(
        Preset("max", "To the maximum", {"reservation": "max"}),
        Preset("pow2", "Powers of two", {"reservation": "pow2"}),
        Preset("oracle", "A perfect forecast", {"reservation": "oracle"}),
        Preset("big", "Big blocks", {"reservation": "oracle", "block_size": "64"}),
        Preset("shared", "A shared prompt", {"workload": "shared_prompt", "caching": True}),
        Preset("answers", "Copy on write", {"workload": "answers", "block_size": "8"}),
    ),
    figure=explorer_figure,
    takeaway=explorer_takeaway,
    table=explorer_table,
    steps=explorer_steps,
    unused=explorer_unused,
)  # fmt: skip
