"""Small models of random weights, in double precision: rounding then never decides between two tokens."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from gpuedu.llama import Llama, LlamaConfig
from gpuedu.transformer import Transformer

SHAPE = Transformer(
    layers=2, hidden_size=24, attention_heads=6, kv_heads=2, head_dim=4, ffn_hidden_size=32, gated_ffn=True,
    vocab_size=40, tied_embeddings=False, biases="none", norm="rmsnorm",
)  # fmt: skip


def small_model(context_length: int = 256, **changes) -> Llama:
    """Weights large enough for texts that wander instead of repeating one token."""
    shape = Transformer(**{name: getattr(SHAPE, name) for name in SHAPE.__dataclass_fields__} | changes)
    model = Llama(LlamaConfig(shape, context_length=context_length), seed=1).eval().double()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(20 if weights.ndim == 2 else 1)
    return model.requires_grad_(False)


def random_prompts(seed: int, count: int, longest: int = 40, vocab_size: int = 40) -> list[list[int]]:
    """Prompts of which many begin alike."""
    choose = random.Random(seed)
    beginnings = [[choose.randrange(vocab_size) for _ in range(longest // 2)] for _ in range(2)]
    prompts = []
    for _ in range(count):
        prompt = [choose.randrange(vocab_size) for _ in range(choose.randint(1, longest // 2))]
        if choose.random() < 0.6:
            beginning = choose.choice(beginnings)
            prompt = beginning[: choose.randint(1, len(beginning))] + prompt
        prompts.append(prompt)
    return prompts


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Llama]:
    return small_model


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., list[list[int]]]:
    return random_prompts


@pytest.fixture(scope="session")
def model() -> Llama:
    return small_model()
