"""What a client may ask of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.llama.generate import check_sampling, check_seed


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    Parameters
    ----------
    max_tokens : int
        The most tokens to produce, at least 1.
    temperature : float
        Logits are divided by it; 0 takes the most likely token each time.
    top_k : int, optional
        Only the so many most likely tokens are drawn from.
    top_p : float, optional
        Then only the fewest most likely ones that have this probability together; 1 keeps all.
    seed : int, optional
        Of this request's draws, from 0 to 2^64 - 1; needed with a temperature above 0. Whatever else runs
        beside it, the same seed gives the same text.
    stop : tuple of str
        The answer ends before the first of these texts.
    stop_ids : tuple of int
        The answer ends with the first of these tokens.
    ignore_eos : bool
        Whether to go on after the end-of-text token of the tokenizer.

    Raises
    ------
    TypeError, ValueError
        For a figure out of range, an empty stop text, or a temperature without a seed.

    Examples
    --------
    >>> SamplingParams(max_tokens=64, temperature=0.8, top_p=0.9, seed=1).top_k is None
    True
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_count("max_tokens", self.max_tokens)
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.seed is not None:
            check_seed(self.seed)
        elif self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: needs a seed")
        for name, kind in (("stop", str), ("stop_ids", int)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
                raise TypeError(f"{name}={values!r}: must be a tuple of {kind.__name__}")
            object.__setattr__(self, name, tuple(values))
        if "" in self.stop:
            raise ValueError(f"stop={self.stop!r}: must not hold an empty text")
