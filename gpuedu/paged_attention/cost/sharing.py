"""What sharing blocks saves: several answers to one prompt, and beams that fork and die."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from gpuedu.checks import check_amount, check_count
from gpuedu.paged_attention.plan import KVCacheManager


def parallel_sampling_blocks(prompt: int, made: int, samples: int, block_size: int) -> int:
    """Blocks that several answers to one prompt hold when each has ``made`` tokens.

    Parameters
    ----------
    prompt, made : int
        Tokens of the prompt and of each answer.
    samples : int
        How many answers.
    block_size : int
        Tokens in a block.

    Returns
    -------
    int
        The prompt's full blocks once, everything after them once an answer.

    Notes
    -----
    The prompt's last block, if it is not full, is copied for each answer but one as soon as they write:
    ``floor(p / B) + n (ceil((p + t) / B) - floor(p / B))``; with no token made it is still shared.

    Examples
    --------
    >>> parallel_sampling_blocks(40, 10, samples=4, block_size=16)  # 16 without sharing
    10
    """
    check_count("prompt", prompt)
    check_count("made", made, minimum=0)
    check_count("samples", samples)
    check_count("block_size", block_size)
    if not made:
        return -(-prompt // block_size)
    common = prompt // block_size
    return common + samples * (-(-(prompt + made) // block_size) - common)


@dataclass(frozen=True)
class Sharing:
    """Blocks held over the steps of a decoding, with sharing and if every branch had its own.

    ``copies`` counts the block copies that writing into shared blocks cost.
    """

    shared: tuple[int, ...]
    unshared: tuple[int, ...]
    copies: int

    @property
    def saving(self) -> float:
        """Share of the block-steps that sharing saves, 0 to 1."""
        return 1 - sum(self.shared) / sum(self.unshared)


@dataclass(slots=True)
class _Branch:
    request_id: int
    num_tokens: int
    num_computed_tokens: int = 0
    token_ids: None = None
    cache_salt: None = None


def checked_parents(parents: Iterable[Sequence[int]], width: int) -> list[tuple[int, ...]]:
    """The parents of each step, once they are seen to be branches.

    Parameters
    ----------
    parents : iterable of tuple of int
        For each step, the branch that each of the next ones goes on from.
    width : int
        Branches.

    Returns
    -------
    list of tuple of int

    Raises
    ------
    ValueError
        If there is no step, or one does not name ``width`` parents from 0 to ``width - 1``.

    Examples
    --------
    >>> checked_parents([range(2)], 2)
    [(0, 1)]
    """
    steps = [tuple(step) for step in parents]
    if not steps:
        raise ValueError("parents: must be at least one step's")
    for number, step in enumerate(steps):
        if len(step) != width or not all(parent in range(width) for parent in step):
            raise ValueError(f"parents[{number}]={step}: must be {width} numbers from 0 to {width - 1}")
    return steps


def decode(prompt: int, parents: Iterable[Sequence[int]], *, width: int, block_size: int = 16) -> Sharing:
    """Decode ``width`` branches of one prompt, through the cache manager.

    Parameters
    ----------
    prompt : int
        Tokens of the prompt, computed once and then forked.
    parents : iterable of tuple of int
        For each step, the branch (0 to ``width - 1``) that each of the ``width`` next branches goes on
        from. ``range(width)`` each time: parallel sampling.
    width : int
        Branches, at least 1.
    block_size : int
        Tokens in a block.

    Returns
    -------
    Sharing
        After each step.

    Raises
    ------
    ValueError
        If there is no step, or one does not name ``width`` parents from 0 to ``width - 1``.

    Examples
    --------
    >>> result = decode(6, [(0, 1), (0, 0)], width=2, block_size=4)
    >>> result.shared, result.unshared, result.copies
    ((3, 3), (4, 4), 2)
    """
    check_count("prompt", prompt)
    check_count("width", width)
    check_count("block_size", block_size)
    steps = checked_parents(parents, width)
    # Two generations at most: a step forks the next one off before it lets the last one go
    blocks = 2 * width * -(-(prompt + len(steps) + 1) // block_size)
    manager = KVCacheManager(blocks, block_size)
    root = _Branch(0, prompt)
    manager.allocate_slots(root, prompt)
    root.num_computed_tokens = prompt
    branches = [root] + [_fork(manager, root, name) for name in range(1, width)]
    shared, unshared, name, copies = [], [], width, 0
    for step in steps:
        branches, name = _next_generation(manager, branches, step, name)
        for branch in branches:
            branch.num_tokens += 1
            manager.allocate_slots(branch, 1)
            branch.num_computed_tokens += 1
        copies += len(manager.copies())
        shared.append(manager.num_blocks - manager.num_free_blocks)
        unshared.append(sum(len(manager.block_table(branch.request_id)) for branch in branches))
    return Sharing(tuple(shared), tuple(unshared), copies)


def _fork(manager: KVCacheManager, parent: _Branch, name: int) -> _Branch:
    child = _Branch(name, parent.num_tokens, parent.num_computed_tokens)
    manager.fork(parent, child)
    return child


def _next_generation(
    manager: KVCacheManager, branches: list[_Branch], step: Sequence[int], name: int
) -> tuple[list[_Branch], int]:
    """The first child of a branch goes on in it, further ones are forks; who has no child is freed."""
    going_on: dict[int, _Branch] = {}
    children = []
    for parent in step:
        if parent not in going_on:
            going_on[parent] = branches[parent]
            children.append(branches[parent])
        else:
            children.append(_fork(manager, branches[parent], name))
            name += 1
    for number, branch in enumerate(branches):
        if number not in going_on:
            manager.free(branch)
    return children, name


def random_beams(width: int, steps: int, replaced: float, *, seed: int = 0) -> list[tuple[int, ...]]:
    """Parents of random beams: each dies with probability ``replaced`` a step, for a fork of another.

    Parameters
    ----------
    width, steps : int
        Beams, and tokens that each makes.
    replaced : float
        0: parallel sampling. 1: every beam's parent is any of the others.
    seed : int
        Fixes the draw.

    Returns
    -------
    list of tuple of int
        For :func:`decode`.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range.

    Examples
    --------
    >>> random_beams(3, 2, 0.5)
    [(0, 1, 1), (0, 0, 2)]
    """
    check_count("width", width, minimum=2)
    check_count("steps", steps)
    _check_replaced(replaced)
    random = Random(seed)

    def parent(beam: int) -> int:
        if random.random() >= replaced:
            return beam
        return (beam + random.randrange(1, width)) % width

    return [tuple(parent(beam) for beam in range(width)) for _ in range(steps)]


def _check_replaced(replaced: float) -> None:
    check_amount("replaced", replaced)
    if replaced > 1:
        raise ValueError(f"replaced={replaced}: must be from 0 to 1")


def two_beams_saving(prompt: int, output: int, replaced: float) -> Fraction:
    """Expected saving of two beams under :func:`random_beams`, counted in tokens, not blocks.

    Parameters
    ----------
    prompt, output : int
        Tokens of the prompt, and of each beam.
    replaced : float
        As for :func:`random_beams`.

    Returns
    -------
    Fraction
        Share of the token-steps that sharing saves.

    Raises
    ------
    ValueError, TypeError
        For a count below 1, or ``replaced`` not from 0 to 1.

    Notes
    -----
    Two beams have one history up to their last common ancestor. Looking back from now, the two lines meet
    in each step with probability q = 2 r (1 - r) (one of the two is a fork of the other), so after t steps
    the own part of each is ``sum_{k=1..t} (1 - q)^(k-1)`` tokens long on average, and the saving
    ``1 - sum_t (p + t + own_t) / sum_t 2 (p + t)``. (With both replaced, the two only change places.)

    Examples
    --------
    >>> two_beams_saving(10, 60, 0.0) == Fraction(60 * 10, 2 * (60 * 10 + 60 * 61 // 2))
    True
    """
    check_count("prompt", prompt)
    check_count("output", output)
    _check_replaced(replaced)
    rate = Fraction(replaced).limit_denominator(10**6)
    meet = 2 * rate * (1 - rate)
    own, apart = Fraction(0), Fraction(1)
    held = alone = Fraction(0)
    for t in range(1, output + 1):
        own += apart
        apart *= 1 - meet
        held += prompt + t + own
        alone += 2 * (prompt + t)
    return 1 - held / alone
