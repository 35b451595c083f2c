"""A transformer block on t ranks: attention, feed-forward network, and what joins them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from gpuedu.transformer import Transformer

from .cut import Part
from .dropout import Dropout, RandomState
from .group import Group
from .linear import ColumnParallelLinear, RowParallelLinear

EPSILON = 1e-5  # of norms
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Setting:
    """What all layers of a model on one rank share.

    Parameters
    ----------
    group : Group
        The ranks.
    sequence_parallel : bool
        Between the products each rank holds only its tokens.
    regather : bool
        With ``sequence_parallel`` the backward gathers inputs again instead of keeping them.
    dropout : float
        Probability, for embedding, attention and the outputs of attention and feed-forward network.
    random : RandomState
        Of the dropout.
    generator : Generator
        Of the initial weights, seeded the same on all ranks.
    """

    group: Group
    sequence_parallel: bool
    regather: bool
    dropout: float
    random: RandomState
    generator: torch.Generator

    def column(self, in_features: int, *parts: Part, bias: bool) -> ColumnParallelLinear:
        """A column-parallel layer, cut part by part."""
        return ColumnParallelLinear(
            in_features,
            parts,
            self.group,
            bias=bias,
            sequence_parallel=self.sequence_parallel,
            regather=self.regather,
            generator=self.generator,
        )

    def row(self, in_features: int, out_features: int, *, bias: bool) -> RowParallelLinear:
        """A row-parallel layer."""
        return RowParallelLinear(
            in_features,
            out_features,
            self.group,
            bias=bias,
            sequence_parallel=self.sequence_parallel,
            generator=self.generator,
        )

    def drop_own(self) -> Dropout:
        """For an activation of which every rank has its own heads."""
        return Dropout(self.dropout, self.random, sharded=True)

    def drop_stream(self) -> Dropout:
        """For the residual stream: whole on all ranks, or with sequence parallelism cut by tokens."""
        return Dropout(self.dropout, self.random, sharded=self.sequence_parallel)


def norm(shape: Transformer) -> nn.Module:
    """The norm that ``shape`` names; every rank holds its parameters whole."""
    make = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[shape.norm]
    return make(shape.hidden_size, eps=EPSILON)


class Block(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a shortcut.

    Parameters
    ----------
    shape : gpuedu.transformer.Transformer
        Of the model.
    setting : Setting
        What all layers share.
    """

    def __init__(self, shape: Transformer, setting: Setting):
        super().__init__()
        self.attention_norm, self.attention = norm(shape), Attention(shape, setting)
        self.ffn_norm, self.ffn = norm(shape), FeedForward(shape, setting)
        self.attention_dropout, self.ffn_dropout = setting.drop_stream(), setting.drop_stream()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream, (batch, tokens, hidden) or (batch, tokens / t, hidden)."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x)))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))


class Attention(nn.Module):
    """Causal attention in which every rank has its own heads.

    The queries' heads are cut evenly. So are the KV heads, if there are enough; else t / kv_heads
    neighbors hold the same one, and :func:`sum_gradients` adds up what they find.

    Parameters
    ----------
    shape : gpuedu.transformer.Transformer
        Of the model. Without ``learned_positions`` queries and keys are rotated (RoPE).
    setting : Setting
        What all layers share.

    Raises
    ------
    ValueError
        If the heads cannot be shared out evenly, or a head to be rotated has an odd width.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3; Ainslie et al. 2023, "GQA".
    """

    def __init__(self, shape: Transformer, setting: Setting):
        super().__init__()
        self.head_dim, self.rotary = shape.head_dim, not shape.learned_positions
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even without learned_positions")
        queries, keys = shape.attention_heads * self.head_dim, shape.kv_heads * self.head_dim
        parts = (
            Part("attention_heads", queries, shape.attention_heads),
            Part("kv_heads", keys, shape.kv_heads, copied=True),
            Part("kv_heads", keys, shape.kv_heads, copied=True),
        )
        ranks = setting.group.size
        self.widths = [part.length // part.pieces(ranks) for part in parts]
        self.qkv = setting.column(shape.hidden_size, *parts, bias=shape.biases != "none")
        self.out = setting.row(queries, shape.hidden_size, bias=shape.biases == "all")
        self.dropout = setting.drop_own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From the normed stream to what is added to it."""
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in self.qkv(x).split(self.widths, -1)
        )
        if self.rotary:
            q, k = rotate(q), rotate(k)
        # Neighboring query heads share a KV head: 0 0 1 1, not 0 1 0 1
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
        return self.out(self._attend(q, k, v).transpose(1, 2).flatten(-2))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.dropout.p == 0 or not self.training:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return self.dropout(scores.masked_fill(later, -torch.inf).softmax(-1)) @ v


class FeedForward(nn.Module):
    """``down(silu(gate) * up)`` or ``fc2(gelu(fc1))``, in which every rank has its own inner columns.

    Parameters
    ----------
    shape : gpuedu.transformer.Transformer
        Of the model; ``gated_ffn`` says which.
    setting : Setting
        What all layers share.

    Raises
    ------
    ValueError
        If the inner width cannot be cut evenly.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3; Shazeer 2020, "GLU variants improve transformer".
    """

    def __init__(self, shape: Transformer, setting: Setting):
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.ffn_hidden_size, shape.biases == "all"
        self.gated = shape.gated_ffn
        part = Part("ffn_hidden_size", inner, inner)
        if self.gated:
            self.gate_up = setting.column(hidden, part, part, bias=bias)
            self.down = setting.row(inner, hidden, bias=bias)
        else:
            self.fc1 = setting.column(hidden, part, bias=bias)
            self.fc2 = setting.row(inner, hidden, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From the normed stream to what is added to it."""
        if not self.gated:
            return self.fc2(functional.gelu(self.fc1(x)))
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions for (batch, heads, tokens, head width): each pair of halves turned by its position.

    References
    ----------
    Su et al. 2021, "RoFormer"; halves as in GPT-NeoX and Llama's Hugging Face form.
    """
    tokens, width = x.shape[-2:]
    frequency = ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float64, device=x.device) / width)
    angle = torch.arange(tokens, dtype=torch.float64, device=x.device).unsqueeze(-1) * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
