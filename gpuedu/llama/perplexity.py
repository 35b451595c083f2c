"""How well a model foretells a text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from gpuedu.checks import check_count

from .model import Llama

TOKENS_A_PASS = 2048  # logits of more would only take memory


@torch.no_grad()
def negative_log_likelihoods(model: Llama, tokens: Sequence[int] | torch.Tensor, window: int) -> torch.Tensor:
    """What each token cost the model: minus the logarithm of the probability that it gave to it.

    Parameters
    ----------
    model : Llama
        Used as it is, on its device.
    tokens : sequence of int or Tensor
        (n,), a text of two tokens or more.
    window : int
        The text is cut into pieces of this length, and each is read without those before it.

    Returns
    -------
    Tensor
        (n - 1,), float32, on the CPU, in nats: of all tokens but the first.

    Raises
    ------
    TypeError
        If tokens are no whole numbers.
    ValueError
        If there are fewer than two tokens, or ``window`` is not from 1 to the model's context.

    Notes
    -----
    Piece i has the inputs ``tokens[i * window : (i + 1) * window]`` and foretells the token after each, so
    that every token but the first is foretold once; 2,049 tokens and a window of 512 make four pieces. A
    short window makes a text look harder: its first tokens have little to go by.
    """
    device = model.embed_tokens.weight.device
    ids = torch.as_tensor(tokens)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"tokens of shape {tuple(ids.shape)}: must be (n,) with n >= 2")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"tokens of {ids.dtype}: must be whole numbers")
    ids = ids.long()
    check_count("window", window)
    if window > model.config.context_length:
        raise ValueError(f"window={window}: must be at most context_length={model.config.context_length}")
    count = len(ids) - 1
    whole = count - count % window
    pieces = []
    if whole:
        inputs, targets = ids[:whole].view(-1, window), ids[1 : whole + 1].view(-1, window)
        rows = max(1, TOKENS_A_PASS // window)
        pieces = list(zip(inputs.split(rows), targets.split(rows), strict=True))
    if whole < count:
        pieces.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    losses = [
        functional.cross_entropy(
            model(inputs.to(device)).float().flatten(0, 1), targets.to(device).flatten(), reduction="none"
        )
        for inputs, targets in pieces
    ]
    return torch.cat(losses).cpu()


def perplexity(model: Llama, tokens: Sequence[int] | torch.Tensor, window: int) -> float:
    """Among how many equally likely tokens the model might as well have chosen, on average.

    Parameters
    ----------
    model, tokens, window
        See :func:`negative_log_likelihoods`.

    Returns
    -------
    float
        ``exp`` of the mean negative log-likelihood. It is one a token: models with other tokenizers cannot
        be compared by it.

    Raises
    ------
    TypeError, ValueError
        As :func:`negative_log_likelihoods` does.

    Examples
    --------
    >>> from gpuedu.tinylm import load, text
    >>> model, tokenizer = load("draft")
    >>> 1 < perplexity(model, tokenizer.encode(text("speech_2014"))[:513], 256) < tokenizer.vocab_size
    True
    """
    return math.exp(negative_log_likelihoods(model, tokens, window).double().mean().item())
