"""What the engine takes: checked before anything is begun, so that the engine is as it was after an error."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from gpuedu.checks import check_count
from gpuedu.llama import Llama, Tokenizer, causal_attention

from .sampling_params import SamplingParams

Prompt = str | Sequence[int]


def encode(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """The tokens of a prompt; raise for none, for text without a tokenizer, and for a token out of range."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(f"prompt={prompt!r}: must be tokens, there is no tokenizer")
        prompt = tokenizer.encode(prompt)
    ids = list(prompt)
    if not ids:
        raise ValueError("prompt: must be one token or more")
    wrong = [token for token in ids if type(token) is not int or not 0 <= token < vocab_size]
    if wrong:
        raise ValueError(f"prompt: token {wrong[0]!r} must be an int from 0 to {vocab_size - 1}")
    return ids


def check_length(ids: list[int], params: SamplingParams, context: int) -> None:
    """Raise unless prompt and answer fit the model's context."""
    if len(ids) + params.max_tokens > context:
        raise ValueError(
            f"prompt of {len(ids)} tokens and max_tokens={params.max_tokens}: must be together at most "
            f"the model's context of {context}"
        )


def check_attention(model: Llama) -> None:
    """Raise if the model has an attention that the engine would not use."""
    for number, layer in enumerate(model.layers):
        attention = layer.self_attn.attention
        if attention is not causal_attention:
            raise ValueError(
                f"model: attention of layer {number} is {attention!r}, must be causal_attention: the engine "
                "computes attention over its blocks itself"
            )


def check_hashable(**values: Hashable) -> None:
    """Raise unless all of these can be keys."""
    for name, value in values.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(f"{name}={value!r}: must be hashable") from None


def blocks_of(model: Llama, num_blocks: int | None, memory_bytes: int | None, block_size: int) -> int:
    """Blocks of the KV cache: so many, or as many as the memory holds, or four contexts' worth."""
    if num_blocks is not None and memory_bytes is not None:
        raise ValueError(f"num_blocks={num_blocks}, kv_memory_bytes={memory_bytes}: must not both be given")
    if num_blocks is not None:
        check_count("num_blocks", num_blocks)
        return num_blocks
    if memory_bytes is None:
        return -(-4 * model.config.context_length // block_size)
    check_count("kv_memory_bytes", memory_bytes)
    dtype_bytes = model.embed_tokens.weight.element_size()
    block_bytes = block_size * model.config.shape.kv_cache_bytes_per_token(dtype_bytes=dtype_bytes)
    if memory_bytes < block_bytes:
        raise ValueError(f"kv_memory_bytes={memory_bytes}: must be at least a block's {block_bytes}")
    return int(memory_bytes // block_bytes)
