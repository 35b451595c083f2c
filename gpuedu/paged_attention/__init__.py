"""PagedAttention: the KV cache in blocks of a few tokens, found through a table, shared by reference."""
