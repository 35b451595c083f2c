"""Beam search without forks: each step asks anew, and the prefix cache finds what is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpuedu.checks import check_count
from gpuedu.paged_attention.plan import KVCacheManager

from .sharing import checked_parents


@dataclass(frozen=True)
class Recomputed:
    """Tokens that each step of a beam search by prefix cache computes.

    ``tokens`` of one step, for all beams; with forks it would be one token a beam.
    """

    tokens: tuple[int, ...]
    width: int

    @property
    def per_token(self) -> float:
        """Tokens computed for each token made."""
        return sum(self.tokens) / (self.width * len(self.tokens))


@dataclass
class _Request:
    request_id: int
    token_ids: list[int]
    num_computed_tokens: int = 0
    cache_salt: None = None
    block_hashes: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def beams_by_prefix(
    prompt: int, parents: Iterable[Sequence[int]], *, width: int, block_size: int = 16
) -> Recomputed:
    """Beam search in which every beam of every step is a new request with its whole text.

    Parameters
    ----------
    prompt : int
        Tokens of the prompt.
    parents : iterable of tuple of int
        As for :func:`decode`.
    width, block_size : int
        Beams, and tokens in a block.

    Returns
    -------
    Recomputed

    Raises
    ------
    ValueError, TypeError
        For a count below 1, no step, or a step that does not name ``width`` parents from 0 to ``width - 1``.

    Notes
    -----
    What vLLM has done since it took beam search out of its core. No block is ever shared in the middle, so
    nothing is copied; the last block's tokens, up to a whole block of them, are computed again each step.

    Examples
    --------
    >>> beams_by_prefix(9, [(0, 1)] * 4, width=2, block_size=4).tokens
    (2, 4, 6, 8)
    """
    check_count("prompt", prompt)
    check_count("width", width)
    check_count("block_size", block_size)
    steps = checked_parents(parents, width)
    blocks = 2 * width * (prompt + len(steps) + block_size) // block_size + width
    manager = KVCacheManager(blocks, block_size, enable_prefix_caching=True)
    texts = [list(range(prompt))] * width
    made, name = [], 0
    _ask(manager, _Request(-1, texts[0]))
    for number, step in enumerate(steps):
        tokens = 0
        for beam in range(width):
            tokens += _ask(manager, _Request(name, texts[step[beam]]))
            name += 1
        texts = [[*texts[step[beam]], prompt + number * width + beam] for beam in range(width)]
        made.append(tokens)
    return Recomputed(tuple(made), width)


def _ask(manager: KVCacheManager, request: _Request) -> int:
    """Compute a request's text, release it, and say how many tokens that took."""
    found, hit = manager.get_computed_blocks(request)
    manager.allocate_slots(request, request.num_tokens - hit, found)
    request.num_computed_tokens = request.num_tokens
    manager.free(request)
    return request.num_tokens - hit
