"""A transformer's shape, and what follows from it: parameters, FLOPs, KV cache, activations.

Counts are exact, from the shape alone; nothing here knows hardware or time. A multiply-accumulate is two
FLOP. Symbols in formulas: ``l`` layers, ``h`` hidden size, ``a`` attention heads, ``s`` sequence length,
``b`` batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpuedu.checks import check_count

BIASES = ("none", "qkv", "all")
NORMS = ("layernorm", "rmsnorm")
RECOMPUTE = ("none", "selective", "full")


def _require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False")


def _require_dtype_bytes(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"dtype_bytes={value!r}: must be a number")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"dtype_bytes={value!r}: must be > 0 and finite")


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention: keys and values of all heads come from one small latent.

    Parameters
    ----------
    kv_lora_rank : int
        Width of the latent that is cached.
    q_lora_rank : int or None
        Width of the queries' latent; None projects them directly.
    qk_nope_head_dim : int
        Width of a head's query and key without position.
    qk_rope_head_dim : int
        Width of the rotary part; its key is shared by all heads and cached beside the latent.
    v_head_dim : int
        Width of a head's value.

    Raises
    ------
    TypeError, ValueError
        For a width that is no int or below 1.

    References
    ----------
    DeepSeek-AI. DeepSeek-V2. arXiv:2405.04434, 2024, section 2.1.

    Examples
    --------
    >>> MLA(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    MLA(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    """

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            check_count(name, getattr(self, name), 1)
        if self.q_lora_rank is not None:
            check_count("q_lora_rank", self.q_lora_rank, 1)


@dataclass(frozen=True)
class MoE:
    """Mixture of experts: a router sends each token to a few of many feed-forward networks.

    Parameters
    ----------
    experts : int
        Routed experts of a layer.
    experts_per_token : int
        How many of them each token visits.
    expert_hidden_size : int
        Inner width of one expert.
    shared_experts : int
        Experts of the same width that every token visits.
    dense_layers : int
        First layers, which keep the dense feed-forward network.

    Raises
    ------
    TypeError, ValueError
        For a figure that is no int, out of range, or more experts a token than there are.

    References
    ----------
    DeepSeek-AI. DeepSeek-V3 Technical Report. arXiv:2412.19437, 2024, section 2.1.2.

    Examples
    --------
    >>> moe = MoE(experts=256, experts_per_token=8, expert_hidden_size=2048, shared_experts=1)
    >>> moe.dense_layers
    0
    """

    experts: int
    experts_per_token: int
    expert_hidden_size: int
    shared_experts: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("experts", "experts_per_token", "expert_hidden_size"):
            check_count(name, getattr(self, name), 1)
        for name in ("shared_experts", "dense_layers"):
            check_count(name, getattr(self, name), 0)
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token={self.experts_per_token}: must be <= experts={self.experts}")


