"""What the cache manager needs to know of a request."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol


class SequenceLike(Protocol):
    """A request as the scheduler and the engine hold it.

    Two more attributes are read where they exist: ``block_hashes``, a list (empty at first) in which the
    manager keeps the hashes of the full blocks, so that a request that waits or comes back is not hashed
    again (empty it if tokens that it covers are ever replaced, or if another manager is asked); and
    ``retention_priority``, an int (0 where it is missing), for ``eviction="priority"``.

    Attributes
    ----------
    request_id : Hashable
        Its name; no two live requests share one.
    num_tokens : int
        Tokens known so far: prompt and output.
    num_computed_tokens : int
        How many of them have their keys and values in the cache already. Blocks that
        ``get_computed_blocks`` found count only after ``allocate_slots`` has taken them.
    token_ids : Sequence[int] or None
        The tokens, at least ``num_tokens`` of them; None: nothing of this request is hashed or shared.
    cache_salt : Hashable or None
        Only requests with equal salts find each other's blocks.
    """

    request_id: Hashable
    num_tokens: int
    num_computed_tokens: int
    token_ids: Sequence[int] | None
    cache_salt: Hashable | None
