"""Text from a model, token by token: greedy or sampled."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from gpuedu.checks import check_amount, check_count

from .cache import KVCache
from .model import Llama

SEEDS = 2**64  # as many as torch.Generator knows


def sampling_distribution(
    logits: torch.Tensor, temperature: float, *, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """Probabilities that the next token is drawn from.

    Parameters
    ----------
    logits : Tensor
        (..., vocab_size).
    temperature : float
        Logits are divided by it; 0 gives all probability to the largest (the first of equals).
    top_k : int, optional
        Only the so many most likely tokens are kept.
    top_p : float, optional
        Then only the fewest most likely ones that have this probability together; 1 keeps all.

    Returns
    -------
    Tensor
        Like ``logits``, float32; the last axis sums to 1.

    Raises
    ------
    ValueError
        If ``temperature`` is negative, ``top_k`` below 1 or ``top_p`` not in (0, 1].

    References
    ----------
    Holtzman et al. The curious case of neural text degeneration. ICLR 2020 (top-p).

    Examples
    --------
    >>> sampling_distribution(torch.tensor([2.0, 1.0, 0.0]).exp().log(), 1.0, top_k=1).tolist()
    [1.0, 0.0, 0.0]
    >>> sampling_distribution(torch.tensor([0.5, 0.3, 0.2]).log(), 1.0, top_p=0.6)
    tensor([0.6250, 0.3750, 0.0000])
    """
    check_sampling(temperature, top_k, top_p)
    logits = logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    # In float32 a tiny temperature makes infinities of the logits, or is itself 0
    below = (logits - logits.amax(-1, keepdim=True)).double()
    probabilities = torch.softmax(below / temperature, dim=-1).float()
    if top_p == 1:
        top_p = None  # sums that round up to 1 would drop the least likely tokens
    if top_k is None and top_p is None:
        return probabilities
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = 0
    if top_p is not None:
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered  # what the more likely ones have together
        ordered[before >= top_p] = 0
    kept = torch.zeros_like(probabilities).scatter(-1, tokens, ordered)
    return kept / kept.sum(-1, keepdim=True)


def check_seed(seed: int) -> None:
    """Raise unless a generator of random numbers takes this seed."""
    check_count("seed", seed, 0)
    if seed >= SEEDS:
        raise ValueError(f"seed={seed}: must be below 2**64")


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise unless a distribution can be made with these."""
    check_amount("temperature", temperature)
    if top_k is not None:
        check_count("top_k", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r}: must be above 0 and at most 1")


def stream(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """New tokens one by one, as :func:`generate` returns them together."""
    check_sampling(temperature, top_k, top_p)
    check_count("max_new_tokens", max_new_tokens)
    room = model.config.context_length - len(ids)
    if not ids:
        raise ValueError("ids: must be one token or more")
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: must be at most {room}, what the context has left"
        )
    if seed is not None:
        check_seed(seed)
    elif temperature > 0:
        raise ValueError(f"temperature={temperature!r}: needs a seed")
    return _stream(model, ids, max_new_tokens, (temperature, top_k, top_p), seed, frozenset(stop_ids))


@torch.no_grad()
def _stream(model, ids, max_new_tokens, sampling, seed, stop_ids) -> Iterator[int]:
    """The loop of :func:`stream`, whose arguments are checked before the first token is asked for."""
    weights = model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed or 0)
    cache = KVCache(model.config, 1, len(ids) + max_new_tokens, dtype=weights.dtype, device=weights.device)
    temperature, top_k, top_p = sampling
    new = list(ids)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([new], device=weights.device), cache, last_only=True)[0, -1].cpu()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            distribution = sampling_distribution(logits, temperature, top_k=top_k, top_p=top_p)
            token = int(torch.multinomial(distribution, 1, generator=generator))
        yield token
        if token in stop_ids:
            return
        new = [token]


def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """Continue a sequence of tokens.

    Parameters
    ----------
    model : Llama
        Used as it is, on its device.
    ids : sequence of int
        The prompt.
    max_new_tokens : int
        The most tokens to add.
    temperature, top_k, top_p : float, int, float
        See :func:`sampling_distribution`; temperature 0 takes the most likely token each time.
    seed : int, optional
        Of the draws, from 0 to 2^64 - 1; needed with a temperature above 0. The same seed gives the same
        text.
    stop_ids : collection of int
        Tokens after which to stop.

    Returns
    -------
    list of int
        The new tokens alone, with the one that stopped it.

    Raises
    ------
    TypeError, ValueError
        If the prompt is empty, the context too short, or the sampling makes no sense.

    Examples
    --------
    >>> from gpuedu.tinylm import load
    >>> model, tokenizer = load("draft")
    >>> len(generate(model, tokenizer.encode("My fellow Americans"), 5))
    5
    """
    return list(
        stream(
            model,
            ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=stop_ids,
        )
    )
