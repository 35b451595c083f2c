"""Published traces, as quantiles of their lengths and the pace of their arrivals."""

from __future__ import annotations

from dataclasses import dataclass

from .lengths import Quantiles

PROBABILITIES = (0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1)


@dataclass(frozen=True)
class Traffic:
    """What a trace says about its requests.

    Parameters
    ----------
    rate : float
        Requests a second, on average.
    cv : float or None
        Coefficient of variation of the times between arrivals, where it is known.
    prompt, output : Quantiles
        Lengths in tokens; all but uncorrelated in both Azure traces.
    source : str
        Where the figures come from.
    """

    rate: float
    cv: float | None
    prompt: Quantiles
    output: Quantiles
    source: str


def _quantiles(*tokens: int) -> Quantiles:
    return Quantiles(tuple(zip(PROBABILITIES, tokens, strict=True)))


_AZURE = "Azure LLM inference trace 2023 (CC-BY-4.0), of Patel et al. Splitwise. ISCA 2024"
_MOONCAKE = "Mooncake traces (Apache-2.0), of Qin et al. Mooncake. FAST 2025"

TRAFFIC = {
    "azure_conversation": Traffic(
        rate=5.53,
        cv=1.09,
        prompt=_quantiles(2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 14050),
        output=_quantiles(7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
        source=_AZURE,
    ),
    "azure_code": Traffic(
        rate=2.57,
        cv=13.2,
        prompt=_quantiles(3, 17, 75, 147, 578, 1469, 2745, 5186, 7302, 7436, 7437),
        output=_quantiles(6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899),
        source=_AZURE,
    ),
    "mooncake_synthetic": Traffic(
        rate=3993 / 1022,
        cv=1.01,
        prompt=_quantiles(13, 16, 22, 30, 277, 11587, 23175, 38615, 48835, 66456, 191378),
        output=_quantiles(1, 2, 2, 4, 11, 69, 250, 389, 519, 768, 893),
        source=_MOONCAKE,
    ),
    "mooncake_conversation": Traffic(
        rate=12031 / (59 * 60),
        cv=None,
        prompt=_quantiles(891, 894, 901, 973, 2470, 7604, 16186, 28564, 41392, 91305, 123192),
        output=_quantiles(1, 3, 9, 24, 153, 356, 478, 609, 708, 1120, 2000),
        source=_MOONCAKE + "; its first half",
    ),
}
"""Published traffic by name."""
