"""The source's claims on PagedAttention (C47 to C50), decided."""

import ast
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from gpuedu.paged_attention.cost import (
    average,
    beams_by_prefix,
    decode,
    occupancy,
    random_beams,
    sharegpt_like,
    tail_share,
    tail_slots,
)
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.serving.workload import TRAFFIC, AllAtOnce, make_requests

PACKAGE = Path(__file__).parents[2] / "gpuedu" / "paged_attention" / "plan"
CAPACITY = 15_728

# C47: the cache in blocks of fixed size, in sequence by logic and anywhere in memory, as an OS pages memory.
# That attention over scattered blocks equals SDPA is tested in test_run.py, block numbers against vLLM's in
# test_authority.py.


def test_c47_logically_in_sequence_physically_anywhere(request_of):
    manager = KVCacheManager(64, 4)
    requests = [request_of(name, 0) for name in "abc"]
    for _ in range(20):
        for request in requests:
            manager.allocate_slots(request, 1)
            request.num_computed_tokens += 1
    tables = [manager.block_table(name) for name in "abc"]
    assert all(len(table) == 5 for table in tables)
    assert all(b - a == 3 for table in tables for a, b in pairwise(table))


def test_c47_the_analogy_ends_no_block_is_faulted_in(request_of):
    # An operating system gives the page when it is touched; here every slot is decided on before the step,
    # and a request whose next token has no slot does not run at all
    manager = KVCacheManager(2, 4)
    a, b = request_of("a", 4), request_of("b", 4)
    for request in (a, b):
        manager.allocate_slots(request, 4)
        request.num_computed_tokens = 4
    assert manager.allocate_slots(a, 1) is None
    manager.free(b)  # and what makes room is a whole request, not a page
    assert manager.allocate_slots(a, 1) is not None


def test_c47_flips_with_a_block_as_long_as_the_longest_request():
    requests = sharegpt_like(150)
    whole = average(occupancy(requests, "paged", capacity=CAPACITY, block_size=2048, watermark=0).while_full)
    reserved = average(occupancy(requests, "max", capacity=CAPACITY).while_full)
    assert whole["tokens"] == pytest.approx(reserved["tokens"], abs=1e-9)
    assert whole["internal"] == pytest.approx(reserved["internal"] + reserved["reserved"], abs=1e-9)


# C48: PagedAttention eliminates memory fragmentation.


@pytest.fixture(name="azure", scope="module")
def azure_fixture():
    """Conversations of Azure's trace."""
    traffic = TRAFFIC["azure_conversation"]
    return make_requests(150, AllAtOnce(), traffic.prompt, traffic.output, seed=1)


@pytest.mark.parametrize("scheme", ["max", "pow2", "oracle"])
def test_c48_external_fragmentation_goes(azure, scheme):
    capacity = 65_536
    pieces = average(occupancy(azure, scheme, capacity=capacity, longest=16_384).while_full)
    blocks = occupancy(azure, "paged", capacity=capacity)
    # What nobody holds while somebody waits: less than the waiting request needs, and that is all
    longest = max(r.prompt_tokens + r.output_tokens for r in azure)
    assert all(use.external < longest + 16 + capacity / 100 for use in blocks.while_full)
    assert average(blocks.while_full)["tokens"] > pieces["tokens"] + 0.1


def test_c48_internal_stays_below_a_block_a_request(azure):
    for block in (16, 256):
        for use in occupancy(azure, "paged", capacity=65_536, block_size=block).uses[::10]:
            assert use.internal <= (block - 1) * use.requests


def test_c48_half_a_block_on_average(azure):
    lengths = [r.prompt_tokens + r.output_tokens for r in azure]
    assert statistics.mean(tail_slots(n, 16) for n in lengths) == pytest.approx(7.5, abs=1.0)
    shares = [100 * tail_share(n, b) for n, b in ((60, 16), (1366, 16), (1366, 256))]
    assert [round(share, 1) for share in shares] == [11.1, 0.5, 8.5]


def test_c48_flips_with_the_block_size(azure):
    waste = [
        average(occupancy(azure, "paged", capacity=65_536, block_size=block).while_full)["internal"]
        for block in (1, 16, 64, 256)
    ]
    assert waste[0] == 0 and waste == sorted(waste) and waste[-1] > 0.04


# C49: PagedAttention simplifies memory management.


def statements_and_branches(*files):
    """Statements, and places where the code can go two ways."""
    nodes = [node for file in files for node in ast.walk(ast.parse((PACKAGE / file).read_text()))]
    branches = (ast.If, ast.For, ast.While, ast.IfExp, ast.BoolOp, ast.comprehension)
    return sum(isinstance(n, ast.stmt) for n in nodes), sum(isinstance(n, branches) for n in nodes)


def test_c49_more_code_and_more_branches():
    contiguous = statements_and_branches("buddy.py", "reservation.py")
    no_sharing = statements_and_branches("free_queue.py", "block_pool.py", "manager.py")
    with_cache = statements_and_branches("free_queue.py", "block_pool.py", "manager.py", "hash_chain.py")
    assert all(2 * a < b < c for a, b, c in zip(contiguous, no_sharing, with_cache, strict=True))


def test_c49_what_gets_simpler_is_sharing(request_of):
    # Four answers to a prompt of 1,000 tokens: no token is copied until they part, and then one block each
    manager = KVCacheManager(1000)
    root = request_of("root", 1000)
    manager.allocate_slots(root, 1000)
    root.num_computed_tokens = 1000
    children = [request_of(name, 1000, num_computed_tokens=1000) for name in range(3)]
    for child in children:
        manager.fork(root, child)
    assert manager.num_blocks - manager.num_free_blocks == 63
    for branch in (root, *children):
        manager.allocate_slots(branch, 1)
    assert len(manager.copies()) == 3
    assert manager.num_blocks - manager.num_free_blocks == 66


# C50: cheap sharing and copying of the cache is the basis of beam search and of reuse between requests.


@pytest.mark.parametrize("width", [2, 4, 6])
def test_c50_beams_share_most_of_their_blocks(width):
    parents = random_beams(width, 200, 0.2)
    beams = decode(160, parents, width=width)
    samples = decode(160, [range(width)] * 200, width=width)
    assert beams.saving > samples.saving > 0.2
    copied_tokens = 16 * beams.copies
    # Without sharing a replaced beam copies all that its new parent holds
    moved = sum((160 + t) * sum(p != b for b, p in enumerate(step)) for t, step in enumerate(parents))
    assert copied_tokens < 0.1 * moved


@pytest.mark.parametrize("width", [2, 6])
def test_c50_beam_search_needs_no_fork(width):
    parents = random_beams(width, 200, 0.2)
    without = beams_by_prefix(160, parents, width=width)
    # The price of asking anew: the tokens since the last full block, half a block on average, each step
    assert max(without.tokens) <= 16 * width
    assert without.per_token == pytest.approx((16 + 1) / 2, abs=0.3)


def test_c50_flips_where_nothing_is_alike(request_of, admit):
    manager = KVCacheManager(1000, enable_prefix_caching=True)
    for name in range(20):
        assert admit(manager, request_of(name, range(100 * name, 100 * name + 90))) == 0
    assert decode(160, [(0,)] * 50, width=1).saving == 0
