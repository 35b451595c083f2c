"""Block tables carried out on tensors: attention, writes and copies, beside their contiguous likes."""

from .attention import gathered_attention, paged_attention
from .cache import PagedKVCache
from .measure import AttentionTimes, attention_times

__all__ = ["AttentionTimes", "PagedKVCache", "attention_times", "gathered_attention", "paged_attention"]
