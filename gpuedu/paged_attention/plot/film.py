"""The same requests in two memories, tick by tick: one contiguous piece each, and blocks.

A tick makes ``STRIDE`` tokens for every request that is in. The film ends while requests still wait, so
that its last frame is a full memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from gpuedu.paged_attention.cost import MemoryUse
from gpuedu.paged_attention.plan import ContiguousManager, KVCacheManager, Piece

CAPACITY = 1024  # slots
LONGEST = 256  # tokens of a request, at most
STRIDE = 4  # tokens a tick
TICKS = 40
BRANCHES = 3  # answers to one prompt, where several are asked for
SYSTEM_PROMPT = 48  # tokens that all requests begin with, where they share a prompt
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass
class Sequence:
    """One answer being made: a request, or a branch of one."""

    request_id: str
    arrives: int
    prompt: tuple[int, ...]
    output: int
    branch_of: str | None = None
    token_ids: list[int] = field(default_factory=list)
    block_hashes: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    cache_salt: None = None

    @property
    def num_tokens(self) -> int:
        """Tokens known so far."""
        return len(self.token_ids)

    @property
    def final(self) -> int:
        """Tokens at the end."""
        return len(self.prompt) + self.output

    def start(self) -> Sequence:
        """A fresh copy, with its prompt to compute."""
        return Sequence(
            self.request_id, self.arrives, self.prompt, self.output, self.branch_of, list(self.prompt)
        )

    def write(self) -> None:
        """Make the next few tokens: any, but the same each time, and other ones in each branch."""
        made = self.num_tokens - len(self.prompt)
        seed = sum(map(ord, self.request_id))
        self.token_ids += [1000 + 100 * seed + made + i for i in range(min(STRIDE, self.output - made))]


@dataclass(frozen=True)
class Block:
    """A block in one frame. ``holders``: the requests that hold it, ``first``: the position of its tokens."""

    holders: tuple[str, ...]
    first: int
    filled: int
    name: str | None


@dataclass(frozen=True)
class Link:
    """A full block of the request admitted last: its name, and whether the cache had it."""

    block: int
    name: str
    found: bool


@dataclass(frozen=True)
class Frame:
    """Both memories after one tick."""

    tick: int
    pieces: dict[str, tuple[Piece, int, int]]  # piece, tokens now, tokens at the end
    holes: tuple[tuple[int, int], ...]
    contiguous: MemoryUse
    contiguous_waiting: tuple[str, ...]
    blocks: tuple[Block, ...]
    free: tuple[int, ...]
    paged: MemoryUse
    paged_waiting: tuple[str, ...]
    news: tuple[str, ...]
    chain_of: str
    chain: tuple[Link, ...]
    hit_tokens: int
    copies: tuple[tuple[int, int], ...]


def _chats(random: Random) -> Iterator[tuple[tuple[int, ...], int]]:
    """Prompts of their own."""
    for number in range(len(NAMES)):
        prompt = tuple(10_000 * (number + 1) + i for i in range(random.randint(8, 64)))
        yield prompt, random.choice((12, 20, 28, 44, 60, 92, 124))


def _shared_prompt(random: Random) -> Iterator[tuple[tuple[int, ...], int]]:
    """The same beginning, then a question."""
    system = tuple(range(SYSTEM_PROMPT))
    for prompt, output in _chats(random):
        yield system + prompt[: len(prompt) // 2 + 4], output


def _turns(random: Random) -> Iterator[tuple[tuple[int, ...], int]]:
    """Eight conversations in turn: a prompt is all that was said, and a new question."""
    talks = [tuple(10_000 * (talk + 1) + i for i in range(24)) for talk in range(8)]
    for number in range(len(NAMES)):
        talk = number % 8
        if len(talks[talk]) > 180:
            talks[talk] = tuple(1_000_000 * (number + 1) + i for i in range(24))
        yield talks[talk], 24
        said = Sequence(NAMES[number], 0, talks[talk], 24).start()
        while said.num_tokens < said.final:
            said.write()
        talks[talk] = (*said.token_ids, *(500_000 + 100 * number + i for i in range(random.randint(4, 12))))


WORKLOADS: dict[str, Callable[[Random], Iterator[tuple[tuple[int, ...], int]]]] = {
    "chats": _chats,
    "shared_prompt": _shared_prompt,
    "turns": _turns,
    "answers": _chats,
}


def _requests(workload: str) -> list[Sequence]:
    random = Random(4)
    gap = 2 if workload == "answers" else 1
    branches = BRANCHES if workload == "answers" else 1
    made = []
    for number, (prompt, output) in enumerate(WORKLOADS[workload](random)):
        name, arrives = NAMES[number], number * gap
        for branch in range(branches):
            label = f"{name}{branch + 1}" if branches > 1 else name
            made.append(Sequence(label, arrives, prompt, output, f"{name}1" if branch else None))
    return made


@lru_cache(maxsize=32)
def film(
    workload: str, reservation: str, block_size: int, caching: bool, eviction: str, free_queue: str
) -> tuple[Frame, ...]:
    """All frames of one choice of policies.

    Parameters
    ----------
    workload : str
        A key of ``WORKLOADS``.
    reservation : str
        A key of ``RESERVATIONS``, for the contiguous memory.
    block_size : int
        Tokens in a block; both memories have ``CAPACITY`` slots.
    caching, eviction, free_queue : bool, str, str
        As for :class:`KVCacheManager`.

    Returns
    -------
    tuple of Frame
        One a tick.
    """
    requests = _requests(workload)
    left = _Contiguous(requests, ContiguousManager(CAPACITY, reservation, LONGEST))
    manager = KVCacheManager(
        CAPACITY // block_size,
        block_size,
        enable_prefix_caching=caching,
        eviction=eviction,
        free_queue=free_queue,
    )
    right = _Paged(requests, manager)
    frames = []
    for tick in range(TICKS):
        left.tick(tick)
        right.tick(tick)
        frames.append(Frame(tick=tick, **left.frame(), **right.frame()))
    return tuple(frames)


class _Contiguous:
    """Requests over one piece each."""

    def __init__(self, requests: list[Sequence], manager: ContiguousManager) -> None:
        self.coming = deque(requests)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.manager = manager

    def tick(self, tick: int) -> None:
        """Who is done leaves, the others go on, and who fits comes in."""
        for request in [r for r in self.running if r.num_tokens == r.final]:
            self.manager.free(request.request_id)
            self.running.remove(request)
        for request in self.running:
            request.write()
        while self.coming and self.coming[0].arrives <= tick:
            self.waiting.append(self.coming.popleft().start())
        while self.waiting:
            first = self.waiting[0]
            if self.manager.admit(first.request_id, len(first.prompt), first.output) is None:
                break
            self.running.append(self.waiting.popleft())

    def frame(self) -> dict:
        """What the frame says of this memory."""
        pieces = {
            r.request_id: (self.manager.pieces[r.request_id], r.num_tokens, r.final) for r in self.running
        }
        tokens = sum(now for _, now, _ in pieces.values())
        final = sum(end for _, _, end in pieces.values())
        reserved = sum(piece.reserved for piece, _, _ in pieces.values())
        return {
            "pieces": pieces,
            "holes": tuple(self.manager.memory.holes()),
            "contiguous": MemoryUse(CAPACITY, tokens, final - tokens, reserved - final, len(pieces)),
            "contiguous_waiting": tuple(r.request_id for r in self.waiting),
        }


class _Paged:
    """Requests over blocks; what they do is what the manager allows."""

    def __init__(self, requests: list[Sequence], manager: KVCacheManager) -> None:
        self.coming = deque(requests)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.manager = manager
        self.chain_of, self.chain = "", ()
        self.news: list[str] = []
        self.copies: list[tuple[int, int]] = []
        self._labels: dict[int, str] = {}

    def _label(self, name: int) -> str:
        """A hash by the order in which it was seen: Python's hashes differ between platforms."""
        return self._labels.setdefault(name, f"#{len(self._labels) + 1}")

    def tick(self, tick: int) -> None:
        """Who is done leaves, the others go on or give way, and who fits comes in."""
        self.news, self.copies = [], []
        for request in [r for r in self.running if r.num_tokens == r.final]:
            self.manager.free(request)
            self.running.remove(request)
            self.news.append(f"{request.request_id} leaves")
        preempted = self._grow()
        while self.coming and self.coming[0].arrives <= tick:
            self.waiting.append(self.coming.popleft().start())
        while self.waiting and not preempted and self._admit(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        self.copies += self.manager.copies()

    def _grow(self) -> bool:
        preempted = False
        i = 0
        while i < len(self.running):
            request = self.running[i]
            made = request.num_tokens
            request.write()
            if self.manager.allocate_slots(request, request.num_tokens - made) is not None:
                request.num_computed_tokens = request.num_tokens
                i += 1
                continue
            del request.token_ids[made:]
            last = self.running.pop()
            self.manager.free(last)
            last.num_computed_tokens = 0
            self.waiting.appendleft(last)
            self.news.append(f"{last.request_id} makes room")
            preempted = True
        return preempted

    def _admit(self, request: Sequence) -> bool:
        name = request.request_id
        parent = next((r for r in self.running if r.request_id == request.branch_of), None)
        if parent is not None and request.num_tokens == parent.num_tokens:
            request.num_computed_tokens = parent.num_computed_tokens
            self.manager.fork(parent, request)
            self.news.append(f"{name} forks off {parent.request_id}")
            return True
        found, tokens = self.manager.get_computed_blocks(request)
        if self.manager.allocate_slots(request, request.num_tokens - tokens, found) is None:
            return False
        request.num_computed_tokens = request.num_tokens
        self.news.append(f"{name} arrives" + (f", {tokens} tokens found" if tokens else ""))
        self._remember(request, len(found))
        return True

    def _remember(self, request: Sequence, found: int) -> None:
        index = self.manager.pool.index
        if index is None:
            return
        full = request.num_tokens // self.manager.block_size
        table = self.manager.block_table(request.request_id)[:full]
        self.chain_of = request.request_id
        self.chain = tuple(Link(b, self._label(index.place[b]), i < found) for i, b in enumerate(table))

    def frame(self) -> dict:
        """What the frame says of this memory."""
        manager = self.manager
        size, index = manager.block_size, manager.pool.index
        holders: list[list[str]] = [[] for _ in range(manager.num_blocks)]
        first, filled = [0] * manager.num_blocks, [0] * manager.num_blocks
        for request in self.running:
            for i, block in enumerate(manager.block_table(request.request_id)):
                holders[block].append(request.request_id)
                first[block] = i * size
                filled[block] = max(filled[block], min(size, request.num_computed_tokens - i * size))
        names = [None if index is None else index.place[b] for b in range(manager.num_blocks)]
        blocks = tuple(
            Block(tuple(holders[b]), first[b], filled[b], None if names[b] is None else self._label(names[b]))
            for b in range(manager.num_blocks)
        )
        tokens = sum(filled)
        held = size * sum(map(bool, holders))
        return {
            "blocks": blocks,
            "free": tuple(manager.pool.free_queue),
            "paged": MemoryUse(CAPACITY, tokens, 0, held - tokens, len(self.running)),
            "paged_waiting": tuple(r.request_id for r in self.waiting),
            "news": tuple(self.news),
            "chain_of": self.chain_of,
            "chain": self.chain,
            "hit_tokens": manager.hit_tokens,
            "copies": tuple(self.copies),
        }