@dataclass(frozen=True)
class Transformer:
    """The shape of a decoder-only transformer with one norm before attention and one before the FFN.

    Parameters
    ----------
    layers : int
        Transformer layers.
    hidden_size : int
        Width of the residual stream.
    attention_heads : int
        Query heads.
    kv_heads : int
        Key and value heads: as many as query heads (MHA), fewer (GQA) or one (MQA).
    head_dim : int
        Width of one head; not always ``hidden_size / attention_heads``. With MLA the width of a query,
        ``qk_nope_head_dim + qk_rope_head_dim``.
    ffn_hidden_size : int
        Inner width of the (dense) feed-forward network.
    gated_ffn : bool
        Three matrices (gate, up, down: SwiGLU) instead of two.
    vocab_size : int
        Rows of the embedding, padding included.
    tied_embeddings : bool
        The output head is the embedding, stored once.
    biases : str
        Which linear layers have a bias: ``"none"``, ``"qkv"`` or ``"all"`` (never router or output head).
    norm : str
        ``"layernorm"`` (weight and bias) or ``"rmsnorm"`` (weight).
    learned_positions : int
        Rows of a learned position embedding; 0 if there is none (rotary positions have no parameters).
    mla : MLA or None
        Multi-head latent attention in place of the ordinary kind.
    moe : MoE or None
        Mixture of experts in place of the dense feed-forward network.

    Raises
    ------
    TypeError, ValueError
        For a field of the wrong type, out of range, or a combination that no such model has.

    Notes
    -----
    Left out: attention that is cut to a window (Mistral 7B v0.1 does so beyond 4,096 tokens),
    multi-token prediction heads, dropout probabilities and everything else that changes no count.

    Examples
    --------
    >>> llama = MODELS["llama-2-7b"]
    >>> llama.parameters()
    6738415616
    >>> llama.kv_cache_bytes_per_token()
    524288
    """

    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden_size: int
    gated_ffn: bool
    vocab_size: int
    tied_embeddings: bool
    biases: str
    norm: str
    learned_positions: int = 0
    mla: MLA | None = None
    moe: MoE | None = None

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "hidden_size",
            "attention_heads",
            "kv_heads",
            "head_dim",
            "ffn_hidden_size",
            "vocab_size",
        ):
            check_count(name, getattr(self, name), 1)
        check_count("learned_positions", self.learned_positions, 0)
        _require_bool("gated_ffn", self.gated_ffn)
        _require_bool("tied_embeddings", self.tied_embeddings)
        if self.biases not in BIASES:
            raise ValueError(f"biases={self.biases!r}: must be one of {', '.join(BIASES)}")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: must be one of {', '.join(NORMS)}")
        if self.attention_heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads}: must divide attention_heads={self.attention_heads} without rest"
            )
        if self.mla is not None:
            self._check_mla(self.mla)
        if self.moe is not None:
            self._check_moe(self.moe)

    def _check_mla(self, mla: MLA) -> None:
        if not isinstance(mla, MLA):
            raise TypeError(f"mla={mla!r}: must be an MLA or None")
        if self.kv_heads != self.attention_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must equal attention_heads with mla")
        if self.head_dim != mla.qk_nope_head_dim + mla.qk_rope_head_dim:
            raise ValueError(
                f"head_dim={self.head_dim}: must be qk_nope_head_dim + qk_rope_head_dim = "
                f"{mla.qk_nope_head_dim + mla.qk_rope_head_dim} with mla"
            )
        if self.biases != "none" or self.norm != "rmsnorm":
            raise ValueError(
                f"biases={self.biases!r}, norm={self.norm!r}: must be 'none', 'rmsnorm' with mla"
            )

    def _check_moe(self, moe: MoE) -> None:
        if not isinstance(moe, MoE):
            raise TypeError(f"moe={moe!r}: must be a MoE or None")
        if moe.dense_layers >= self.layers:
            raise ValueError(f"dense_layers={moe.dense_layers}: must be below layers={self.layers}")
        if self.biases == "all":
            raise ValueError("biases='all': must be 'none' or 'qkv' with moe")

    # Weights are what a token is multiplied with; vectors (norms, biases) are added or scale.

    def _attention_weights(self) -> int:
        h, a, m = self.hidden_size, self.attention_heads, self.mla
        if m is None:
            return h * self.head_dim * (2 * a + 2 * self.kv_heads)
        queries = h * a * self.head_dim
        if m.q_lora_rank is not None:
            queries = m.q_lora_rank * (h + a * self.head_dim)
        latent = h * (m.kv_lora_rank + m.qk_rope_head_dim)
        return queries + latent + self._mla_expansion() + a * m.v_head_dim * h

    def _mla_expansion(self) -> int:
        """Weights that turn a latent into every head's key and value."""
        return (
            self.mla.kv_lora_rank * self.attention_heads * (self.mla.qk_nope_head_dim + self.mla.v_head_dim)
        )

    def _attention_vectors(self) -> int:
        if self.mla is not None:
            return self.mla.kv_lora_rank + (self.mla.q_lora_rank or 0)
        qkv = self.head_dim * (self.attention_heads + 2 * self.kv_heads)
        return {"none": 0, "qkv": qkv, "all": qkv + self.hidden_size}[self.biases]

    def _is_moe(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.dense_layers

    def _ffn_weights(self, layer: int, *, active: bool) -> int:
        matrices = 3 if self.gated_ffn else 2
        if not self._is_moe(layer):
            return matrices * self.hidden_size * self.ffn_hidden_size
        visited = self.moe.experts_per_token if active else self.moe.experts
        expert = matrices * self.hidden_size * self.moe.expert_hidden_size
        router = self.hidden_size * self.moe.experts
        return router + (visited + self.moe.shared_experts) * expert

    def _ffn_vectors(self) -> int:
        if self.biases != "all":
            return 0
        return (2 if self.gated_ffn else 1) * self.ffn_hidden_size + self.hidden_size

    def _norm_vectors(self) -> int:
        return (2 if self.norm == "layernorm" else 1) * self.hidden_size

    def _layer_parameters(self, layer: int, *, active: bool) -> int:
        weights = self._attention_weights() + self._ffn_weights(layer, active=active)
        return weights + self._attention_vectors() + self._ffn_vectors() + 2 * self._norm_vectors()

    def layer_parameters(self, layer: int = 0) -> int:
        """Parameters of one layer: attention, feed-forward network and two norms.

        Parameters
        ----------
        layer : int
            0 to ``layers - 1``. Layers differ only where the first of a MoE are dense.

        Returns
        -------
        int
            Number of parameters.

        Raises
        ------
        TypeError, ValueError
            If there is no such layer.

        Examples
        --------
        >>> MODELS["gpt2"].layer_parameters()  # 12 h^2 + 13 h
        7087872
        """
        check_count("layer", layer, 0)
        if layer >= self.layers:
            raise ValueError(f"layer={layer}: must be from 0 to {self.layers - 1}")
        return self._layer_parameters(layer, active=False)

    def embedding_parameters(self) -> int:
        """Parameters of the token embedding and, if there is one, the position embedding.

        Returns
        -------
        int
            Number of parameters. A tied output head is these same parameters; one of its own has
            ``vocab_size * hidden_size`` more.

        Examples
        --------
        >>> MODELS["gpt2"].embedding_parameters()
        39383808
        """
        return (self.vocab_size + self.learned_positions) * self.hidden_size

    def _parameters(self, *, active: bool) -> int:
        head = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        layers = sum(self._layer_parameters(layer, active=active) for layer in range(self.layers))
        return self.embedding_parameters() + layers + self._norm_vectors() + head

    def parameters(self) -> int:
        """Parameters of the whole model: embeddings, layers, last norm, output head.

        Returns
        -------
        int
            Number of parameters; a tied head counts once. What is not trained by gradients is not
            counted: rotary tables, and the routing biases of DeepSeek-V3 (256 a layer).

        Examples
        --------
        >>> MODELS["llama-3-70b"].parameters()
        70553706496
        """
        return self._parameters(active=False)

    def active_parameters(self) -> int:
        """Parameters that one token uses: of the routed experts only those it visits.

        Returns
        -------
        int
            Number of parameters; embedding and output head are counted in full. Without experts this
            is :meth:`parameters`.

        Examples
        --------
        >>> round(MODELS["deepseek-v3"].active_parameters() / 1e9, 1)
        37.6
        """
        return self._parameters(active=True)

    def kv_cache_bytes_per_token(self, dtype_bytes: float = 2) -> float:
        """Bytes that the KV cache of one sequence grows by with each token.

        Parameters
        ----------
        dtype_bytes : float
            Bytes of one cached number: 2 for FP16 and BF16, 1 for FP8, 0.5 for INT4 (scales not
            counted).

        Returns
        -------
        float
            Bytes over all layers; an int if ``dtype_bytes`` is one. Keys and values of the **KV** heads,
            ``2 * layers * kv_heads * head_dim * dtype_bytes``; with MLA the latent and the shared rotary
            key, ``layers * (kv_lora_rank + qk_rope_head_dim) * dtype_bytes``.

        Raises
        ------
        TypeError, ValueError
            If ``dtype_bytes`` is not a positive finite number.

        References
        ----------
        DeepSeek-AI. DeepSeek-V2. arXiv:2405.04434, 2024, table 1.

        Examples
        --------
        >>> MODELS["llama-3-70b"].kv_cache_bytes_per_token()
        327680
        >>> MODELS["deepseek-v3"].kv_cache_bytes_per_token()
        70272
        """
        _require_dtype_bytes(dtype_bytes)
        if self.mla is not None:
            return self.layers * (self.mla.kv_lora_rank + self.mla.qk_rope_head_dim) * dtype_bytes
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes

    def forward_flops(self, tokens: int, context: int = 0, *, causal: bool = True) -> int:
        """FLOP of one forward pass over new tokens of one sequence.

        Parameters
        ----------
        tokens : int
            New tokens: the prompt in prefill, 1 in a decode step, the sequence in training.
        context : int
            Tokens before them whose keys and values are in the cache.
        causal : bool
            Count only the pairs that the causal mask leaves, as FlashAttention computes them. False
            counts every pair, as a full matrix product or Megatron-LM's formula does.

        Returns
        -------
        int
            FLOP, two for each multiply-accumulate. A backward pass costs twice as much.

        Raises
        ------
        TypeError, ValueError
            If ``tokens`` is no int >= 1, ``context`` no int >= 0 or ``causal`` no bool.

        Notes
        -----
        Included are the matrix products: ``2 * tokens`` for each weight a token meets (routed experts:
        those it visits; the output head, for every token), and for each pair of query and key
        ``2 * attention_heads * head_dim`` FLOP for the score and as many for the weighted value. With
        ``context=0, causal=False``, a two-matrix FFN of width 4h and MHA this is
        ``24 l s h^2 + 4 l s^2 h + 2 s h V``, the forward part of equation 3 of Narayanan et al.

        Left out, as is usual: embedding lookup, norms, biases, softmax, activation functions, rotary
        positions, the choice of experts.

        MLA can be computed in two ways, and the cheaper is counted, as serving systems choose it:
        expanding the cached latents into keys and values of every head (good for many new tokens), or
        absorbing the expansion into query and output, so that heads attend to the latents themselves
        (good for few).

        References
        ----------
        Narayanan et al. Efficient large-scale language model training on GPU clusters using
        Megatron-LM. SC 2021, appendix.

        Examples
        --------
        >>> llama = MODELS["llama-2-7b"]
        >>> round(llama.forward_flops(1, context=1020) / 1e9, 2)  # decode step, GFLOP
        13.75
        >>> round(llama.forward_flops(1020) / 1020 / 1e9, 2)  # prefill, GFLOP a token
        13.48
        """
        check_count("tokens", tokens, 1)
        check_count("context", context, 0)
        _require_bool("causal", causal)
        weights = self.layers * self._attention_weights() + self.vocab_size * self.hidden_size
        weights += sum(self._ffn_weights(layer, active=True) for layer in range(self.layers))
        return 2 * weights * tokens + self.layers * self._attention_flops(tokens, context, causal)

    def _attention_flops(self, tokens: int, context: int, causal: bool) -> int:
        """FLOP of scores and weighted values in one layer (with MLA, of expanding the context too)."""
        pairs = tokens * context + (tokens * (tokens + 1) // 2 if causal else tokens**2)
        a, m = self.attention_heads, self.mla
        if m is None:
            return 4 * pairs * a * self.head_dim
        expanded = 2 * pairs * a * (self.head_dim + m.v_head_dim) + 2 * context * self._mla_expansion()
        absorbed = 2 * pairs * a * (2 * m.kv_lora_rank + m.qk_rope_head_dim)
        return min(expanded, absorbed)

    def activation_bytes(
        self,
        batch: int,
        sequence: int,
        layers: int | None = None,
        *,
        dtype_bytes: float = 2,
        dropout: bool = True,
        recompute: str = "none",
    ) -> float:
        """Bytes of activations that the layers keep from forward to backward, on one GPU.

        Parameters
        ----------
        batch : int
            Sequences in the (micro)batch.
        sequence : int
            Tokens of each.
        layers : int or None
            Transformer layers that are kept; None means all of the model.
        dtype_bytes : float
            Bytes of one activation: 2 for FP16 and BF16.
        dropout : bool
            Trained with dropout (as GPT-3's setting has it; Llama and later models train without).
        recompute : str
            ``"none"`` keeps everything; ``"selective"`` recomputes softmax, dropout and the weighted
            values, as FlashAttention does too; ``"full"`` keeps only each layer's input.

        Returns
        -------
        float
            Bytes; an int if ``dtype_bytes`` is one.

        Raises
        ------
        TypeError, ValueError
            For an argument of the wrong type or out of range, and for MLA and MoE, whose activations
            depend on how the kernels are written.

        Notes
        -----
        The tensors of Korthikanti et al., section 4, without any parallelism. Per token and layer, in
        numbers: both norms' inputs ``2h``; input of the QKV projections ``h``; queries, keys and values
        (unexpanded with GQA); input of the output projection; input of the FFN ``h``; its inner
        activations ``2f``, or ``4f`` when gated (gate, its SiLU, up, their product); two dropout masks of
        ``h`` bytes. Attention adds for each head and pair the softmax, and with dropout its mask (1 byte)
        and result. For a GPT shape (f = 4h, MHA, dropout, 2 bytes) that is ``34 s b h + 5 a s^2 b`` a
        layer, equation 1 there; ``34 s b h`` with selective and ``2 s b h`` with full recomputation.

        Left out: embedding, last norm, output head and loss (logits in FP32 take ``4 s b V`` bytes), the
        norms' statistics (a number or two a token), FlashAttention's log-sum-exp (4 bytes a head and
        token), the one layer that full recomputation rebuilds at a time, and the allocator's waste.

        References
        ----------
        Korthikanti et al. Reducing activation recomputation in large transformer models.
        MLSys 2023, arXiv:2205.05198.

        Examples
        --------
        >>> gpt3 = MODELS["gpt3-175b"]
        >>> gpt3.activation_bytes(1, 2048, layers=1) == 34 * 2048 * 12288 + 5 * 96 * 2048**2
        True
        """
        check_count("batch", batch, 1)
        check_count("sequence", sequence, 1)
        layers = self.layers if layers is None else layers
        check_count("layers", layers, 1)
        _require_dtype_bytes(dtype_bytes)
        _require_bool("dropout", dropout)
        if layers > self.layers:
            raise ValueError(f"layers={layers}: must be <= {self.layers}, the model's")
        if recompute not in RECOMPUTE:
            raise ValueError(f"recompute={recompute!r}: must be one of {', '.join(RECOMPUTE)}")
        if self.mla is not None or self.moe is not None:
            raise ValueError("activation_bytes: must be a model without mla and moe")
        return (
            batch
            * sequence
            * layers
            * self._token_activation_bytes(sequence, dtype_bytes, dropout, recompute)
        )

    def _token_activation_bytes(
        self, sequence: int, dtype_bytes: float, dropout: bool, recompute: str
    ) -> float:
        """Bytes kept for one token in one layer."""
        h, queries, kv = self.hidden_size, self.attention_heads * self.head_dim, self.kv_heads * self.head_dim
        if recompute == "full":
            return h * dtype_bytes
        inner = (4 if self.gated_ffn else 2) * self.ffn_hidden_size
        kept = (4 * h + 2 * queries + 2 * kv + inner) * dtype_bytes + (2 * h if dropout else 0)
        if recompute == "selective":
            return kept
        pair = 2 * dtype_bytes + 1 if dropout else dtype_bytes
        return kept + self.attention_heads * sequence * pair


def _gpt(layers: int, hidden_size: int, heads: int, vocab_size: int, positions: int) -> Transformer:
    """GPT-2's kind: MHA, FFN of width 4h, biases, LayerNorm, learned positions, tied embeddings."""
    return Transformer(
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // heads,
        ffn_hidden_size=4 * hidden_size,
        gated_ffn=False,
        vocab_size=vocab_size,
        tied_embeddings=True,
        biases="all",
        norm="layernorm",
        learned_positions=positions,
    )


def _llama(
    layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    ffn_hidden_size: int,
    vocab_size: int,
    *,
    tied_embeddings: bool = False,
    biases: str = "none",
) -> Transformer:
    """Llama's kind: rotary positions, SwiGLU, RMSNorm."""
    return Transformer(
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden_size // heads,
        ffn_hidden_size=ffn_hidden_size,
        gated_ffn=True,
        vocab_size=vocab_size,
        tied_embeddings=tied_embeddings,
        biases=biases,
        norm="rmsnorm",
    )


# From each model's published config.json; gpt3-175b from table 2.1 of its paper, with GPT-2's vocabulary.
MODELS = {
    "gpt2": _gpt(12, 768, 12, 50257, 1024),
    "gpt3-175b": _gpt(96, 12288, 96, 50257, 2048),
    "opt-13b": _gpt(40, 5120, 40, 50272, 2050),  # its position table starts with two rows for padding
    "llama-2-7b": _llama(32, 4096, 32, 32, 11008, 32000),
    "llama-2-13b": _llama(40, 5120, 40, 40, 13824, 32000),
    "llama-2-70b": _llama(80, 8192, 64, 8, 28672, 32000),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3-70b": _llama(80, 8192, 64, 8, 28672, 128256),
    "llama-3-405b": _llama(126, 16384, 128, 8, 53248, 128256),
    "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000),  # v0.1
    "qwen2.5-7b": _llama(28, 3584, 28, 4, 18944, 152064, biases="qkv"),
    "deepseek-v3": Transformer(  # the main model; its multi-token prediction module (11.5 B more) apart
        layers=61,
        hidden_size=7168,
        attention_heads=128,
        kv_heads=128,
        head_dim=192,
        ffn_hidden_size=18432,
        gated_ffn=True,
        vocab_size=129280,
        tied_embeddings=False,
        biases="none",
        norm="rmsnorm",
        mla=MLA(
            kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
        ),
        moe=MoE(experts=256, experts_per_token=8, expert_hidden_size=2048, shared_experts=1, dense_layers=3),
    ),
    "smollm2-135m": _llama(30, 576, 9, 3, 1536, 49152, tied_embeddings=True),
}
"""The models of this book by name."""
