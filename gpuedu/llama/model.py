"""A Llama-shaped decoder, to be read beside the papers: RMSNorm, rotary positions, grouped queries, SwiGLU.

Attention is a function and linear layers are modules: both can be swapped for others
(:meth:`Llama.use_attention`, ``replace_linear``). Modules have the names that Hugging Face gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from gpuedu.checks import check_amount, check_count
from gpuedu.transformer import Transformer

from .few_rows import Linear

STANDARD_DEVIATION = 0.02  # of initial weights

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What :func:`causal_attention` is: queries, keys and values to the heads' outputs."""


class Cache(Protocol):
    """Keeps keys and values of past tokens, as :class:`gpuedu.llama.KVCache` does."""

    length: int

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new tokens' keys and values of a layer; return what attention gets for them."""


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama-shaped model before it has weights: its shape, and what its shape does not say.

    Parameters
    ----------
    shape : gpuedu.transformer.Transformer
        With SwiGLU, RMSNorm, no biases and no learned positions.
    rope_theta : float
        Base of the rotary frequencies.
    norm_eps : float
        Added to the mean square in each RMSNorm.
    context_length : int
        The most tokens that the model was made for.
    rope_divisors : tuple of float, optional
        Each rotary frequency is divided by its entry, ``head_dim / 2`` of them: how Llama 3.1 stretches
        its context.

    Raises
    ------
    TypeError, ValueError
        For a shape of another kind of model, or a figure out of range.

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> LlamaConfig(MODELS["smollm2-135m"], rope_theta=1e5, context_length=8192).shape.head_dim
    64
    """

    shape: Transformer
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    context_length: int = 2048
    rope_divisors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Transformer):
            raise TypeError(f"shape={self.shape!r}: must be a Transformer")
        self._check_shape(self.shape)
        for name in ("rope_theta", "norm_eps"):
            check_amount(name, getattr(self, name), positive=True)
        check_count("context_length", self.context_length)
        if self.rope_divisors is not None and len(self.rope_divisors) != self.shape.head_dim // 2:
            raise ValueError(
                f"rope_divisors: must be head_dim / 2 = {self.shape.head_dim // 2} numbers, "
                f"not {len(self.rope_divisors)}"
            )

    @staticmethod
    def _check_shape(shape: Transformer) -> None:
        llama = {"gated_ffn": True, "biases": "none", "norm": "rmsnorm", "learned_positions": 0}
        for name, value in (llama | {"mla": None, "moe": None}).items():
            if getattr(shape, name) != value:
                raise ValueError(f"shape.{name}={getattr(shape, name)!r}: must be {value!r} in a Llama")
        if shape.head_dim % 2:
            raise ValueError(f"shape.head_dim={shape.head_dim}: must be even, for rotary pairs")


class RMSNorm(nn.Module):
    """Root mean square norm: ``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in float32.

    Parameters
    ----------
    size : int
        Of the last axis.
    eps : float
        Added to the mean square.

    References
    ----------
    Zhang and Sennrich. Root mean square layer normalization. NeurIPS 2019, equation 4.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (..., size)."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions: turn each pair of a head's numbers by an angle that grows with the position.

    Parameters
    ----------
    x : Tensor
        Queries or keys, (batch, heads, tokens, head_dim).
    rotary : tuple of Tensor
        Cosines and sines of the tokens' angles, (tokens, head_dim) or (batch, 1, tokens, head_dim), each
        angle twice: :meth:`Llama.rotary`.

    Returns
    -------
    Tensor
        Like ``x``.

    Notes
    -----
    The pairs are ``(x[i], x[i + head_dim / 2])``, the half-split form; the paper's are neighbors,
    ``(x[2i], x[2i + 1])``. The two differ by an order of the rows of ``W_q`` and ``W_k``, which GGUF
    files have in the paper's order.

    References
    ----------
    Su et al. RoFormer: enhanced transformer with rotary position embedding. arXiv:2104.09864, 2021.

    Examples
    --------
    >>> x = torch.ones(1, 1, 1, 2)
    >>> quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])  # cosine and sine of 90 degrees
    >>> rotate(x, quarter).flatten().tolist()
    [-1.0, 1.0]
    """
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each query looks at the keys up to its own: PyTorch's scaled dot product attention.

    Parameters
    ----------
    q : Tensor
        Rotated queries, (batch, attention_heads, tokens, head_dim).
    k, v : Tensor
        Rotated keys, and values, (batch, kv_heads, context, head_dim): the queries' own tokens are the last
        of the context.

    Returns
    -------
    Tensor
        Like ``q``.

    Raises
    ------
    ValueError
        If there are more queries than keys.

    Notes
    -----
    ``softmax(q k^T / sqrt(head_dim)) v``; query i of t sees key j of n when ``j <= n - t + i`` (aligned at
    the bottom right), and query head h uses KV head ``h // (attention_heads / kv_heads)``.

    References
    ----------
    Ainslie et al. GQA: training generalized multi-query transformer models from multi-head checkpoints.
    EMNLP 2023.

    Examples
    --------
    >>> q = torch.zeros(1, 2, 3, 4)  # scores are all the same: each token gets the mean of those before
    >>> v = torch.tensor([0.0, 2.0, 4.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    >>> causal_attention(q, torch.zeros(1, 1, 3, 4), v)[0, 1, :, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    tokens, context = q.shape[-2], k.shape[-2]
    if tokens > context:
        raise ValueError(f"{tokens} queries: must be at most the {context} keys")
    mask = None
    if 1 < tokens < context:
        mask = torch.ones(tokens, context, dtype=torch.bool, device=q.device).tril(context - tokens)
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=tokens == context, enable_gqa=grouped
    )


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; ``attention`` is the function that does its middle."""

    def __init__(self, shape: Transformer, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, shape.head_dim
        queries, kv = shape.attention_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = Linear(shape.hidden_size, kv, bias=False)
        self.v_proj = Linear(shape.hidden_size, kv, bias=False)
        self.o_proj = Linear(queries, shape.hidden_size, bias=False)
        self.attention: Attention = causal_attention

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cache: Cache | None = None
    ) -> torch.Tensor:
        """Mix (batch, tokens, hidden) with the tokens before and those in the cache."""
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = self.attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, heads * head_dim) as (batch, heads, tokens, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU feed-forward network: ``W_down (silu(W_gate x) * W_up x)``.

    References
    ----------
    Shazeer. GLU variants improve transformer. arXiv:2002.05202, 2020, equation 6.
    """

    def __init__(self, shape: Transformer):
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.up_proj = Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.down_proj = Linear(shape.ffn_hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden) to the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each on the normed residual stream and added to it."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.shape.hidden_size, config.norm_eps)
        self.self_attn = SelfAttention(config.shape, layer)
        self.post_attention_layernorm = RMSNorm(config.shape.hidden_size, config.norm_eps)
        self.mlp = MLP(config.shape)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cache: Cache | None = None
    ) -> torch.Tensor:
        """The residual stream (batch, tokens, hidden) after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A Llama-shaped decoder.

    Parameters
    ----------
    config : LlamaConfig
        What it is like.
    seed : int, optional
        Of the initial weights, normal with a deviation of 0.02; those that write to the residual stream
        smaller by the square root of how many do. None leaves them as they come, for weights that are
        loaded.

    Examples
    --------
    >>> from gpuedu.transformer import Transformer
    >>> shape = Transformer(layers=2, hidden_size=16, attention_heads=4, kv_heads=2, head_dim=4,
    ...     ffn_hidden_size=32, gated_ffn=True, vocab_size=20, tied_embeddings=True, biases="none",
    ...     norm="rmsnorm")
    >>> model = Llama(LlamaConfig(shape))
    >>> model(torch.arange(6).view(1, 6)).shape
    torch.Size([1, 6, 20])
    >>> sum(weights.numel() for weights in model.parameters()) == shape.parameters()
    True
    """

    def __init__(self, config: LlamaConfig, seed: int | None = 0):
        super().__init__()
        if not isinstance(config, LlamaConfig):
            raise TypeError(f"config={config!r}: must be a LlamaConfig")
        self.config, shape = config, config.shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, config.norm_eps)
        self.lm_head = Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        if seed is not None:
            self._initialize(torch.Generator().manual_seed(seed))

    def forward(
        self,
        ids: torch.Tensor,
        cache: Cache | None = None,
        *,
        positions: torch.Tensor | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Logits of the token after each.

        Parameters
        ----------
        ids : Tensor
            (batch, tokens), int64; sequences of one length, without padding.
        cache : Cache, optional
            Keys and values of the tokens before; gets those of ``ids``.
        positions : Tensor, optional
            Of each token in its sequence, (tokens,) or (batch, tokens), int64; from the cache's length on if
            not given.
        last_only : bool
            Logits of the last token alone.

        Returns
        -------
        Tensor
            (batch, tokens, vocab_size), or (batch, 1, vocab_size).

        Raises
        ------
        ValueError
            If ``ids`` has another shape, or goes beyond the model's context.
        """
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids of shape {tuple(ids.shape)}: must be (batch, tokens) with a token or more")
        context = self.config.context_length
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            if start + ids.shape[1] > context:
                raise ValueError(f"{start + ids.shape[1]} tokens: must be at most context_length={context}")
        elif not 0 <= int(positions.min()) <= int(positions.max()) < context:
            raise ValueError(
                f"positions from {int(positions.min())} to {int(positions.max())}: must be from 0 to "
                f"{context - 1}, below context_length"
            )
        hidden, rotary = self.embed_tokens(ids), self.rotary(positions)
        for layer in self.layers:
            hidden = layer(hidden, rotary, cache)
        return self.lm_head(self.norm(hidden[:, -1:] if last_only else hidden))

    def rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the angles at ``positions``, for :func:`rotate`.

        Parameters
        ----------
        positions : Tensor
            (tokens,) or (batch, tokens).

        Returns
        -------
        tuple of Tensor
            Each (tokens, head_dim) or (batch, 1, tokens, head_dim), of the angles
            ``position * rope_theta^(-2i / head_dim)`` for i from 0 to head_dim / 2, twice.
        """
        config, device = self.config, positions.device
        exponents = torch.arange(0, config.shape.head_dim, 2, device=device).float() / config.shape.head_dim
        frequencies = 1.0 / config.rope_theta**exponents
        if config.rope_divisors is not None:
            frequencies = frequencies / torch.tensor(config.rope_divisors, device=device)
        angles = positions.float()[..., None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        if positions.ndim == 2:
            angles = angles[:, None]  # the same for all heads
        dtype = self.embed_tokens.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def use_attention(self, attention: Attention) -> Llama:
        """Have all layers use ``attention`` in place of :func:`causal_attention`; returns the model."""
        for layer in self.layers:
            layer.self_attn.attention = attention
        return self

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        """Draw every weight matrix anew."""
        onto_stream = STANDARD_DEVIATION / math.sqrt(2 * self.config.shape.layers)
        for name, weights in self.named_parameters():
            if weights.ndim == 2:
                into = name.endswith(("o_proj.weight", "down_proj.weight"))
                weights.normal_(0.0, onto_stream if into else STANDARD_DEVIATION, generator=generator)
