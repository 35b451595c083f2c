"""One part of the model at work: its passes, and the microbatches it holds between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .split_backward import INDEPENDENT, WeightWork, backward_input, backward_weight


class Part:
    """One part of the model, and what it holds of each microbatch from forward to weight gradient.

    Parameters
    ----------
    module : callable
        One tensor in, one tensor out; an ``nn.Module`` or any function of tensors.
    input_gradient : bool
        Whether somebody wants the gradient of the input: the part before, in all parts but the first.
    loss : callable, optional
        For the last part: ``loss(output, target)``, one number, which the backward starts from.

    Attributes
    ----------
    held : dict
        Microbatch -> what its backward still needs: autograd's graph with the activations saved in
        it. What is not in here is freed.
    """

    def __init__(self, module: Callable, *, input_gradient: bool, loss: Callable | None = None):
        self.module = module
        self.input_gradient = input_gradient
        self.loss = loss
        self.held: dict[int, tuple[GradientEdge | None, torch.Tensor | None] | WeightWork] = {}

    def forward(self, microbatch: int, x: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        """The part's output (in the last part the loss), cut off from the graph that is held."""
        leaf = x.detach().requires_grad_() if self.input_gradient else None
        with torch.enable_grad():
            output = self.module(x if leaf is None else leaf)
            if self.loss is not None:
                output = self.loss(output, target)
        check_output(output, number=self.loss is not None)
        if leaf is not None and not output.requires_grad:
            raise ValueError(INDEPENDENT)
        # The edge alone is held, not the output: its memory is the next part's business.
        root = get_gradient_edge(output) if output.requires_grad else None
        self.held[microbatch] = (root, leaf)
        return output.detach()

    def full_backward(self, microbatch: int, gradient: torch.Tensor) -> torch.Tensor | None:
        """Add to the weights' gradients; return the input's, of the input's shape."""
        root, leaf = self.held.pop(microbatch)
        if root is not None:
            torch.autograd.backward(root, gradient)
        if leaf is not None and leaf.grad is None:
            raise ValueError(INDEPENDENT)
        return None if leaf is None else leaf.grad

    def backward_input(self, microbatch: int, gradient: torch.Tensor) -> torch.Tensor | None:
        """The input's gradient alone; None where nobody wants it, and then W is the whole backward."""
        root, leaf = self.held[microbatch]
        if root is None:
            return None
        input_gradient, self.held[microbatch] = backward_input(root, gradient, leaf)
        return input_gradient

    def backward_weight(self, microbatch: int) -> None:
        """Add to the weights' gradients, and let go of the microbatch."""
        work = self.held.pop(microbatch)
        if isinstance(work, WeightWork):
            backward_weight(work)


def check_output(output: object, *, number: bool = False) -> None:
    """Raise unless ``output`` is one tensor of floats, and if ``number`` of no dimension."""
    if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
        what = f"a tensor of {output.dtype}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise TypeError(f"{'loss_fn' if number else 'a part'} returned {what}: must be a tensor of floats")
    if number and output.dim() > 0:
        raise ValueError(f"loss_fn returned shape {tuple(output.shape)}: must be one number, a mean")
