"""What is trained, and how: the two recipes, every number of them in one place."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.llama import LlamaConfig
from gpuedu.transformer import Transformer

VOCABULARY = 2048
CONTEXT = 512


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Parameters
    ----------
    config : LlamaConfig
        The model.
    steps : int
        Of the optimizers.
    batch : int
        Sequences a step, each as long as the context.
    matrix_rate, vector_rate : float
        Peak learning rates: of the matrices (Muon), and of embedding and norms (AdamW).
    warmup : float
        Share of the steps in which the rates rise to their peak; then they fall to 0, both in a line.
    teacher_weight : float
        Share of the loss that asks for a teacher's distribution; the rest asks for the text's tokens.
    seed : int
        Of the initial weights and the order of the text.
    """

    config: LlamaConfig
    steps: int
    batch: int = 8
    matrix_rate: float = 0.02
    vector_rate: float = 0.003
    warmup: float = 0.05
    teacher_weight: float = 0.0
    seed: int = 0


def tiny(layers: int, hidden_size: int, ffn_hidden_size: int, heads: int, kv_heads: int) -> LlamaConfig:
    """A small Llama; widths that are multiples of 128 can be quantized in groups of 128."""
    shape = Transformer(
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden_size // heads,
        ffn_hidden_size=ffn_hidden_size,
        gated_ffn=True,
        vocab_size=VOCABULARY,
        tied_embeddings=True,
        biases="none",
        norm="rmsnorm",
    )
    return LlamaConfig(shape, context_length=CONTEXT)


RECIPES = {
    "target": Recipe(tiny(5, 256, 512, heads=4, kv_heads=2), steps=1800),
    "draft": Recipe(tiny(1, 128, 256, heads=2, kv_heads=1), steps=1200, teacher_weight=0.5),
}
"""The recipes by name, in the order in which the models are trained: the draft learns from the target too."""
