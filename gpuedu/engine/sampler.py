"""Logits to tokens, each request by its own rule and from its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpuedu.llama import sampling_distribution

from .sampling_params import SamplingParams


class Sampler:
    """Chooses the tokens of one request.

    Parameters
    ----------
    params : SamplingParams
        By which rule.

    Notes
    -----
    The generator belongs to the request and lives on the CPU, so that what it draws depends neither on the
    batch nor on the device.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._generator = None
        if params.temperature > 0:
            self._generator = torch.Generator().manual_seed(params.seed)

    def draw(self, logits: torch.Tensor) -> int:
        """One token from (vocab_size,) logits on the CPU."""
        params = self.params
        distribution = sampling_distribution(
            logits, params.temperature, top_k=params.top_k, top_p=params.top_p
        )
        return int(torch.multinomial(distribution, 1, generator=self._generator))


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each request of a batch.

    Parameters
    ----------
    logits : Tensor
        (requests, vocab_size).
    samplers : sequence of Sampler
        One a row.

    Returns
    -------
    list of int
        The most likely token where the temperature is 0 (the first of equals), else a drawn one.
    """
    tokens = logits.argmax(dim=-1).tolist()
    for row, sampler in enumerate(samplers):
        if sampler.params.temperature > 0:
            tokens[row] = sampler.draw(logits[row].cpu())
    return tokens
