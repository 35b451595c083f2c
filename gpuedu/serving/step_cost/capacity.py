"""How many blocks of KV cache fit beside the weights."""

from __future__ import annotations

from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import DTYPE_BYTES, GPU
from gpuedu.prefill_decode.cost import check_dtype, check_tensor_parallel
from gpuedu.transformer import Transformer


def kv_cache_blocks(
    model: Transformer,
    gpu: GPU,
    *,
    block_size: int = 16,
    memory_utilization: float = 0.9,
    max_num_batched_tokens: int = 2048,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    tensor_parallel: int = 1,
) -> int:
    """Blocks that a replica's memory holds: memory minus weights minus activations.

    Parameters
    ----------
    model, gpu
        What runs on what.
    block_size : int
        Tokens in a block.
    memory_utilization : float
        Share of the GPU's memory that the server takes; vLLM's ``gpu_memory_utilization``.
    max_num_batched_tokens : int
        Tokens of the largest iteration, which fix the activations.
    dtype, kv_dtype : str
        Of weights and activations, and of the cache.
    tensor_parallel : int
        GPUs of the replica, among which heads, FFN and vocabulary are divided.

    Returns
    -------
    int
        Blocks; each GPU has its share of every one of them.

    Raises
    ------
    TypeError, ValueError
        For a count or a share out of range, an unknown dtype, heads that cannot be divided, or if weights
        and activations leave no room for one block.

    Notes
    -----
    Activations at their peak, for each token of the iteration: residual stream and its norm (2 h), and the
    larger of the FFN's inner values (gate, up and product) and of queries, keys, values and attention's
    result. The logits of 256 sequences in FP32 are counted besides. What the driver, the communication
    library and CUDA graphs take is the user's to leave out of ``memory_utilization``.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.transformer import MODELS
    >>> blocks = kv_cache_blocks(MODELS["opt-13b"], GPUS["A100-40GB"])
    >>> round(blocks * 16 / 1e3, 1)  # thousands of tokens; Kwon et al., table 1, have 15.7
    15.6
    """
    check_count("block_size", block_size)
    check_count("max_num_batched_tokens", max_num_batched_tokens)
    check_dtype("dtype", dtype)
    check_dtype("kv_dtype", kv_dtype)
    check_tensor_parallel(model, tensor_parallel)
    check_amount("memory_utilization", memory_utilization, positive=True)
    if memory_utilization > 1:
        raise ValueError(f"memory_utilization={memory_utilization}: must be at most 1")
    size, t = DTYPE_BYTES[dtype], tensor_parallel
    weights = model.parameters() * size / t
    heads = (2 * model.attention_heads + 2 * model.kv_heads) * model.head_dim / t
    ffn = (3 if model.gated_ffn else 1) * model.ffn_hidden_size / t
    activations = max_num_batched_tokens * size * (2 * model.hidden_size + max(heads, ffn))
    activations += 256 * 4 * model.vocab_size / t
    room = gpu.memory_bytes * memory_utilization - weights - activations
    kv_heads_share = max(1 / t, 1 / model.kv_heads) if model.mla is None else 1.0
    block = block_size * model.kv_cache_bytes_per_token(DTYPE_BYTES[kv_dtype]) * kv_heads_share
    blocks = int(room // block)
    if blocks < 1:
        raise ValueError(
            f"gpu={gpu.name}: {memory_utilization:g} of its memory leaves {room / 1e9:.1f} GB beside weights "
            f"of {weights / 1e9:.1f} GB and activations of {activations / 1e9:.1f} GB, must hold one block"
        )
    return blocks
