"""The linear layers of a transformer, as the matrices that are quantized."""

from __future__ import annotations

from typing import NamedTuple

from gpuedu.transformer import Transformer


class Matrix(NamedTuple):
    """A weight matrix: a row for each output, a column for each input; ``count`` of them in the model."""

    name: str
    rows: int
    columns: int
    count: int

    @property
    def weights(self) -> int:
        """Weights of all of them."""
        return self.rows * self.columns * self.count


def linear_shapes(model: Transformer) -> tuple[Matrix, ...]:
    """The matrices inside the layers of a model: attention and feed-forward networks.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Any.

    Returns
    -------
    tuple of Matrix
        Embeddings, output head, norms, biases and an MoE's routers are not among them: by custom they stay in
        16 bits.

    Raises
    ------
    TypeError
        If ``model`` is no Transformer.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> [(m.name, m.rows, m.columns) for m in linear_shapes(MODELS["smollm2-135m"])][:2]
    [('q', 576, 576), ('k', 192, 576)]
    >>> sum(m.weights for m in linear_shapes(MODELS["llama-2-7b"]))
    6476005376
    """
    if not isinstance(model, Transformer):
        raise TypeError(f"model={model!r}: must be a Transformer")
    return (*_attention(model), *_ffn(model))


def _attention(model: Transformer) -> list[Matrix]:
    h, layers, heads = model.hidden_size, model.layers, model.attention_heads
    if model.mla is None:
        queries, kv = heads * model.head_dim, model.kv_heads * model.head_dim
        shapes = [("q", queries, h), ("k", kv, h), ("v", kv, h), ("o", h, queries)]
    else:
        mla = model.mla
        queries = heads * model.head_dim
        through = [("q", queries, h)]
        if mla.q_lora_rank is not None:
            through = [("q_a", mla.q_lora_rank, h), ("q_b", queries, mla.q_lora_rank)]
        shapes = [
            *through,
            ("kv_a", mla.kv_lora_rank + mla.qk_rope_head_dim, h),
            ("kv_b", heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank),
            ("o", h, heads * mla.v_head_dim),
        ]
    return [Matrix(*shape, layers) for shape in shapes]


def _ffn(model: Transformer) -> list[Matrix]:
    dense = model.layers if model.moe is None else model.moe.dense_layers
    matrices = _one_ffn(model, "", model.ffn_hidden_size, dense)
    if model.moe is not None:
        experts = model.moe.experts + model.moe.shared_experts
        count = (model.layers - dense) * experts
        matrices += _one_ffn(model, "expert_", model.moe.expert_hidden_size, count)
    return matrices


def _one_ffn(model: Transformer, prefix: str, inner: int, count: int) -> list[Matrix]:
    if count == 0:
        return []
    into = ("gate", "up") if model.gated_ffn else ("up",)
    matrices = [Matrix(prefix + name, inner, model.hidden_size, count) for name in into]
    return [*matrices, Matrix(f"{prefix}down", model.hidden_size, inner, count)]
