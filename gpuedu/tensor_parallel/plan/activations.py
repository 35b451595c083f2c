"""What a rank keeps of a forward pass until the backward needs it, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

from gpuedu.transformer import Transformer

from .communication import LOSS_BYTES
from .tensor import Tensor

SEQUENCE, WIDTH, HEADS = 1, 2, 1  # axes of (batch, sequence, width) and of (batch, heads, query, key)
MASK_BYTES = 1  # of one element of a dropout mask


def layer_activations(
    model: Transformer,
    tensor_parallel: int,
    batch: int,
    sequence: int,
    *,
    itemsize: float,
    dropout: bool,
    recompute: str,
    sequence_parallel: bool,
    regather: bool,
) -> Iterator[Tensor]:
    """The tensors of a layer that Korthikanti et al. count in section 4.1, and how each is cut."""
    m, t = model, tensor_parallel

    def keep(name, site, shape, axis, size=itemsize, pieces=t):
        pieces = pieces if axis is not None else 1
        return Tensor(name, site, shape, axis, pieces, t, m.layers, size)

    hidden = (batch, sequence, m.hidden_size)
    queries = (batch, sequence, m.attention_heads * m.head_dim)
    keys = (batch, sequence, m.kv_heads * m.head_dim)
    inner = (batch, sequence, m.ffn_hidden_size)
    scores = (batch, m.attention_heads, sequence, sequence)
    stream = SEQUENCE if sequence_parallel else None  # between the products; cut only by tokens
    gathered = stream if regather else None  # what a product reads: its part, or all that was gathered

    if recompute == "full":
        yield keep("layer input", "attention_in", hidden, stream)
        return
    yield keep("attention norm input", "attention_in", hidden, stream)
    yield keep("attention input", "attention_in", hidden, gathered)
    yield keep("queries", "attention_in", queries, WIDTH)
    for name in ("keys", "values"):
        yield keep(name, "attention_in", keys, WIDTH, pieces=min(t, m.kv_heads))
    if recompute == "none":
        yield keep("softmax", "attention_out", scores, HEADS)
        if dropout:
            yield keep("softmax dropout mask", "attention_out", scores, HEADS, MASK_BYTES)
            yield keep("softmax after dropout", "attention_out", scores, HEADS)
    yield keep("attention output", "attention_out", queries, WIDTH)
    if dropout:
        yield keep("attention dropout mask", "attention_out", hidden, stream, MASK_BYTES)
    yield keep("ffn norm input", "ffn_in", hidden, stream)
    yield keep("ffn input", "ffn_in", hidden, gathered)
    for name in ("gate", "gate after SiLU", "up", "product") if m.gated_ffn else ("fc1", "fc1 after GELU"):
        yield keep(name, "ffn_out", inner, WIDTH)
    if dropout:
        yield keep("ffn dropout mask", "ffn_out", hidden, stream, MASK_BYTES)


def end_activations(
    model: Transformer,
    tensor_parallel: int,
    batch: int,
    sequence: int,
    *,
    itemsize: float,
    dropout: bool,
    sequence_parallel: bool,
    regather: bool,
) -> Iterator[Tensor]:
    """What embedding, last norm, head and loss keep: section 4.3 of Korthikanti et al."""
    t = tensor_parallel
    hidden, logits = (batch, sequence, model.hidden_size), (batch, sequence, model.vocab_size)

    def keep(name, site, shape, axis, size=itemsize):
        return Tensor(name, site, shape, axis, t if axis is not None else 1, t, 1, size)

    stream = SEQUENCE if sequence_parallel else None
    if dropout:
        yield keep("embedding dropout mask", "embedding", hidden, stream, MASK_BYTES)
    yield keep("last norm input", "head", hidden, stream)
    yield keep("head input", "head", hidden, stream if regather else None)
    yield keep("logits", "loss", logits, WIDTH, LOSS_BYTES)
