"""A transformer's operations on the roofline: what one forward pass over a batch takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import DTYPE_BYTES, GPU
from gpuedu.transformer import Transformer


@dataclass(frozen=True)
class Efficiency:
    """Which share of the datasheet a real kernel reaches.

    Parameters
    ----------
    compute : float
        Share of the peak FLOP/s in large matrix products, above 0, at most 1.
    bandwidth : float
        Share of the memory bandwidth when weights or keys and values are read, above 0, at most 1.
    source : str
        Where the figures come from.
    """

    compute: float
    bandwidth: float
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("compute", "bandwidth"):
            value = getattr(self, name)
            check_amount(name, value, positive=True)
            if value > 1:
                raise ValueError(f"{name}={value}: must be at most 1, it is a share of the datasheet")


DATASHEET = Efficiency(1.0, 1.0, "the roofline itself")

_AICONFIGURATOR = (
    "measured GEMM tables of NVIDIA aiconfigurator-core 0.12 (Apache-2.0): BF16 at m = 8192, weights at m = 1"
)
MEASURED = {
    "A100-80GB": Efficiency(263e12 / 312e12, 1526e9 / 2039e9, _AICONFIGURATOR),
    "H100-SXM": Efficiency(783e12 / 989e12, 2730e9 / 3350e9, _AICONFIGURATOR),
}
"""Efficiency by name of the GPU, where somebody measured it."""


class Operation(NamedTuple):
    """One kind of operation in a forward pass, over all layers: its name, FLOP, and bytes moved."""

    name: str
    flops: float
    nbytes: float

    @property
    def intensity(self) -> float:
        """FLOP for each byte."""
        return self.flops / self.nbytes

    def seconds(self, gpu: GPU, dtype: str, efficiency: Efficiency = DATASHEET) -> float:
        """Time on the roofline: arithmetic or memory, whichever takes longer."""
        return max(
            self.flops / (gpu.peak(dtype) * efficiency.compute),
            self.nbytes / (gpu.memory_bandwidth * efficiency.bandwidth),
        )


def linear_operations(
    model: Transformer, tokens: int, sequences: int, *, dtype: str = "bf16", tensor_parallel: int = 1
) -> list[Operation]:
    """The matrix products with weights, on one of ``tensor_parallel`` GPUs.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Its shape; without MLA and MoE.
    tokens : int
        New tokens of all sequences together, at least 1.
    sequences : int
        Sequences that produce a token: so many rows meet the output head.
    dtype : str
        Of weights and activations.
    tensor_parallel : int
        GPUs among which heads, FFN and vocabulary are divided.

    Returns
    -------
    list of Operation
        QKV and output projection, up (and gate) and down projection, output head. Bytes are weights,
        inputs and outputs.

    Raises
    ------
    TypeError, ValueError
        For a count out of range, an unknown dtype, heads that cannot be divided, and a model with MLA or
        MoE.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> decode = linear_operations(MODELS["llama-2-7b"], tokens=1, sequences=1)
    >>> round(sum(operation.nbytes for operation in decode) / 1e9, 2)  # GB: all weights but the embedding
    13.22
    """
    check_count("tokens", tokens)
    check_count("sequences", sequences, 0)
    check_dtype("dtype", dtype)
    _check_dense(model)
    check_tensor_parallel(model, tensor_parallel)
    t, h, d = tensor_parallel, model.hidden_size, model.head_dim
    heads, kv_heads = model.attention_heads // t, max(1, model.kv_heads // t)
    width = model.ffn_hidden_size // t
    up = 2 if model.gated_ffn else 1
    layers, size = model.layers, DTYPE_BYTES[dtype]

    def product(name: str, rows: int, inputs: int, outputs: int, times: int) -> Operation:
        moved = inputs * outputs + rows * (inputs + outputs)
        return Operation(name, times * 2 * rows * inputs * outputs, times * moved * size)

    return [
        product("qkv projection", tokens, h, (heads + 2 * kv_heads) * d, layers),
        product("output projection", tokens, heads * d, h, layers),
        product("up projection", tokens, h, up * width, layers),
        product("down projection", tokens, width, h, layers),
        product("output head", sequences, h, -(-model.vocab_size // t), 1),
    ]


def attention_operation(
    model: Transformer,
    pairs: float,
    cached_tokens: float,
    new_tokens: float,
    *,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    tensor_parallel: int = 1,
) -> Operation:
    """Attention over the cache, over all layers, on one of ``tensor_parallel`` GPUs.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Its shape; without MLA and MoE.
    pairs : float
        Pairs of query and key that the causal mask leaves.
    cached_tokens : float
        Tokens whose keys and values are read, the new ones included.
    new_tokens : float
        Tokens whose queries are read, whose keys and values are written and whose results are written.
    dtype, kv_dtype : str
        Of activations and of the cache.
    tensor_parallel : int
        GPUs among which the heads are divided; a KV head is kept by several if there are too few.

    Returns
    -------
    Operation
        ``4 * layers * heads * head_dim`` FLOP a pair. Decoding one token at context c has c + 1 pairs and
        reads c + 1 tokens: its intensity is about ``2 * attention_heads / kv_heads / bytes``, whatever the
        batch.

    Raises
    ------
    TypeError, ValueError
        For an amount that is negative or not finite, an unknown dtype, heads that cannot be divided, and a
        model with MLA or MoE.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> one = attention_operation(MODELS["llama-3-8b"], pairs=8000, cached_tokens=8000, new_tokens=1)
    >>> round(one.intensity, 1)  # 32 heads on 8 KV heads
    4.0
    """
    check_amount("pairs", pairs)
    check_amount("cached_tokens", cached_tokens)
    check_amount("new_tokens", new_tokens)
    check_dtype("dtype", dtype)
    check_dtype("kv_dtype", kv_dtype)
    _check_dense(model)
    check_tensor_parallel(model, tensor_parallel)
    t, d, layers = tensor_parallel, model.head_dim, model.layers
    heads, kv_heads = model.attention_heads // t, max(1, model.kv_heads // t)
    flops = 4 * layers * heads * d * pairs
    cache = 2 * layers * kv_heads * d * DTYPE_BYTES[kv_dtype] * (cached_tokens + new_tokens)
    activations = 2 * layers * heads * d * DTYPE_BYTES[dtype] * new_tokens
    return Operation("attention", flops, cache + activations)


def forward_operations(
    model: Transformer,
    batch: list[tuple[int, int]],
    *,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    tensor_parallel: int = 1,
) -> list[Operation]:
    """Every operation of one forward pass over a batch of sequences.

    Parameters
    ----------
    batch : list of (int, int)
        For each sequence its new tokens, at least 1, and the tokens before them in the cache.
    model, dtype, kv_dtype, tensor_parallel
        As for :func:`linear_operations` and :func:`attention_operation`.

    Returns
    -------
    list of Operation
        The matrix products, then attention.

    Raises
    ------
    TypeError, ValueError
        For an empty batch or a count out of range, and as those two functions do.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.transformer import MODELS
    >>> llama, a100 = MODELS["llama-2-7b"], GPUS["A100-80GB"]
    >>> def milliseconds(batch):
    ...     operations = forward_operations(llama, batch)
    ...     return round(1e3 * sum(operation.seconds(a100, "bf16") for operation in operations), 2)
    >>> milliseconds([(2048, 0)]), milliseconds([(1, 2048)])  # prefill, decode
    (88.67, 7.01)
    """
    if not batch:
        raise ValueError("batch: must have at least one sequence")
    for number, (new, context) in enumerate(batch):
        check_count(f"batch[{number}][0], new tokens", new)
        check_count(f"batch[{number}][1], tokens in the cache", context, 0)
    tokens = sum(new for new, _ in batch)
    pairs = sum(new * context + new * (new + 1) / 2 for new, context in batch)
    cached = sum(new + context for new, context in batch)
    shared = {"dtype": dtype, "tensor_parallel": tensor_parallel}
    return [
        *linear_operations(model, tokens, len(batch), **shared),
        attention_operation(model, pairs, cached, tokens, kv_dtype=kv_dtype, **shared),
    ]


def check_dtype(name: str, value: str) -> None:
    """Raise unless ``value`` is a dtype of :data:`gpuedu.hardware.DTYPE_BYTES`."""
    if not isinstance(value, str) or value not in DTYPE_BYTES:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(DTYPE_BYTES)}")


def check_tensor_parallel(model: Transformer, tensor_parallel: int) -> None:
    """Raise unless heads and FFN can be divided among so many GPUs, a KV head kept by several if need be."""
    check_count("tensor_parallel", tensor_parallel)
    t = tensor_parallel
    if model.attention_heads % t or model.ffn_hidden_size % t or (model.kv_heads % t and t % model.kv_heads):
        raise ValueError(
            f"tensor_parallel={t}: must divide {model.attention_heads} heads, {model.kv_heads} KV heads and "
            f"ffn_hidden_size={model.ffn_hidden_size}"
        )


def _check_dense(model: Transformer) -> None:
    if model.mla is not None or model.moe is not None:
        raise ValueError("model: must be one without mla and moe")
