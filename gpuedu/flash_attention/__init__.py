"""FlashAttention: attention in tiles that stay on the chip, by one of several orders of tiles."""
