"""The plan: what is cut how, and which collective runs where."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.all_reduce.plan import Collective
from gpuedu.checks import check_count
from gpuedu.transformer import RECOMPUTE, Transformer

from .activations import end_activations, layer_activations
from .communication import LAYER_SITES, Communication, Phase, inference_calls, training_calls
from .tensor import Tensor
from .weights import check_divisible, weights


@dataclass(frozen=True)
class Sharding:
    """A transformer on t ranks: who holds what, and who says what to whom when.

    Made by :func:`shard`.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        What is cut.
    tensor_parallel : int
        Ranks t.
    batch, sequence : int
        Sequences of one microbatch, tokens of each.
    sequence_parallel : bool
        Between the products each rank holds only its tokens.
    training : bool
        Forward, backward and loss; else one forward pass.
    regather : bool
        The backward gathers inputs again that the forward had gathered (Megatron-LM), instead of keeping
        them; no matter without ``sequence_parallel``.
    recompute : str
        What the backward computes again: ``"none"``, ``"selective"`` or ``"full"``, as :func:`shard` says.
    dropout : bool
        Trained with dropout.
    weights, activations : tuple of Tensor
        Every parameter; every array that is kept from forward to backward (none in inference).
    communications : tuple of Communication
        The collectives in order. Those of a layer stand there once, with their count.
    """

    model: Transformer
    tensor_parallel: int
    batch: int
    sequence: int
    sequence_parallel: bool
    training: bool
    regather: bool
    recompute: str
    dropout: bool
    weights: tuple[Tensor, ...]
    activations: tuple[Tensor, ...]
    communications: tuple[Communication, ...]

    @property
    def layer(self) -> tuple[Communication, ...]:
        """The collectives of one layer, in order."""
        return tuple(c for c in self.communications if c.site in LAYER_SITES)

    def at(self, site: str, phase: Phase) -> tuple[Communication, ...]:
        """The collectives at ``site`` in ``phase``, in order."""
        return tuple(c for c in self.communications if c.site == site and c.phase is phase)

    def counts(self) -> dict[tuple[Phase, Collective], int]:
        """How often each collective runs in a step of one microbatch, by phase."""
        counts: dict[tuple[Phase, Collective], int] = {}
        for c in self.communications:
            counts[c.phase, c.collective] = counts.get((c.phase, c.collective), 0) + c.count
        return counts


def shard(
    model: Transformer,
    tensor_parallel: int,
    *,
    batch: int = 1,
    sequence: int = 2048,
    sequence_parallel: bool = False,
    training: bool = True,
    regather: bool = True,
    recompute: str = "none",
    dropout: bool = True,
    itemsize: float = 2,
) -> Sharding:
    """Cut ``model`` over ``tensor_parallel`` ranks as Megatron-LM does.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        A model without MLA and MoE.
    tensor_parallel : int
        Ranks t: a divisor of attention heads, inner width and vocabulary, and a divisor or a multiple of
        the KV heads.
    batch, sequence : int
        Sequences of one microbatch, tokens of each. (In inference: new tokens of one pass.)
    sequence_parallel : bool
        Cut norms, dropout and residual stream by tokens: all-gather and reduce-scatter in place of each
        all-reduce. ``sequence`` must be a multiple of t.
    training : bool
        False: one forward pass up to the logits of each sequence's last token.
    regather : bool
        With sequence parallelism, let the backward gather the inputs of column-parallel products again
        instead of keeping them: one all-gather each, for 1/t of the memory. Megatron-LM does.
    recompute : str
        ``"none"``; ``"selective"`` (attention's core, no collectives in it); ``"full"`` (each layer's
        forward a second time, with its collectives).
    dropout : bool
        Trained with dropout, whose masks are kept.
    itemsize : float
        Bytes of one weight, activation or gradient. The loss works in FP32.

    Returns
    -------
    Sharding
        Immutable data.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, a model with MLA or MoE, or an axis that does not divide.

    Notes
    -----
    Queries, keys, values, gate and up (or fc1) are cut by columns of the product (axis 0 of torch's
    weight), attention output and down (or fc2) by rows (axis 1); embedding and head by vocabulary. A layer
    then has **four** all-reduces of the residual stream in a training step, two forward (g) and two backward
    (f), and two in inference. The embedding has one more, the head one in the backward, and the loss three
    of a single number a token. With more ranks than KV heads, t / kv_heads neighbors hold the same head, and
    once a step they add up its gradients. With sequence parallelism norms, biases after a row-parallel
    product and learned positions see only a part of the tokens, and once a step all ranks add up theirs.

    Ordinary f and g run on every rank; a rank that holds a copy of a KV head computes it once more, with no
    message. Left out: what pipeline and data parallelism send, the norm of all gradients (one number), random
    state.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3 and figures 3 and 4 (f and g); Korthikanti et al. 2022,
    "Reducing activation recomputation in large transformer models", section 4.2.2 (sequence parallelism,
    and the extra all-gather in the backward).

    Examples
    --------
    >>> from gpuedu.transformer import MODELS
    >>> plan = shard(MODELS["llama-3-70b"], 8)
    >>> {w.name: w.local_shape for w in plan.weights if w.name in ("q", "k", "o", "down")}
    {'q': (1024, 8192), 'k': (128, 8192), 'o': (8192, 1024), 'down': (8192, 3584)}
    >>> [(c.site, c.phase.value, c.collective.value) for c in plan.layer]  # doctest: +NORMALIZE_WHITESPACE
    [('attention_out', 'forward', 'all_reduce'), ('ffn_out', 'forward', 'all_reduce'),
     ('ffn_in', 'backward', 'all_reduce'), ('attention_in', 'backward', 'all_reduce')]
    """
    check_divisible(model, tensor_parallel)
    _check(batch, sequence, itemsize, recompute)
    switches = {
        "sequence_parallel": sequence_parallel,
        "training": training,
        "regather": regather,
        "dropout": dropout,
    }
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be True or False")
    if sequence_parallel and sequence % tensor_parallel:
        raise ValueError(
            f"sequence={sequence}: must be a multiple of tensor_parallel={tensor_parallel} with "
            "sequence_parallel"
        )
    t = tensor_parallel
    cut = tuple(weights(model, t, itemsize))
    shared = {"sequence_parallel": sequence_parallel, "regather": regather}
    kept: tuple[Tensor, ...] = ()
    if training:
        how = {"itemsize": itemsize, "dropout": dropout} | shared
        kept = (
            *layer_activations(model, t, batch, sequence, recompute=recompute, **how),
            *end_activations(model, t, batch, sequence, **how),
        )
    hidden = (batch, sequence, model.hidden_size)
    group = {"layers": model.layers, "ranks": t, "sequence_parallel": sequence_parallel}
    calls: tuple[Communication, ...] = ()
    if t > 1 and training:
        again = {"regather": regather, "recompute": recompute == "full"}
        calls = tuple(training_calls(cut, hidden, itemsize, **group, **again))
    elif t > 1:
        calls = tuple(inference_calls(hidden, model.vocab_size, itemsize, **group))
    return Sharding(
        model, t, batch, sequence, sequence_parallel, training, regather, recompute, dropout, cut, kept, calls
    )


def _check(batch: int, sequence: int, itemsize: float, recompute: str) -> None:
    check_count("batch", batch)
    check_count("sequence", sequence)
    if isinstance(itemsize, bool) or not isinstance(itemsize, int | float):
        raise TypeError(f"itemsize={itemsize!r}: must be a number")
    if not 0 < itemsize < float("inf"):
        raise ValueError(f"itemsize={itemsize!r}: must be > 0 and finite")
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute={recompute!r}: must be one of {', '.join(RECOMPUTE)}")
