"""Layers with correlated inputs, and a small Llama, that the tests quantize."""

import pytest
import torch

from gpuedu.llama import Llama, LlamaConfig
from gpuedu.transformer import Transformer


def layer_problem(seed, rows=24, columns=64, tokens=300, dtype=torch.float64, outliers=()):
    """Weights (rows, columns) and inputs (tokens, columns) whose channels go together."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns, dtype=dtype) + 0.5 * torch.randn(
        columns, columns, generator=generator, dtype=dtype
    )
    x = torch.randn(tokens, columns, generator=generator, dtype=dtype) @ mix
    for channel in outliers:
        x[:, channel] *= 40
    return torch.randn(rows, columns, generator=generator, dtype=dtype), x


@pytest.fixture
def problem():
    """:func:`layer_problem`, as a fixture."""
    return layer_problem


SHAPE = Transformer(
    layers=2,
    hidden_size=64,
    attention_heads=4,
    kv_heads=2,
    head_dim=16,
    ffn_hidden_size=96,
    gated_ffn=True,
    vocab_size=50,
    tied_embeddings=True,
    biases="none",
    norm="rmsnorm",
)


@pytest.fixture
def small_llama():
    """A Llama of two layers with norms that are not all ones, and eight sequences of tokens."""
    model = Llama(LlamaConfig(SHAPE), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.uniform_(0.3, 3.0, generator=generator)
            elif "proj" in name:
                weights.mul_(4)
    return model, torch.randint(0, SHAPE.vocab_size, (8, 24), generator=generator)
