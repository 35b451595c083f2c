"""The cache manager as the engine needs it: what has not been computed is not found."""

from __future__ import annotations

from gpuedu.paged_attention.plan import KVCacheManager, SequenceLike


class EngineKVCacheManager(KVCacheManager):
    """A :class:`~gpuedu.paged_attention.plan.KVCacheManager` whose index holds computed blocks alone.

    Notes
    -----
    ``allocate_slots`` enters blocks into the prefix index before they are computed. With priorities a
    scheduler may take blocks back from a request in the same iteration that was to fill them, when a more
    important one further back in the batch finds no block. They stay empty then, and the index would hand
    them to the next prompt that begins alike. Counting simulators need not care; an engine must.
    """

    def free(self, sequence: SequenceLike) -> None:
        """Release what a request holds, and forget the blocks that its last iteration did not fill."""
        table = self._tables.get(sequence.request_id)
        if table is not None and self.pool.index is not None:
            computed = sequence.num_computed_tokens // self.block_size
            if table.known > computed:
                self.pool.index.discard(table.blocks[computed : table.known])
        super().free(sequence)
