"""How long a decode step and a prefill take: what the memory delivers, what the tensor cores know."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.hardware import GPU
from gpuedu.transformer import Transformer

from ..plan import Format, KVQuantization
from .kv import FULL_BYTES, kv_bytes
from .memory import linear_bytes
from .shapes import linear_shapes

SIXTEEN = ("bf16", "fp16")
"""What is multiplied where a GPU has no faster path for a format; the first that it has."""


@dataclass(frozen=True)
class Work:
    """What a pass moves and computes, and the time that either takes alone.

    Parameters
    ----------
    weight_bytes, kv_bytes : float
        Read from device memory.
    linear_flops, other_flops : float
        Of the quantized matrices, and of attention and output head.
    dtype : str
        In which the quantized matrices are multiplied.
    memory_s, compute_s : float
        Seconds at the memory's bandwidth, and at the peaks of the two dtypes.
    """

    weight_bytes: float
    kv_bytes: float
    linear_flops: float
    other_flops: float
    dtype: str
    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        """The longer of the two: each is hidden behind the other."""
        return max(self.memory_s, self.compute_s)

    @property
    def memory_bound(self) -> bool:
        """Whether the memory takes longer."""
        return self.memory_s >= self.compute_s


def multiply_dtype(gpu: GPU, format: Format) -> str:
    """The dtype in which a GPU multiplies weights of a format.

    Parameters
    ----------
    gpu : GPU
        Its peaks say what it knows.
    format : Format
        Of the weights, and of the activations where both are quantized.

    Returns
    -------
    str
        The format's own where the GPU has it, else its 16 bits: then the weights are expanded on the way, and
        only their bytes are fewer.

    Raises
    ------
    ValueError
        If the GPU has neither.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.quantization.plan import FORMATS
    >>> [multiply_dtype(GPUS[gpu], FORMATS["fp8"]) for gpu in ("A100-80GB", "H100-SXM", "V100")]
    ['bf16', 'fp8', 'fp16']
    """
    for dtype in (format.multiplied_as, *SIXTEEN):
        if dtype in gpu.peak_flops:
            return dtype
    raise ValueError(f"gpu={gpu.name}: must have one of {format.multiplied_as}, {', '.join(SIXTEEN)}")


def decode_step(
    model: Transformer,
    gpu: GPU,
    format: Format,
    batch: int,
    context: int,
    quantization: KVQuantization | None = None,
) -> Work:
    """One token for each of ``batch`` sequences.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Without MLA and MoE.
    gpu : GPU
        One of them, with the whole model.
    format : Format
        Of the matrices inside the layers.
    batch, context : int
        Sequences, and tokens that each has in the cache.
    quantization : KVQuantization or None
        Of the cache.

    Returns
    -------
    Work
        Weights and output head are read once, the cache of every sequence too.

    Raises
    ------
    TypeError, ValueError
        For a count below 1, MLA or MoE, or a group that does not divide.

    Notes
    -----
    Left out: norms and activations (small), the row of the embedding, the instructions that expand codes, and
    everything by which real kernels stay below the datasheet.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.quantization.plan import FORMATS
    >>> from gpuedu.transformer import MODELS
    >>> llama, a100 = MODELS["llama-2-7b"], GPUS["A100-80GB"]
    >>> sixteen, four = (decode_step(llama, a100, FORMATS[name], 1, 2048) for name in ("bf16", "int4_g128"))
    >>> round(1e3 * sixteen.seconds, 1), round(1e3 * four.seconds, 1)
    (7.0, 2.3)
    """
    check_count("batch", batch)
    check_count("context", context)
    _check_dense(model)
    head = model.vocab_size * model.hidden_size * FULL_BYTES
    cache = batch * kv_bytes(model, context, quantization)
    flops = batch * model.forward_flops(1, context)
    return _work(model, gpu, format, linear_bytes(model, format) + head, cache, batch, flops)


def prefill(model: Transformer, gpu: GPU, format: Format, tokens: int) -> Work:
    """A prompt of ``tokens``, alone.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Without MLA and MoE.
    gpu : GPU
        One of them, with the whole model.
    format : Format
        Of the matrices inside the layers; its ``multiplied_as`` counts where the GPU knows it.
    tokens : int
        Of the prompt.

    Returns
    -------
    Work
        The output head is counted for the last token alone, as servers compute it; the cache is written in
        16 bits.

    Raises
    ------
    TypeError, ValueError
        For a count below 1, MLA or MoE, or a group that does not divide.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.quantization.plan import FORMATS
    >>> from gpuedu.transformer import MODELS
    >>> llama, h100 = MODELS["llama-2-7b"], GPUS["H100-SXM"]
    >>> names = ("bf16", "int4_g128", "fp8")
    >>> [round(1e3 * prefill(llama, h100, FORMATS[name], 2048).seconds, 1) for name in names]
    [27.9, 27.9, 14.5]
    """
    check_count("tokens", tokens)
    _check_dense(model)
    head = model.vocab_size * model.hidden_size
    flops = model.forward_flops(tokens) - 2 * head * (tokens - 1)
    moved = linear_bytes(model, format) + head * FULL_BYTES
    return _work(model, gpu, format, moved, kv_bytes(model, tokens), tokens, flops)


def _work(model, gpu, format, weights: float, cache: float, tokens: int, flops: float) -> Work:
    """A pass of ``tokens`` in all, with ``flops`` in all."""
    linear = 2 * tokens * sum(m.weights for m in linear_shapes(model))
    dtype = multiply_dtype(gpu, format)
    sixteen = next(name for name in SIXTEEN if name in gpu.peak_flops)
    compute = linear / gpu.peak(dtype) + (flops - linear) / gpu.peak(sixteen)
    return Work(
        weights, cache, linear, flops - linear, dtype, (weights + cache) / gpu.memory_bandwidth, compute
    )


def _check_dense(model: Transformer) -> None:
    if model.mla is not None or model.moe is not None:
        raise ValueError("model: must be one without MLA and MoE")
