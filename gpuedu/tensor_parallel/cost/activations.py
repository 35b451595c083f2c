"""Activation memory: added up tensor by tensor, and as Korthikanti et al. have it in closed form."""

from __future__ import annotations

from gpuedu.checks import check_count
from gpuedu.transformer import RECOMPUTE, Transformer

from ..plan import LAYER_SITES, Sharding


def layer_activation_bytes(sharding: Sharding) -> float:
    """Bytes of activations that a rank keeps of one layer and one microbatch.

    Parameters
    ----------
    sharding : Sharding
        Of any model, for training.

    Returns
    -------
    float
        Bytes: the rank's parts of all tensors that ``sharding`` keeps.

    Raises
    ------
    ValueError
        If ``sharding`` is for inference, which keeps none.

    Notes
    -----
    On one rank this is :meth:`gpuedu.transformer.Transformer.activation_bytes` of one layer, whose notes say
    what is counted and what is not. For a GPT shape it is :func:`gpt_activation_bytes`.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import padded_vocabulary, shard
    >>> from gpuedu.transformer import MODELS
    >>> gpt3 = padded_vocabulary(MODELS["gpt3-175b"], 8)
    >>> layer_activation_bytes(shard(gpt3, 8)) / 1e9, layer_activation_bytes(shard(gpt3, 1)) / 1e9
    (0.578813952, 2.868903936)
    """
    _check_training(sharding)
    return sum(a.local_elements * a.itemsize for a in sharding.activations if a.site in _LAYER)


def end_activation_bytes(sharding: Sharding) -> dict[str, float]:
    """Bytes of activations that a rank keeps outside the layers, for one microbatch.

    Parameters
    ----------
    sharding : Sharding
        Of any model, for training.

    Returns
    -------
    dict
        ``{"embedding": ..., "head": ...}``: the embedding's dropout mask; inputs of last norm and head, and
        the logits in FP32.

    Raises
    ------
    ValueError
        If ``sharding`` is for inference, which keeps none.

    References
    ----------
    Korthikanti et al. 2022, section 4.3: s b h / t and 4 s b h / t (1 + v / h), with sequence parallelism.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> end_activation_bytes(shard(MODELS["llama-3-70b"], 8, sequence_parallel=True))
    {'embedding': 2097152.0, 'head': 139722752.0}
    """
    _check_training(sharding)
    ends: dict[str, float] = {"embedding": 0.0, "head": 0.0}
    for a in sharding.activations:
        if a.site not in _LAYER:
            ends["embedding" if a.site == "embedding" else "head"] += a.local_bytes
    return ends


def gpt_activation_bytes(
    model: Transformer,
    tensor_parallel: int = 1,
    *,
    batch: int = 1,
    sequence: int = 2048,
    sequence_parallel: bool = False,
    recompute: str = "none",
) -> float:
    """Activation memory of one layer of a GPT in closed form, in bytes a rank.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        A GPT shape: MHA, two FFN matrices of width 4h.
    tensor_parallel : int
        Ranks t.
    batch, sequence : int
        Sequences b of one microbatch, tokens s of each.
    sequence_parallel : bool
        As for :func:`~gpuedu.tensor_parallel.plan.shard`.
    recompute : str
        ``"none"``, ``"selective"`` or ``"full"``, as for :func:`~gpuedu.tensor_parallel.plan.shard`.

    Returns
    -------
    float
        Bytes, in 16-bit precision with dropout.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or out of range, or another shape of model.

    Notes
    -----
    ======================================  ===================================
    technique                               bytes of a layer
    ======================================  ===================================
    none                                    s b h (34 + 5 a s / h)
    tensor parallel                         s b h (10 + 24 / t + 5 a s / (h t))
    tensor + sequence parallel              s b h (34 / t + 5 a s / (h t))
    tensor parallel, selective              s b h (10 + 24 / t)
    tensor + sequence parallel, selective   s b h (34 / t)
    full recomputation                      s b h (2)
    ======================================  ===================================

    With sequence parallelism the input that full recomputation keeps is cut as well, 2 s b h / t, which the
    paper's table leaves out.

    References
    ----------
    Korthikanti et al. 2022, arXiv:2205.05198, table 2.

    Examples
    --------
    Sequence parallelism and selective recomputation together, GPT-3 on 8 GPUs: less than a fifth

    >>> from gpuedu.transformer import MODELS
    >>> gpt3 = MODELS["gpt3-175b"]
    >>> both = gpt_activation_bytes(gpt3, 8, sequence_parallel=True, recompute="selective")
    >>> round(both / gpt_activation_bytes(gpt3, 8), 3)
    0.185
    """
    for name, value in {"tensor_parallel": tensor_parallel, "batch": batch, "sequence": sequence}.items():
        check_count(name, value)
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute={recompute!r}: must be one of {', '.join(RECOMPUTE)}")
    _check_gpt(model)
    s, b, h, t = sequence, batch, model.hidden_size, tensor_parallel
    if recompute == "full":
        return 2 * s * b * h / (t if sequence_parallel else 1)
    outside = 10 / t if sequence_parallel else 10  # norms, dropout, inputs of column-parallel products
    core = 5 * model.attention_heads * s / (h * t) if recompute == "none" else 0
    return s * b * h * (outside + 24 / t + core)


def recompute_flops_share(model: Transformer, sequence: int, recompute: str) -> float:
    """FLOP that recomputation adds to a training step, as a share of the step without it.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Any model with ordinary attention.
    sequence : int
        Tokens of a sequence.
    recompute : str
        ``"none"``, ``"selective"`` or ``"full"``, as for :func:`~gpuedu.tensor_parallel.plan.shard`.

    Returns
    -------
    float
        Without a unit. A step is three forwards; ``"full"`` adds the layers' forward, ``"selective"`` the
        scores and weighted values, every pair of query and key counted as Megatron-LM does.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or out of range.

    Notes
    -----
    For a GPT with ``"selective"``: s / (18 h), over 1 + s / (6 h) + v / (12 h l). The paper's equation 8 adds
    s / (6 h), three times the one forward pass of attention that its text names; its 2.7 % for GPT-3 and
    1.6 % for the 530B model are three times this.

    References
    ----------
    Korthikanti et al. 2022, section 5 and appendix A.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import padded_vocabulary
    >>> from gpuedu.transformer import MODELS
    >>> gpt3 = padded_vocabulary(MODELS["gpt3-175b"], 8)
    >>> [round(recompute_flops_share(gpt3, 2048, how), 3) for how in ("selective", "full")]
    [0.009, 0.332]
    """
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute={recompute!r}: must be one of {', '.join(RECOMPUTE)}")
    step = 3 * model.forward_flops(sequence, causal=False)
    if recompute == "none":
        return 0.0
    if recompute == "full":
        head = 2 * sequence * model.vocab_size * model.hidden_size
        return (step / 3 - head) / step
    if model.mla is not None:
        raise ValueError("model: must be one without mla")
    return 4 * sequence**2 * model.layers * model.attention_heads * model.head_dim / step


_LAYER = frozenset(LAYER_SITES)


def _check_training(sharding: Sharding) -> None:
    if not sharding.training:
        raise ValueError("sharding: must be one for training; inference keeps no activations")


def _check_gpt(model: Transformer) -> None:
    m = model
    mha = m.kv_heads == m.attention_heads and m.attention_heads * m.head_dim == m.hidden_size
    if not mha or m.gated_ffn or m.ffn_hidden_size != 4 * m.hidden_size or m.mla or m.moe:
        raise ValueError("model: must be a GPT shape (MHA, two FFN matrices of width 4 hidden_size)")
