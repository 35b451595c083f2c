"""SmoothQuant on a small matrix product: outliers moved from activations to weights."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import check_number, check_numbers
from .integers import Affine, fit

Matrix = Sequence[Sequence[float]]
SMALLEST = 1e-5
"""Below this neither a weight's peak nor a scale counts, as in the reference code."""


def smoothing_scales(
    activation_peaks: Sequence[float], weight_peaks: Sequence[float], alpha: float = 0.5
) -> tuple[float, ...]:
    """What each input channel of the activations is divided by, and of the weights multiplied with.

    Parameters
    ----------
    activation_peaks : sequence of float
        Largest magnitude of each input channel over the calibration tokens.
    weight_peaks : sequence of float
        Largest magnitude of each input channel over all outputs.
    alpha : float
        Migration strength, 0 to 1: 0 leaves the difficulty with the activations, 1 moves all of it.

    Returns
    -------
    tuple of float
        ``activation ** alpha / weight ** (1 - alpha)`` per channel, at least 1e-5.

    Raises
    ------
    TypeError, ValueError
        If the peaks are not as many, negative or not finite, or ``alpha`` is outside 0 to 1.

    References
    ----------
    Xiao et al. 2023, "SmoothQuant", equation 4.

    Examples
    --------
    >>> smoothing_scales([64.0, 1.0], [1.0, 1.0], alpha=0.5)
    (8.0, 1.0)
    """
    check_number("alpha", alpha, 0, 1)
    check_numbers("activation_peaks", activation_peaks)
    check_numbers("weight_peaks", weight_peaks)
    if len(activation_peaks) != len(weight_peaks):
        raise ValueError(f"weight_peaks: {len(weight_peaks)} channels: must be {len(activation_peaks)}")
    if min(*activation_peaks, *weight_peaks) < 0:
        raise ValueError("activation_peaks, weight_peaks: must not be negative")
    return tuple(
        max(a**alpha / max(w, SMALLEST) ** (1 - alpha), SMALLEST)
        for a, w in zip(activation_peaks, weight_peaks, strict=True)
    )


def peaks(matrix: Matrix) -> tuple[float, ...]:
    """Largest magnitude of each column.

    Parameters
    ----------
    matrix : sequence of sequence of float
        Rows of equal length.

    Returns
    -------
    tuple of float
        One for each column.

    Raises
    ------
    ValueError
        If the rows differ in length.

    Examples
    --------
    >>> peaks([[1.0, -2.0], [-3.0, 0.5]])
    (3.0, 2.0)
    """
    return tuple(max(map(abs, column)) for column in zip(*matrix, strict=True))


def rounded_product(
    tokens: Matrix,
    weights: Matrix,
    scales: Sequence[float],
    *,
    bits: int = 8,
    per_tensor: bool = False,
) -> tuple[tuple[float, ...], ...]:
    """``X W^T`` with both rounded: tokens divided by the scales, weights multiplied with them.

    Parameters
    ----------
    tokens : sequence of sequence of float
        Activations X, a row for each token.
    weights : sequence of sequence of float
        W, a row for each output.
    scales : sequence of float
        One for each input channel; all 1 is W8A8 without smoothing.
    bits : int
        Of activations and weights, symmetric. Weights have a scale for each output.
    per_tensor : bool
        Activations have one scale; else one for each token.

    Returns
    -------
    tuple of tuple of float
        A row for each token, a column for each output.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a scale is not above 0, or the bits are unknown.

    Examples
    --------
    >>> rounded_product([[1.0, 127.0]], [[1.0, 1.0]], [1.0, 1.0])
    ((128.0,),)
    """
    check_numbers("scales", scales)
    if min(scales) <= 0:
        raise ValueError(f"scales: {min(scales)}: must be above 0")
    smooth = [[x / s for x, s in zip(token, scales, strict=True)] for token in tokens]
    heavy = [[w * s for w, s in zip(row, scales, strict=True)] for row in weights]
    whole = fit([x for token in smooth for x in token], bits, "symmetric") if per_tensor else None
    left = [_rounded(token, whole or fit(token, bits, "symmetric")) for token in smooth]
    right = [_rounded(row, fit(row, bits, "symmetric")) for row in heavy]
    return tuple(tuple(_dot(token, row) for row in right) for token in left)


def _rounded(numbers: Sequence[float], grid: Affine) -> list[float]:
    return [grid.nearest(number) for number in numbers]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
