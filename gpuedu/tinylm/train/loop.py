"""The training loop: batches of text, one loss, two optimizers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from gpuedu.llama import Llama

from .muon import Muon
from .recipe import Recipe

LARGEST_GRADIENT = 1.0  # norm beyond which gradients are scaled down
COMPILERS = ("c++", "g++", "clang++", "cl")


def batches(tokens: torch.Tensor, length: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """The text in pieces, without end.

    Parameters
    ----------
    tokens : Tensor
        (n,).
    length : int
        Of a piece.
    batch : int
        Pieces at a time.
    seed : int
        Of their order.

    Yields
    ------
    Tensor
        (batch, length + 1): each piece with the token after it. Every pass over the text cuts it at other
        places and shuffles the pieces anew; what does not fill a batch is left out of that pass.

    Raises
    ------
    ValueError
        If the text is too short for a batch.

    Examples
    --------
    >>> next(batches(torch.arange(100), length=4, batch=2, seed=0)).diff().unique().tolist()
    [1]
    """
    if len(tokens) - length < batch * length + 1:
        raise ValueError(f"tokens: {len(tokens)} are too few for {batch} pieces of {length} and a shift")
    generator = torch.Generator().manual_seed(seed)
    while True:
        shift = int(torch.randint(length, (1,), generator=generator))
        pieces = (len(tokens) - 1 - shift) // length
        order = torch.randperm(pieces, generator=generator)
        for some in order[: pieces - pieces % batch].split(batch):
            yield tokens[(shift + some * length)[:, None] + torch.arange(length + 1)]


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """What the peak learning rates are multiplied with: a line up, then a line down to 0.

    Examples
    --------
    >>> [rate_factor(step, 10, warmup=0.2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = warmup * steps
    return min(1.0, (step + 1) / max(rising, 1), (steps - step) / (steps - rising))


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms, at their peak rates."""
    matrices = [weights for weights in model.layers.parameters() if weights.ndim == 2]
    ours = {id(weights) for weights in matrices}
    others = [weights for weights in model.parameters() if id(weights) not in ours]
    return [
        Muon(matrices, lr=recipe.matrix_rate),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def loss_of(
    model: Llama, pieces: torch.Tensor, teacher: Llama | None = None, teacher_weight: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of each token after the first, in nats.

    Parameters
    ----------
    model : Llama
        Being trained.
    pieces : Tensor
        (batch, length + 1).
    teacher : Llama, optional
        A model of the same vocabulary.
    teacher_weight : float
        The target distribution is so much the teacher's, the rest the token of the text.

    Returns
    -------
    Tensor
        One number.

    References
    ----------
    Hinton, Vinyals and Dean. Distilling the knowledge in a neural network. arXiv:1503.02531, 2015.
    """
    inputs, targets = pieces[:, :-1], pieces[:, 1:].flatten()
    logits = model(inputs).flatten(0, 1)
    loss = functional.cross_entropy(logits, targets)
    if teacher is None:
        return loss
    with torch.no_grad():
        probabilities = teacher(inputs).flatten(0, 1).softmax(-1)
    return (1 - teacher_weight) * loss + teacher_weight * functional.cross_entropy(logits, probabilities)


def train(
    model: Llama,
    tokens: torch.Tensor,
    recipe: Recipe,
    teacher: Llama | None = None,
    *,
    compiled: bool = True,
    bf16: bool = False,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train a model in place.

    Parameters
    ----------
    model : Llama
        Its weights are changed.
    tokens : Tensor
        (n,), the text.
    recipe : Recipe
        How.
    teacher : Llama, optional
        Asked for its distribution if the recipe gives it weight.
    compiled : bool
        Fuse the operations with torch.compile: more than twice as fast, and needs a C++ compiler; without
        one, operations run one by one.
    bf16 : bool
        Multiply matrices in bfloat16: faster on processors that do so, slower on others. Weights stay in
        float32.
    report : callable
        Called with the number of steps done and the loss of the last.

    Returns
    -------
    list of float
        The loss of each step, nats a token.
    """
    fuse = compiled and any(map(shutil.which, COMPILERS))
    loss_function = torch.compile(loss_of) if fuse else loss_of
    pieces = batches(tokens, recipe.config.context_length, recipe.batch, recipe.seed)
    rules = optimizers(model, recipe)
    peaks = [rule.param_groups[0]["lr"] for rule in rules]
    losses = []
    for step in range(recipe.steps):
        factor = rate_factor(step, recipe.steps, recipe.warmup)
        for rule, peak in zip(rules, peaks, strict=True):
            rule.param_groups[0]["lr"] = peak * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_function(model, next(pieces), teacher, recipe.teacher_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        for rule in rules:
            rule.step()
            rule.zero_grad()
        losses.append(loss.item())
        report(step + 1, losses[-1])
    return losses
