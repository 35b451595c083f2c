"""How fast blocks are given out and taken back, against one Python object a block.

One operation is one block allocated or freed; prefix caching is on, so that every full block is hashed,
entered in the index and forgotten when it is taken again. Run with ``python -m benchmarks.paged_attention``.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from random import Random

from benchmarks._harness import row, sample, write
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.serving.workload import TRAFFIC, AllAtOnce, make_requests

BLOCK_SIZE = 16


@dataclass
class Sequence:
    """A request of the workload."""

    request_id: int
    token_ids: list[int]
    num_tokens: int
    num_computed_tokens: int = 0
    cache_salt: None = None
    block_hashes: list[int] = field(default_factory=list)


# The rival: vLLM's design, an object a block in a doubly linked list, without its further features


class Block:
    """A block of the rival."""

    __slots__ = ("following", "name", "number", "previous", "references")

    def __init__(self, number: int) -> None:
        self.number = number
        self.references = 0
        self.name: int | None = None
        self.previous: Block | None = None
        self.following: Block | None = None


class ObjectManager:
    """The rival: the same interface and the same decisions as far as this benchmark asks."""

    def __init__(self, num_blocks: int) -> None:
        self.head, self.tail = Block(-1), Block(-1)
        self.head.following, self.tail.previous = self.tail, self.head
        self.num_free_blocks = 0
        self.cached: dict[int, Block] = {}
        self.tables: dict[int, list[Block]] = {}
        for number in range(num_blocks):
            self.append(Block(number))

    def append(self, block: Block) -> None:
        last = self.tail.previous
        last.following, block.previous = block, last
        block.following, self.tail.previous = self.tail, block
        self.num_free_blocks += 1

    def remove(self, block: Block) -> None:
        block.previous.following, block.following.previous = block.following, block.previous
        self.num_free_blocks -= 1

    def names(self, sequence: Sequence) -> list[int]:
        name, names = 0, []
        for end in range(BLOCK_SIZE, sequence.num_tokens + 1, BLOCK_SIZE):
            name = hash((name, tuple(sequence.token_ids[end - BLOCK_SIZE : end])))
            names.append(name)
        return names

    def admit(self, sequence: Sequence) -> int | None:
        """Blocks taken; None if they do not fit."""
        names = self.names(sequence)
        found = []
        for name in names[: (sequence.num_tokens - 1) // BLOCK_SIZE]:
            if name not in self.cached:
                break
            found.append(self.cached[name])
        count = -(-sequence.num_tokens // BLOCK_SIZE)
        if count - len(found) + sum(not b.references for b in found) > self.num_free_blocks:
            return None
        for block in found:
            if not block.references:
                self.remove(block)
            block.references += 1
        table = list(found)
        for i in range(len(found), count):
            block = self.head.following
            self.remove(block)
            if block.name is not None and self.cached.get(block.name) is block:
                del self.cached[block.name]
            block.name = None
            block.references = 1
            if i < len(names):
                block.name = names[i]
                self.cached.setdefault(names[i], block)
            table.append(block)
        self.tables[sequence.request_id] = table
        return count

    def free(self, sequence: Sequence) -> None:
        for block in reversed(self.tables.pop(sequence.request_id)):
            block.references -= 1
            if not block.references:
                self.append(block)


class Ours(KVCacheManager):
    """The package's manager, called as a scheduler does."""

    def __init__(self, num_blocks: int, **policy: str) -> None:
        super().__init__(num_blocks, BLOCK_SIZE, enable_prefix_caching=True, **policy)

    def admit(self, sequence: Sequence) -> int | None:
        """Blocks taken; None if they do not fit."""
        sequence.block_hashes, sequence.num_computed_tokens = [], 0
        found, tokens = self.get_computed_blocks(sequence)
        new = self.allocate_slots(sequence, sequence.num_tokens - tokens, found)
        sequence.num_computed_tokens = sequence.num_tokens
        return None if new is None else len(found) + len(new)


