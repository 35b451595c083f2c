"""Matrix products cut by columns and by rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gpuedu.checks import check_count

from ..plan import Phase
from .cut import Cut, Part
from .group import Group
from .regions import (
    TOKENS,
    copy_to,
    gather_from,
    gather_tokens,
    reduce_from,
    reduce_scatter_tokens,
    scatter_to,
)

STANDARD_DEVIATION = 0.02  # of new weights, as GPT-2's


class ColumnParallelLinear(nn.Module):
    """``y = x A^T + b`` with A (out, in) cut along out: every rank computes its own columns of y.

    Parameters
    ----------
    in_features : int
        Width of x.
    out_features : int or sequence of Part
        Width of y, a multiple of the ranks; or several matrices stored as one, of which each is cut by
        itself, as queries, keys and values are, or gate and up.
    group : Group
        The ranks.
    bias : bool
        Add b, cut like the columns.
    gather_output : bool
        All ranks receive the whole y; else each its own columns.
    sequence_parallel : bool
        x comes cut by tokens, and is gathered.
    regather : bool
        With ``sequence_parallel`` the backward gathers x once more, instead of keeping it whole in
        memory meanwhile. Megatron-LM does.
    generator : Generator, optional
        For the initial weights: normal, standard deviation 0.02, the same whole matrix for any number of
        ranks if seeded the same on all. By default seeded with 0.

    Raises
    ------
    TypeError, ValueError
        If a width is no int, below 1 or cannot be cut evenly, or if several matrices should be gathered.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import simulate
    >>> simulate(2, lambda group: ColumnParallelLinear(3, 8, group)(torch.ones(1, 5, 3)).shape)
    [torch.Size([1, 5, 4]), torch.Size([1, 5, 4])]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | Sequence[Part],
        group: Group,
        *,
        bias: bool = True,
        gather_output: bool = False,
        sequence_parallel: bool = False,
        regather: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if isinstance(out_features, Sequence):
            parts = tuple(out_features)
        else:
            check_count("out_features", out_features)
            parts = (Part("out_features", out_features, out_features),)
        if gather_output and len(parts) > 1:
            raise ValueError(
                f"gather_output=True with {len(parts)} parts: must be False; gathered, their pieces would mix"
            )
        check_count("in_features", in_features)
        self.group, self.gather_output = group, gather_output
        self.sequence_parallel, self.regather = sequence_parallel, regather
        self.cuts = {"weight": Cut(0, parts)} | ({"bias": Cut(0, parts)} if bias else {})
        whole = sum(part.length for part in parts), in_features
        self.weight = new_weight(whole, self.cuts["weight"], group, generator)
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (..., tokens, in) to (..., tokens, out / t), or (..., tokens, out) if gathered."""
        y = column_parallel_linear(
            x,
            self.weight,
            self.bias,
            self.group,
            sequence_parallel=self.sequence_parallel,
            regather=self.regather,
        )
        return gather_from(y, self.group) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """``y = x A^T + b`` with A (out, in) cut along in: every rank computes its part of a sum.

    Parameters
    ----------
    in_features : int
        Width of x, a multiple of the ranks.
    out_features : int
        Width of y.
    group : Group
        The ranks.
    bias : bool
        Add b, whole on every rank, **once**, after the sum.
    input_is_parallel : bool
        x comes cut by width, as a column-parallel layer leaves it; else each rank takes its piece.
    sequence_parallel : bool
        y leaves cut by tokens: a reduce-scatter in place of the all-reduce.
    generator : Generator, optional
        As for :class:`ColumnParallelLinear`.

    Raises
    ------
    TypeError, ValueError
        If a width is no int, below 1, or ``in_features`` cannot be cut evenly.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import simulate
    >>> simulate(2, lambda group: RowParallelLinear(8, 3, group)(torch.ones(1, 5, 4)).shape)
    [torch.Size([1, 5, 3]), torch.Size([1, 5, 3])]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: Group,
        *,
        bias: bool = True,
        input_is_parallel: bool = True,
        sequence_parallel: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        self.group, self.input_is_parallel = group, input_is_parallel
        self.sequence_parallel = sequence_parallel
        self.cuts = {"weight": Cut(1, (Part("in_features", in_features, in_features),))}
        self.weight = new_weight((out_features, in_features), self.cuts["weight"], group, generator)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (..., tokens, in / t) to (..., tokens, out), or (..., tokens / t, out) if cut by tokens."""
        if not self.input_is_parallel:
            x = scatter_to(x, self.group)
        check_activation(x, self.weight)
        part = functional.linear(x, self.weight)
        leave = reduce_scatter_tokens if self.sequence_parallel else reduce_from
        y = leave(part, self.group)
        return y if self.bias is None else y + self.bias


def column_parallel_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    group: Group,
    *,
    sequence_parallel: bool = False,
    regather: bool = True,
) -> torch.Tensor:
    """What :class:`ColumnParallelLinear` computes, with weights that belong to somebody else.

    Parameters
    ----------
    x : Tensor
        (..., tokens, in), or (..., tokens / t, in) with ``sequence_parallel``.
    weight, bias : Tensor
        This rank's rows of A, (out / t, in), and of b, (out / t,) or None.
    group : Group
        The ranks.
    sequence_parallel, regather : bool
        As for :class:`ColumnParallelLinear`.

    Returns
    -------
    Tensor
        This rank's columns, (..., tokens, out / t).

    Raises
    ------
    TypeError, ValueError
        If ``x`` is of another dtype or width than the weight, or differs between ranks in shape.
    """
    check_activation(x, weight)
    if sequence_parallel and regather:
        return _GatheredLinear.apply(x, weight, bias, group)
    enter = gather_tokens if sequence_parallel else copy_to
    return functional.linear(enter(x, group), weight, bias)


class _GatheredLinear(torch.autograd.Function):
    """A product of gathered tokens that keeps only its own, and gathers them again in the backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, group):
        ctx.save_for_backward(x, weight)
        ctx.group = group
        group.agree("all_gather", x)
        return functional.linear(group.all_gather(x, TOKENS, Phase.FORWARD), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        x_gradient = weight_gradient = bias_gradient = None
        rows = gradient.flatten(0, -2)
        if of_weight:
            whole = ctx.group.all_gather(x, TOKENS, Phase.BACKWARD)
            weight_gradient = rows.T @ whole.flatten(0, -2)
        if of_x:
            x_gradient = ctx.group.reduce_scatter(gradient @ weight, TOKENS, Phase.BACKWARD)
        if of_bias:
            bias_gradient = rows.sum(0)
        return x_gradient, weight_gradient, bias_gradient, None


def new_weight(
    shape: tuple[int, int], cut: Cut, group: Group, generator: torch.Generator | None
) -> nn.Parameter:
    """This rank's piece of a new matrix, the same whole matrix for any number of ranks.

    Rows that ``cut`` has beyond ``shape`` are padding, and zero.
    """
    cut.length(group.size)  # which raises if it cannot be cut, before anything is drawn
    generator = generator or torch.Generator().manual_seed(0)
    whole = torch.randn(shape, generator=generator) * STANDARD_DEVIATION
    if cut.axis == 0:
        rows = sum(part.length for part in cut.parts)
        whole = functional.pad(whole, (0, 0, 0, rows - shape[0]))
    return nn.Parameter(cut.take(whole, group.rank, group.size))


def check_activation(x: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise unless ``x`` can be multiplied with this rank's ``weight``."""
    if x.dtype != weight.dtype:
        raise TypeError(f"x of {x.dtype}: must be {weight.dtype}, as the weight")
    if x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x of shape {tuple(x.shape)}: must be (..., tokens, {weight.shape[1]}) on each rank"
        )
