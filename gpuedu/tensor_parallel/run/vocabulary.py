"""The vocabulary cut over the ranks: embedding and cross entropy."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gpuedu.checks import check_count

from ..plan import Phase
from .cut import Cut, Part
from .group import Group
from .linear import new_weight
from .regions import reduce_from, reduce_scatter_tokens

REDUCTIONS = ("mean", "sum", "none")


class VocabParallelTable(nn.Module):
    """A table of one vector for each id, of which every rank holds its own rows: embedding or head.

    Parameters
    ----------
    vocab_size : int
        How many ids there are.
    hidden_size : int
        Width of a vector.
    group : Group
        The ranks.
    padded_vocab_size : int, optional
        Rows of the table with padding, a multiple of the ranks; by default ``vocab_size``, if that is one.
        The padding stands for no id; its rows begin as zeros.
    generator : Generator, optional
        As for :class:`ColumnParallelLinear`.

    Raises
    ------
    TypeError, ValueError
        If a size is no int, below 1, or the rows cannot be cut evenly.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        group: Group,
        *,
        padded_vocab_size: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_count("vocab_size", vocab_size)
        check_count("hidden_size", hidden_size)
        rows = check_padding(vocab_size, padded_vocab_size, group)
        self.vocab_size, self.group = vocab_size, group
        self.cuts = {"weight": Cut(0, (Part("vocab_size", rows, rows),))}
        self.weight = new_weight((vocab_size, hidden_size), self.cuts["weight"], group, generator)


