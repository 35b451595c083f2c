"""What a layer's calibration inputs are reduced to: second moments, means and peaks of its channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .checks import check_floats, check_matrix, wide

NARROW = 512  # columns below which a Gram matrix is one product


@dataclass(frozen=True)
class InputStatistics:
    """Of the inputs x of a layer, over all calibration tokens.

    Parameters
    ----------
    hessian : Tensor
        (columns, columns): ``2 / tokens * sum of x x^T``, of the squared output error of one row.
    mean_abs, peak : Tensor
        (columns,): mean and largest magnitude.
    tokens : int
        How many inputs there were.
    """

    hessian: torch.Tensor
    mean_abs: torch.Tensor
    peak: torch.Tensor
    tokens: int

    def scaled(self, scale: torch.Tensor) -> InputStatistics:
        """The statistics of ``x / scale``, with ``scale`` (columns,)."""
        hessian = self.hessian / (scale[:, None] * scale)
        return InputStatistics(hessian, self.mean_abs / scale, self.peak / scale, self.tokens)


def input_statistics(batches: torch.Tensor | Iterable[torch.Tensor]) -> InputStatistics:
    """Reduce calibration inputs to what the methods need of them.

    Parameters
    ----------
    batches : Tensor or iterable of Tensor
        Each (..., columns): inputs of a layer, a row for each token.

    Returns
    -------
    InputStatistics
        Whose mean squared errors are over tokens, not sequences; the choice only scales the Hessian. In
        float32 at least.

    Raises
    ------
    TypeError, ValueError
        If there is no input, or one is not finite.

    Examples
    --------
    >>> statistics = input_statistics(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> statistics.hessian.tolist(), statistics.peak.tolist(), statistics.tokens
    ([[10.0, 2.0], [2.0, 4.0]], [3.0, 2.0], 2)
    """
    batches = [batches] if isinstance(batches, torch.Tensor) else list(batches)
    if not batches:
        raise ValueError("batches is empty: must hold at least one calibration input")
    total = magnitudes = peak = None
    tokens = 0
    for i, batch in enumerate(batches):
        check_floats(f"batches[{i}]", batch)
        x = wide(batch.detach()).reshape(-1, batch.shape[-1])
        size = x.abs()
        parts = gram(x), size.sum(0), size.amax(0)
        if total is None:
            total, magnitudes, peak = parts
        else:
            total += parts[0]
            magnitudes += parts[1]
            peak = torch.maximum(peak, parts[2])
        tokens += len(x)
    return InputStatistics(total.mul_(2 / tokens), magnitudes / tokens, peak, tokens)


def gram(x: torch.Tensor) -> torch.Tensor:
    """``x^T x`` of (tokens, columns): of the two equal halves of a symmetric matrix one is computed."""
    columns = x.shape[1]
    if columns <= NARROW:
        return x.T @ x
    half = columns // 2
    left, right = x[:, :half], x[:, half:]
    product = x.new_empty(columns, columns)
    product[:half, :half], product[half:, half:] = gram(left), gram(right)
    torch.matmul(left.T, right, out=product[:half, half:])
    product[half:, :half] = product[:half, half:].T
    return product


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> float:
    """Mean squared change of an output, over calibration tokens and rows, when weights change.

    Parameters
    ----------
    difference : Tensor
        (rows, columns): new weights less old ones.
    hessian : Tensor
        (columns, columns), of :func:`input_statistics`.

    Returns
    -------
    float
        The mean of ``(d . x)^2`` over rows d and tokens x: half of ``d H d^T``, averaged over rows.

    Raises
    ------
    TypeError, ValueError
        If ``difference`` is no matrix of finite numbers.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> output_error(torch.tensor([[1.0, 1.0]]), input_statistics(x).hessian)
    9.0
    """
    check_matrix("difference", difference)
    hessian = wide(hessian)
    difference = difference.to(hessian.dtype)
    return ((difference @ hessian) * difference).sum().item() / (2 * len(difference))
