"""A language model on t ranks: embedding, blocks, norm, head and loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gpuedu.transformer import Transformer

from .block import Block, Setting, norm
from .dropout import RandomState
from .gradients import sum_gradients
from .group import Group
from .linear import STANDARD_DEVIATION, column_parallel_linear
from .regions import TOKENS, copy_to, gather_from, gather_tokens
from .vocabulary import VocabParallelEmbedding, VocabParallelTable, vocab_parallel_cross_entropy


class Decoder(nn.Module):
    """A decoder-only transformer of which every rank holds its part of each layer.

    The same seed gives the same model on any number of ranks.

    Parameters
    ----------
    shape : gpuedu.transformer.Transformer
        Of the model; without MLA and MoE.
    group : Group
        The ranks.
    sequence_parallel : bool
        Between the products each rank holds only its tokens: all-gather and reduce-scatter in place of
        each all-reduce.
    regather : bool
        With ``sequence_parallel`` the backward gathers the inputs of column-parallel products again, instead
        of keeping them.
    dropout : float
        Probability, for embedding, attention and the outputs of attention and feed-forward network.
    padded_vocab_size : int, optional
        Rows of embedding and head with padding, which changes neither loss nor gradients.
    seed : int
        Of initial weights and dropout, the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        If the model is of another kind, or an axis cannot be cut evenly.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import simulate
    >>> shape = Transformer(layers=2, hidden_size=16, attention_heads=4, kv_heads=2, head_dim=4,
    ...     ffn_hidden_size=32, gated_ffn=True, vocab_size=20, tied_embeddings=True, biases="none",
    ...     norm="rmsnorm")
    >>> ids = torch.arange(16).view(2, 8)
    >>> def step(group):
    ...     model = Decoder(shape, group)
    ...     loss = model(ids, ids)
    ...     loss.backward()
    ...     model.sum_gradients()
    ...     return round(loss.item(), 4)
    >>> simulate(4, step) == 4 * simulate(1, step)
    True
    """

    def __init__(
        self,
        shape: Transformer,
        group: Group,
        *,
        sequence_parallel: bool = False,
        regather: bool = True,
        dropout: float = 0.0,
        padded_vocab_size: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(shape, Transformer):
            raise TypeError(f"shape={shape!r}: must be a Transformer")
        if shape.mla is not None or shape.moe is not None:
            raise ValueError("shape: must be one without mla and moe")
        self.shape, self.group, self.sequence_parallel = shape, group, sequence_parallel
        random = RandomState(seed, group.rank)
        generator = torch.Generator().manual_seed(seed)
        setting = Setting(group, sequence_parallel, regather, dropout, random, generator)
        table = shape.vocab_size, shape.hidden_size, group
        how = {"padded_vocab_size": padded_vocab_size, "generator": generator}
        self.embedding = VocabParallelEmbedding(*table, sequence_parallel=sequence_parallel, **how)
        self.positions = None
        if shape.learned_positions:
            rows = torch.randn(shape.learned_positions, shape.hidden_size, generator=generator)
            self.positions = nn.Parameter(rows * STANDARD_DEVIATION)
        self.dropout = setting.drop_stream()
        self.blocks = nn.ModuleList(Block(shape, setting) for _ in range(shape.layers))
        self.norm = norm(shape)
        self.head = None if shape.tied_embeddings else VocabParallelTable(*table, **how)
        self.regather = regather

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """The mean loss, or without targets the logits of each sequence's last token.

        Parameters
        ----------
        ids : Tensor
            (batch, tokens), int64, the same on all ranks; with ``sequence_parallel`` the tokens are a
            multiple of the ranks.
        targets : Tensor, optional
            The token to predict at each place, (batch, tokens); -100 counts for nothing.

        Returns
        -------
        Tensor
            The same on all ranks: one number, or (batch, vocabulary).

        Raises
        ------
        TypeError, ValueError
            If shapes, dtypes or ids do not fit, or shapes differ between ranks.
        """
        hidden = self._hidden(ids)
        if targets is None:
            return self._last_logits(hidden)
        logits = column_parallel_linear(
            hidden,
            self._head.weight,
            None,
            self.group,
            sequence_parallel=self.sequence_parallel,
            regather=self.regather,
        )
        return vocab_parallel_cross_entropy(logits, targets, self.group, vocab_size=self.shape.vocab_size)

    def sum_gradients(self) -> None:
        """Complete the gradients after the last backward of a step: :func:`sum_gradients`."""
        sum_gradients(self, self.group, sequence_parallel=self.sequence_parallel)

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream after the last norm: (batch, tokens, hidden), or tokens / t."""
        self._check(ids)
        x = self.embedding(ids)
        if self.positions is not None:
            first = self.group.rank * x.shape[TOKENS] if self.sequence_parallel else 0
            x = x + self.positions[first : first + x.shape[TOKENS]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _last_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of each sequence's last token, (batch, vocabulary), on every rank."""
        enter = gather_tokens if self.sequence_parallel else copy_to
        last = enter(hidden, self.group)[:, -1:]
        logits = gather_from(functional.linear(last, self._head.weight), self.group)
        return logits[:, 0, : self.shape.vocab_size]

    @property
    def _head(self) -> VocabParallelTable:
        return self.embedding if self.head is None else self.head

    def _check(self, ids: torch.Tensor) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids of shape {tuple(ids.shape)}: must be (batch, tokens)")
        tokens, most = ids.shape[1], self.shape.learned_positions
        if self.sequence_parallel and tokens % self.group.size:
            raise ValueError(
                f"{tokens} tokens: must be a multiple of the {self.group.size} ranks with sequence_parallel"
            )
        if most and tokens > most:
            raise ValueError(f"{tokens} tokens: must be at most learned_positions={most}")
