"""What a quantized KV cache takes, and how many sequences fit because of it."""

from __future__ import annotations

from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import GPU
from gpuedu.transformer import Transformer

from ..plan import Format, KVQuantization
from .memory import weight_bytes

FULL_BYTES = 2
"""Of a number that is not quantized."""


def kv_bytes(model: Transformer, tokens: int, quantization: KVQuantization | None = None) -> float:
    """Bytes of one sequence's keys and values.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Without MLA, whose cache holds latents; its heads' width must be a multiple of the group.
    tokens : int
        In the cache, 0 or more.
    quantization : KVQuantization or None
        None: 16 bits each.

    Returns
    -------
    float
        Bytes, with scales, minima and the window that stays in 16 bits.

    Raises
    ------
    TypeError, ValueError
        For a model with MLA, a count below 0, or a group that does not divide the heads' width.

    References
    ----------
    Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache".

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> llama = MODELS["llama-2-7b"]
    >>> round(kv_bytes(llama, 8192) / kv_bytes(llama, 8192, KVQuantization(bits=2)), 2)
    5.16
    """
    check_count("tokens", tokens, 0)
    if model.mla is not None:
        raise ValueError("model: must be one without MLA")
    side = model.layers * model.kv_heads * model.head_dim  # keys, or values, of one token
    if quantization is None:
        return 2 * side * tokens * FULL_BYTES
    if model.head_dim % quantization.group:
        raise ValueError(f"group={quantization.group}: must divide head_dim={model.head_dim} without rest")
    quantized = quantization.quantized_keys(tokens) + quantization.quantized_values(tokens)
    full = 2 * tokens - quantized
    return side * (quantized * quantization.bits_per_number / 8 + full * FULL_BYTES)


def largest_batch(
    model: Transformer,
    gpu: GPU,
    format: Format,
    context: int,
    quantization: KVQuantization | None = None,
    *,
    usable: float = 0.9,
) -> int:
    """How many sequences of one length a GPU holds beside the weights.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Without MLA.
    gpu : GPU
        Its memory counts.
    format : Format
        Of the weights.
    context : int
        Tokens of each sequence, at least 1.
    quantization : KVQuantization or None
        Of the cache.
    usable : float
        Share of the GPU's memory that weights and cache may take, above 0 and at most 1.

    Returns
    -------
    int
        Sequences; 0 where the weights leave room for none.

    Raises
    ------
    TypeError, ValueError
        For an argument out of its range.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.quantization.plan import FORMATS
    >>> from gpuedu.transformer import MODELS
    >>> setting = MODELS["llama-2-7b"], GPUS["A100-80GB"], FORMATS["bf16"], 4096
    >>> largest_batch(*setting), largest_batch(*setting, KVQuantization(bits=2))
    (29, 148)
    """
    check_count("context", context)
    check_amount("usable", usable, positive=True)
    if usable > 1:
        raise ValueError(f"usable={usable}: must be at most 1")
    room = gpu.memory_bytes * usable - weight_bytes(model, format)
    return max(0, int(room // kv_bytes(model, context, quantization)))
