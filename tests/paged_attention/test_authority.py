"""Traces of vLLM 0.33.0's own allocator (``measurements/vllm_traces.json``), replayed block by block."""

import json
from pathlib import Path

import pytest

from gpuedu.paged_attention.plan import KVCacheManager

TRACES = json.loads((Path(__file__).parents[2] / "measurements" / "vllm_traces.json").read_text())
SCENARIOS = TRACES["allocator"]


def tokens_of(runs):
    return [token for first, count in runs for token in range(first, first + count)]


class Replay:
    """Carries out a recorded scenario and compares every answer, evictions and free queue included."""

    def __init__(self, scenario, request_of, **policy):
        self.manager = KVCacheManager(
            scenario["num_gpu_blocks"],
            scenario["block_size"],
            enable_prefix_caching=scenario["caching"],
            null_block=True,
            **policy,
        )
        self.request_of = request_of
        self.requests = {}
        self.operations = scenario["operations"]

    def first_difference(self):
        """Number of the first operation whose outcome is not the recorded one; None: there is none."""
        for number, (kind, name, *rest) in enumerate(self.operations):
            if not getattr(self, kind)(name, *rest):
                return number
        return None

    def admit(self, name, prompt, salt, new_tokens, hit_tokens, hit_blocks, new_blocks, evicted, free_queue):
        request = self.request_of(name, tokens_of(prompt), cache_salt=salt)
        found, tokens = self.manager.get_computed_blocks(request)
        known = self.known()
        new = self.manager.allocate_slots(request, new_tokens, found)
        if new is not None:
            request.num_computed_tokens = tokens + new_tokens
            self.requests[name] = request
        same = (list(found), tokens, new) == (hit_blocks, hit_tokens, new_blocks)
        return same and self.same_pool(new, known, evicted, free_queue)

    def extend(self, name, appended, new_tokens, new_blocks, evicted, free_queue):
        request = self.requests[name]
        request.token_ids += tokens_of(appended)
        known = self.known()
        new = self.manager.allocate_slots(request, new_tokens)
        if new is not None:
            request.num_computed_tokens += new_tokens
        return new == new_blocks and self.same_pool(new, known, evicted, free_queue)

    def free(self, name, free_queue):
        self.manager.free(self.requests.pop(name))
        return list(self.manager.pool.free_queue) == free_queue

    def known(self):
        index = self.manager.pool.index
        return [] if index is None else list(index.place)

    def same_pool(self, new, known, evicted, free_queue):
        gone = [block for block in new or () if known and known[block] is not None]
        return gone == evicted and list(self.manager.pool.free_queue) == free_queue


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_every_block_is_the_one_that_vllm_gives(scenario, request_of):
    assert Replay(scenario, request_of).first_difference() is None


def test_the_older_generation_would_differ(request_of):
    # A replay that could not tell the two policies apart would prove little
    first = [Replay(s, request_of, free_queue="append").first_difference() for s in SCENARIOS]
    assert sum(number is not None for number in first) > len(SCENARIOS) // 2


def test_the_traces_are_of_the_version_that_the_book_names():
    assert TRACES["provenance"]["vllm"] == "0.33.0"
    assert sum(len(scenario["operations"]) for scenario in SCENARIOS) > 1000
