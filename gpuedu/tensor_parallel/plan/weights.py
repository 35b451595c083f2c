"""The parameters of a transformer and how tensor parallelism cuts each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import lcm

from gpuedu.checks import check_count
from gpuedu.transformer import Transformer

from .tensor import Tensor

VOCABULARY = 0  # the cut axis of the embedding's table
COLUMN, ROW = 0, 1  # of a weight stored as (out, in)


def check_divisible(model: Transformer, tensor_parallel: int) -> None:
    """Raise unless ``model`` is of a kind, and its axes of lengths, that this many ranks can cut."""
    if not isinstance(model, Transformer):
        raise TypeError(f"model={model!r}: must be a Transformer")
    check_count("tensor_parallel", tensor_parallel)
    if model.mla is not None or model.moe is not None:
        raise ValueError("model: must be one without mla and moe")
    for name in ("attention_heads", "ffn_hidden_size", "vocab_size"):
        length = getattr(model, name)
        if length % tensor_parallel:
            hint = "; see padded_vocabulary" if name == "vocab_size" else ""
            raise ValueError(
                f"tensor_parallel={tensor_parallel}: must divide {name}={length} without rest{hint}"
            )
    if model.kv_heads % tensor_parallel and tensor_parallel % model.kv_heads:
        raise ValueError(
            f"tensor_parallel={tensor_parallel}: must divide kv_heads={model.kv_heads} or be a multiple of it"
        )


def padded_vocabulary(model: Transformer, tensor_parallel: int, multiple: int = 128) -> Transformer:
    """The model with rows added to its vocabulary, so that every rank gets as many, a round number.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Any model.
    tensor_parallel : int
        Ranks t.
    multiple : int
        Each rank's rows become a multiple of this; Megatron-LM's ``--make-vocab-size-divisible-by``,
        default 128.

    Returns
    -------
    gpuedu.transformer.Transformer
        The same shape with ``vocab_size`` rounded up to the next multiple of ``multiple * t``.

    Raises
    ------
    TypeError, ValueError
        If a count is no int or below 1.

    Examples
    --------
    GPT-3's 50,257 tokens become the 51,200 of Megatron-LM's papers:

    >>> from gpuedu.transformer import MODELS
    >>> padded_vocabulary(MODELS["gpt3-175b"], 8).vocab_size
    51200
    """
    check_count("tensor_parallel", tensor_parallel)
    check_count("multiple", multiple)
    step = multiple * tensor_parallel
    return replace(model, vocab_size=-(-model.vocab_size // step) * step)


def usable(model: Transformer) -> tuple[int, ...]:
    """Every tensor-parallel size that cuts ``model`` evenly, smallest first.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        A model without MLA and MoE.

    Returns
    -------
    tuple of int
        All t for which :func:`~gpuedu.tensor_parallel.plan.shard` works.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> usable(MODELS["llama-3-70b"]), usable(MODELS["smollm2-135m"])
    ((1, 2, 4, 8, 16, 32, 64), (1, 3))
    """
    check_divisible(model, 1)

    def fits(t: int) -> bool:
        whole = (model.attention_heads, model.ffn_hidden_size, model.vocab_size)
        return not any(n % t for n in whole) and lcm(t, model.kv_heads) in (t, model.kv_heads)

    return tuple(filter(fits, range(1, model.attention_heads + 1)))


def weights(model: Transformer, tensor_parallel: int, itemsize: float = 2) -> Iterator[Tensor]:
    """Every parameter of ``model``, with its cut; a tied head is the embedding and not listed."""
    m, t = model, tensor_parallel
    h, kv_ranks = m.hidden_size, min(t, m.kv_heads)
    queries, keys = m.attention_heads * m.head_dim, m.kv_heads * m.head_dim

    def whole(name: str, site: str, *shape: int, count: int = m.layers) -> Tensor:
        return Tensor(name, site, shape, None, 1, t, count, itemsize)

    def cut(name: str, site: str, axis: int, *shape: int, pieces: int = t, count: int = m.layers) -> Tensor:
        return Tensor(name, site, shape, axis, pieces, t, count, itemsize)

    def norm(name: str, site: str, count: int = m.layers) -> Iterator[Tensor]:
        yield whole(name, site, h, count=count)
        if m.norm == "layernorm":
            yield whole(name + " bias", site, h, count=count)

    yield cut("embedding", "embedding", VOCABULARY, m.vocab_size, h, count=1)
    if m.learned_positions:
        yield whole("positions", "embedding", m.learned_positions, h, count=1)

    yield from norm("attention norm", "attention_in")
    for name, width, pieces in (("q", queries, t), ("k", keys, kv_ranks), ("v", keys, kv_ranks)):
        yield cut(name, "attention_in", COLUMN, width, h, pieces=pieces)
        if m.biases != "none":
            yield cut(f"{name} bias", "attention_in", COLUMN, width, pieces=pieces)
    yield cut("o", "attention_out", ROW, h, queries)
    if m.biases == "all":
        yield whole("o bias", "attention_out", h)

    yield from norm("ffn norm", "ffn_in")
    inner, down = (("gate", "up"), "down") if m.gated_ffn else (("fc1",), "fc2")
    for name in inner:
        yield cut(name, "ffn_in", COLUMN, m.ffn_hidden_size, h)
        if m.biases == "all":
            yield cut(f"{name} bias", "ffn_in", COLUMN, m.ffn_hidden_size)
    yield cut(down, "ffn_out", ROW, h, m.ffn_hidden_size)
    if m.biases == "all":
        yield whole(f"{down} bias", "ffn_out", h)

    yield from norm("last norm", "head", count=1)
    if not m.tied_embeddings:
        yield cut("head", "head", COLUMN, m.vocab_size, h, count=1)
