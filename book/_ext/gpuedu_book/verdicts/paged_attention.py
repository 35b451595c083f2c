"""Numbers in the verdicts on PagedAttention."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import gpuedu.paged_attention.plan
from gpuedu.paged_attention.cost import (
    SCHEMES,
    average,
    beams_by_prefix,
    decode,
    occupancy,
    random_beams,
    sharegpt_like,
    tail_share,
)
from gpuedu.transformer import MODELS

WIDTHS = {"two": 2, "six": 6}
BLOCK, LARGE_BLOCK = 16, 256
FEW, MANY = 60, 1366  # tokens: a short chat, and the mean of Azure's conversations
PROMPT, OUTPUT, REPLACED = 160, 340, 0.2


@cache
def figure_2() -> dict[str, dict[str, float]]:
    """Mean shares of OPT-13B's cache on a 40 GB A100 while a chat waits, in percent, by allocator."""
    capacity = int(12 * 2**30 / MODELS["opt-13b"].kv_cache_bytes_per_token())
    requests = sharegpt_like(2000)
    return {
        scheme: {
            part: 100 * share
            for part, share in average(occupancy(requests, scheme, capacity=capacity).while_full).items()
        }
        for scheme in SCHEMES
    }


def statements_and_branches(*files: str) -> tuple[int, int]:
    """Statements of modules of the plan, and places where they can go two ways."""
    folder = Path(gpuedu.paged_attention.plan.__file__).parent
    nodes = [node for file in files for node in ast.walk(ast.parse((folder / file).read_text()))]
    branches = (ast.If, ast.For, ast.While, ast.IfExp, ast.BoolOp, ast.comprehension)
    return sum(isinstance(n, ast.stmt) for n in nodes), sum(isinstance(n, branches) for n in nodes)


def c47() -> dict[str, object]:
    """Where the analogy with an operating system's pages holds."""
    return {"longest": "2,048", "max": f"{figure_2()['max']['tokens']:.0f}"}


def c48() -> dict[str, object]:
    """The three kinds of waste, and what is left of them."""
    shares = figure_2()
    return {
        "max": f"{shares['max']['tokens']:.0f}",
        "powers": f"{shares['pow2']['tokens']:.0f}",
        "oracle": f"{shares['oracle']['tokens']:.0f}",
        "oracle_external": f"{shares['oracle']['external']:.0f}",
        "paged": f"{shares['paged']['tokens']:.0f}",
        "block": BLOCK,
        "large": LARGE_BLOCK,
        "few": FEW,
        "many": f"{MANY:,}",
        "half": (BLOCK - 1) / 2,
        "short": f"{100 * tail_share(FEW, BLOCK):.0f}",
        "usual": f"{100 * tail_share(MANY, BLOCK):.1f}",
        "big": f"{100 * tail_share(MANY, LARGE_BLOCK):.1f}",
    }


def c49() -> dict[str, object]:
    """How much code the two ways take."""
    contiguous = statements_and_branches("buddy.py", "reservation.py")
    paged = statements_and_branches("free_queue.py", "block_pool.py", "manager.py", "hash_chain.py")
    return {
        "contiguous_statements": contiguous[0],
        "paged_statements": paged[0],
        "contiguous_branches": contiguous[1],
        "paged_branches": paged[1],
    }


def c50() -> dict[str, object]:
    """What beams and samples save by sharing, and what beam search costs without forks."""
    numbers: dict[str, object] = {"prompt": PROMPT, "output": OUTPUT}
    for name, width in WIDTHS.items():
        beams = decode(PROMPT, random_beams(width, OUTPUT, REPLACED), width=width)
        samples = decode(PROMPT, [range(width)] * OUTPUT, width=width)
        numbers[f"beams_{name}"] = f"{100 * beams.saving:.0f}"
        numbers[f"samples_{name}"] = f"{100 * samples.saving:.0f}"
    again = beams_by_prefix(PROMPT, random_beams(6, OUTPUT, REPLACED), width=6)
    return numbers | {"again": f"{again.per_token:.1f}"}