class VocabParallelEmbedding(VocabParallelTable):
    """An embedding: for ids of other ranks a rank has zeros, and all ranks' vectors are added.

    Parameters
    ----------
    vocab_size, hidden_size, group, padded_vocab_size, generator
        As for :class:`VocabParallelTable`.
    sequence_parallel : bool
        The output leaves cut by tokens: a reduce-scatter in place of the all-reduce.

    Raises
    ------
    TypeError, ValueError
        If a size is no int, below 1, or the rows cannot be cut evenly.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import simulate
    >>> ids = torch.tensor([[0, 5, 9]])
    >>> simulate(2, lambda group: VocabParallelEmbedding(10, 4, group)(ids).shape)
    [torch.Size([1, 3, 4]), torch.Size([1, 3, 4])]
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        group: Group,
        *,
        padded_vocab_size: int | None = None,
        sequence_parallel: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            vocab_size, hidden_size, group, padded_vocab_size=padded_vocab_size, generator=generator
        )
        self.sequence_parallel = sequence_parallel

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """From ids (batch, tokens), the same on all ranks, to (batch, tokens, hidden), or tokens / t."""
        check_ids("ids", ids, self.vocab_size)
        local, own = own_ids(ids, len(self.weight), self.group)
        vectors = functional.embedding(local, self.weight) * own.unsqueeze(-1)
        leave = reduce_scatter_tokens if self.sequence_parallel else reduce_from
        return leave(vectors, self.group)


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    group: Group,
    *,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross entropy of logits of which every rank has its own columns.

    The ranks exchange three numbers a token (the largest logit, the logit of the target, the sum of the
    exponentials), never the logits.

    Parameters
    ----------
    logits : Tensor
        This rank's columns, (..., vocabulary / t).
    targets : Tensor
        Ids, (...), int64, the same on all ranks.
    group : Group
        The ranks.
    vocab_size : int, optional
        How many columns count, of all ranks together; what lies behind is padding. By default all.
    ignore_index : int
        A target that counts for nothing.
    reduction : str
        ``"mean"`` over the targets that count, ``"sum"``, or ``"none"``.

    Returns
    -------
    Tensor
        The same on all ranks: one number, or (...) with ``"none"``. In FP32 at least.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or ids do not fit.

    Notes
    -----
    With z the logits of a token and y its target: loss = log sum exp(z - max z) - (z[y] - max z), and the
    gradient is softmax(z) - onehot(y): each rank computes its own columns of it without a message.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import simulate
    >>> logits, targets = torch.zeros(2, 8), torch.tensor([3, 7])
    >>> def loss(group):
    ...     own = logits.chunk(4, -1)[group.rank]
    ...     return round(vocab_parallel_cross_entropy(own, targets, group).item(), 4)
    >>> simulate(4, loss), round(functional.cross_entropy(logits, targets).item(), 4)
    ([2.0794, 2.0794, 2.0794, 2.0794], 2.0794)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: must be one of {', '.join(REDUCTIONS)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits of {logits.dtype}: must be floats")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets of shape {tuple(targets.shape)}: must be {tuple(logits.shape[:-1])}")
    columns = logits.shape[-1] * group.size
    vocab_size = columns if vocab_size is None else vocab_size
    check_count("vocab_size", vocab_size)
    if vocab_size > columns:
        raise ValueError(f"vocab_size={vocab_size}: must be at most the {columns} columns of the logits")
    check_ids("targets", targets, vocab_size, ignore_index)
    counts = targets != ignore_index
    losses = _CrossEntropy.apply(logits, targets, counts, vocab_size, group)
    if reduction == "none":
        return losses
    return losses.sum() / counts.sum() if reduction == "mean" else losses.sum()


class _CrossEntropy(torch.autograd.Function):
    """The loss of every token, 0 where the target does not count."""

    @staticmethod
    def forward(ctx, logits, targets, counts, vocab_size, group):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        columns = z.shape[-1]
        z[..., max(0, vocab_size - group.rank * columns) :] = -torch.inf
        local, own = own_ids(targets, columns, group)
        group.agree("cross entropy", logits)

        z -= group.all_reduce(z.amax(-1), Phase.FORWARD, "max").unsqueeze(-1)
        of_target = z.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~own, 0)
        of_target = group.all_reduce(of_target, Phase.FORWARD)
        softmax = z.exp_()
        total = group.all_reduce(softmax.sum(-1), Phase.FORWARD)

        softmax /= total.unsqueeze(-1)
        ctx.save_for_backward(softmax, local, own, counts)
        ctx.dtype = logits.dtype
        return (total.log() - of_target).masked_fill(~counts, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        softmax, local, own, counts = ctx.saved_tensors
        logits_gradient = softmax.clone()
        logits_gradient.scatter_add_(-1, local.unsqueeze(-1), -own.to(softmax.dtype).unsqueeze(-1))
        logits_gradient *= (gradient * counts).unsqueeze(-1)
        return logits_gradient.to(ctx.dtype), None, None, None, None


def own_ids(ids: torch.Tensor, rows: int, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Every id as a row of this rank's piece (0 where another rank has it), and whether this rank has it."""
    local = ids - group.rank * rows
    own = (local >= 0) & (local < rows)
    return local.masked_fill(~own, 0), own


def check_padding(vocab_size: int, padded_vocab_size: int | None, group: Group) -> int:
    """How many rows the table has."""
    rows = vocab_size if padded_vocab_size is None else padded_vocab_size
    check_count("padded_vocab_size", rows)
    if rows < vocab_size:
        raise ValueError(f"padded_vocab_size={rows}: must be at least vocab_size={vocab_size}")
    if rows % group.size:
        name = "vocab_size" if padded_vocab_size is None else "padded_vocab_size"
        next_multiple = -(-rows // group.size) * group.size
        raise ValueError(
            f"{name}={rows}: must be a multiple of the {group.size} ranks; "
            f"padded_vocab_size={next_multiple} would be"
        )
    return rows


def check_ids(name: str, ids: torch.Tensor, vocab_size: int, ignore_index: int | None = None) -> None:
    """Raise unless all ids are in the vocabulary, or the one that counts for nothing."""
    if ids.dtype != torch.int64:
        raise TypeError(f"{name} of {ids.dtype}: must be torch.int64")
    wrong = (ids < 0) | (ids >= vocab_size)
    if ignore_index is not None:
        wrong &= ids != ignore_index
    if wrong.any():
        raise ValueError(f"{name}: {ids[wrong][0].item()}: must be from 0 to {vocab_size - 1}")
