"""Attentions for hypothesis to draw, and what a query sees, written down pair by pair."""

from __future__ import annotations

from hypothesis import strategies as st

from gpuedu.flash_attention.plan import BACKWARDS, FORWARDS, AttentionShape, TilePlan, Tiles, split_kv

PLANS = ["standard", "version_1", "version_2", "split_kv", *BACKWARDS]
reaches = st.one_of(st.none(), st.integers(0, 40))


def attentions(longest: int = 24, *, shortest: int = 0) -> st.SearchStrategy[AttentionShape]:
    """Any attention with sequences up to ``longest``."""
    return st.builds(
        lambda queries, keys, d, kv_heads, group, batch, causal, window: AttentionShape(
            queries, keys, d, kv_heads * group, kv_heads, batch, causal, window
        ),
        queries=st.integers(shortest, longest),
        keys=st.integers(shortest, longest),
        d=st.integers(1, 4),
        kv_heads=st.integers(1, 2),
        group=st.integers(1, 3),
        batch=st.integers(1, 2),
        causal=st.booleans(),
        window=st.tuples(reaches, reaches),
    )


def tiles(largest: int = 12) -> st.SearchStrategy[Tiles]:
    """Any tile."""
    return st.builds(Tiles, st.integers(1, largest), st.integers(1, largest))


def make(name: str, attention: AttentionShape, tile: Tiles, splits: int = 1) -> TilePlan:
    """A plan by its name."""
    if name == "split_kv":
        return split_kv(attention, tile, splits)
    return (FORWARDS | BACKWARDS)[name](attention, tile)


def sees(attention: AttentionShape, query: int, key: int) -> bool:
    """Whether ``query`` sees ``key``, from the definition: positions aligned at the bottom right."""
    distance = key - (query + attention.keys - attention.queries)
    left, right = attention.window
    after = 0 if attention.causal else right
    return (left is None or distance >= -left) and (after is None or distance <= after)