def prompts(num_blocks: int) -> list[Sequence]:
    """Prompts of Azure's conversation trace, of three times as many blocks as there are, all different."""
    random = Random(0)
    traffic = TRAFFIC["azure_conversation"]
    text = [random.randrange(50_000) for _ in range(40_000)]
    sequences: list[Sequence] = []
    blocks = 0
    for request in make_requests(num_blocks // 8, AllAtOnce(), traffic.prompt, traffic.output):
        start = random.randrange(len(text) - request.prompt_tokens)
        tokens = [len(sequences), *text[start : start + request.prompt_tokens - 1]]
        sequences.append(Sequence(len(sequences), tokens, len(tokens)))
        blocks += -(-len(tokens) // BLOCK_SIZE)
        if blocks > 3 * num_blocks:
            break
    return sequences


class Churn:
    """Requests that come while memory lasts; the oldest goes to make room."""

    def __init__(self, manager: Ours | ObjectManager, sequences: list[Sequence]) -> None:
        self.manager = manager
        self.coming = cycle(sequences)
        self.live: deque[tuple[Sequence, int]] = deque()

    def run(self, operations: int) -> int:
        """Allocate and free so many blocks, or a few more; how many it was."""
        done = 0
        while done < operations:
            sequence = next(self.coming)
            while (count := self.manager.admit(sequence)) is None:
                oldest, freed = self.live.popleft()
                self.manager.free(oldest)
                done += freed
            self.live.append((sequence, count))
            done += count
        return done


MANAGERS = {"gpuedu": Ours, "an object a block": ObjectManager}


def blocks_as_the_pool_grows() -> dict:
    rows = []
    for num_blocks in (10_000, 100_000, 1_000_000):
        sequences = prompts(num_blocks)
        operations = max(1_000_000, 2 * num_blocks)
        samples = {}
        for name, make in MANAGERS.items():
            churn = Churn(make(num_blocks), sequences)
            churn.run(4 * num_blocks)  # until memory has been full and every block used twice
            samples[name] = sample(partial(churn.run, operations), repeats=5)
        rows.append(row({"blocks": num_blocks, "operations": operations}, samples))
        speeds = {name: operations / seconds for name, seconds in rows[-1]["median_s"].items()}
        print(num_blocks, {name: f"{speed / 1e6:.2f} M/s" for name, speed in speeds.items()})
    targets = {
        "target_rate": {"size": {"blocks": 10_000}, "operations_per_s": 1e6},
        "target_dearer": 5,
    }
    return {"name": "blocks allocated and freed, caching on", **targets, "rows": rows}


def policies() -> dict:
    """The other policies, for the reader's choice; they are not rivals."""
    sequences = prompts(10_000)
    operations = 500_000
    samples = {}
    for name, policy in (
        ("hash chain, LRU", {}),
        ("hash chain, LFU", {"eviction": "lfu"}),
        ("hash chain, priority", {"eviction": "priority"}),
        ("radix tree, LRU", {"prefix_index": "radix"}),
    ):
        churn = Churn(Ours(10_000, **policy), sequences)
        churn.run(40_000)
        samples[name] = sample(partial(churn.run, operations), repeats=5)
    result = row({"blocks": 10_000, "operations": operations}, samples)
    del result["times_ours"]
    print({name: f"{operations / seconds / 1e6:.2f} M/s" for name, seconds in result["median_s"].items()})
    return {"name": "blocks allocated and freed, by policy", "rows": [result]}


def decode_steps() -> dict:
    """One token more for each of 256 sequences: time a step, early and late in a long run."""
    manager = KVCacheManager(40_000, BLOCK_SIZE)
    sequences = [Sequence(i, [], 1000) for i in range(256)]
    for sequence in sequences:
        sequence.token_ids = None
        manager.allocate_slots(sequence, 1000)
        sequence.num_computed_tokens = 1000

    def steps(count: int) -> None:
        for _ in range(count):
            for sequence in sequences:
                manager.allocate_slots(sequence, 1)
                sequence.num_computed_tokens += 1
                sequence.num_tokens += 1

    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        steps(100)
        seconds.append((time.perf_counter() - start) / 100)
    late = statistics.median(seconds[5:]) / statistics.median(seconds[:5])
    print(f"decode step of 256 sequences: {1e3 * statistics.median(seconds):.2f} ms, late / early {late:.2f}")
    only = row({"sequences": 256, "steps": 100}, {"gpuedu": seconds})
    return {"name": "one decode step", "rows": [only]}


def main() -> None:
    benchmarks = [blocks_as_the_pool_grows(), policies(), decode_steps()]
    print(write("paged_attention", [], benchmarks).name)


if __name__ == "__main__":
    main()
