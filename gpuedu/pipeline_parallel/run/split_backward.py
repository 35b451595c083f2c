"""The backward pass of one microbatch in two halves: the input's gradient, then the weights'.

The graph that autograd recorded is cut along the path of the input. Every node through which the
input flowed lies on that path; a node on it that also hands a gradient to weights is a *fork*:

    output <-- matmul 2 <-- GELU <-- matmul 1 <-- input        the path, which I walks
                  |                     |
               weight 2              weight 1                  the forks' other sides, which W walks

I runs the path alone and remembers the gradient that arrived at each fork. W starts at every fork
from that gradient and computes the weights' side alone: autograd asks a node only for the gradients
that somebody needs, so a matmul's two backward matmuls are run one in each half, none twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

INDEPENDENT = "the output of a part does not depend on its input: it has no gradient to send on"


@dataclass(frozen=True)
class WeightWork:
    """What I leaves for W: per fork its node, the gradient that arrived there and its weights."""

    root: GradientEdge  # keeps the graph alive
    forks: tuple[tuple[Node, tuple[torch.Tensor | None, ...], tuple[torch.Tensor, ...]], ...]


def backward_input(
    root: GradientEdge, gradient: torch.Tensor, leaf: torch.Tensor | None
) -> tuple[torch.Tensor | None, WeightWork]:
    """The gradient of ``leaf``, and what is left to do for the weights.

    Parameters
    ----------
    root : torch.autograd.graph.GradientEdge
        Where the output left the graph, from ``torch.autograd.graph.get_gradient_edge``.
    gradient : Tensor
        Gradient of the loss with respect to the output, of the output's shape.
    leaf : Tensor, optional
        The input, a leaf that requires a gradient. None if nobody wants the input's gradient, as for
        token ids: then there is no path, and the whole backward is left to :func:`backward_weight`.

    Returns
    -------
    tuple
        The input's gradient, of its shape, or None; and the :class:`WeightWork` for
        :func:`backward_weight`.

    Raises
    ------
    ValueError
        If the output does not depend on ``leaf``.

    Notes
    -----
    A weight used at several forks gets its gradient here, with the input's: a fork's own share of it
    cannot be told from what flows through the forks after it. It is right, and early. A custom
    ``autograd.Function`` that always computes all its gradients does so in both halves.

    From here to the end of :func:`backward_weight` the gradient at each fork is held, besides the
    activations.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 1 (their B is I here).

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> linear = torch.nn.Linear(2, 1)
    >>> y = linear(x)
    >>> gradient, work = backward_input(get_gradient_edge(y), torch.ones(1, 1), x)
    >>> torch.equal(gradient, linear.weight), linear.weight.grad
    (True, None)
    >>> backward_weight(work)
    >>> linear.weight.grad
    tensor([[1., 2.]])
    """
    if leaf is None:
        arrived = (None,) * root.output_nr + (gradient,)
        return None, WeightWork(root, ((root.node, arrived, _weights_below(root.node)),))
    forks, shared = _forks(root.node, get_gradient_edge(leaf).node)
    arrived: dict[Node, tuple[torch.Tensor | None, ...]] = {}

    def remember(node: Node):
        return lambda gradients: arrived.__setitem__(node, gradients)

    hooks = [node.register_prehook(remember(node)) for node in forks]
    try:
        torch.autograd.backward(root, gradient, inputs=[leaf, *shared], retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    input_gradient, leaf.grad = leaf.grad, None
    return input_gradient, WeightWork(root, tuple((node, arrived[node], forks[node]) for node in forks))


def backward_weight(work: WeightWork) -> None:
    """Add to each weight's ``grad`` what :func:`backward_input` left undone.

    Parameters
    ----------
    work : WeightWork
        From :func:`backward_input`; it can be used once.
    """
    for node, gradients, weights in work.forks:
        present = [(GradientEdge(node, i), g) for i, g in enumerate(gradients) if g is not None]
        if present:
            edges, arrived = zip(*present, strict=True)
            torch.autograd.backward(edges, arrived, inputs=weights)


def _forks(root: Node, leaf: Node) -> tuple[dict[Node, tuple[torch.Tensor, ...]], list[torch.Tensor]]:
    """Each fork on the path from ``root`` to ``leaf`` with the weights it alone uses; and the shared ones."""
    on_path: dict[Node, bool] = {}
    beside: dict[Node, set[torch.Tensor]] = {}  # the weights below a node, save those below its path
    for node in _children_first(root):
        children = _children(node)
        on_path[node] = node is leaf or any(on_path[child] for child in children)
        beside[node] = set().union(*(beside[child] for child in children if not on_path[child]))
        if not on_path[node]:
            beside[node] |= _own_weight(node)
    if not on_path.get(leaf):
        raise ValueError(INDEPENDENT)
    forks = {node: weights for node, weights in beside.items() if on_path[node] and weights}
    uses = Counter(weight for weights in forks.values() for weight in weights)
    own = {node: tuple(w for w in weights if uses[w] == 1) for node, weights in forks.items()}
    return {n: w for n, w in own.items() if w}, [weight for weight, count in uses.items() if count > 1]


def _weights_below(root: Node) -> tuple[torch.Tensor, ...]:
    return tuple(weight for node in _children_first(root) for weight in _own_weight(node))


def _own_weight(node: Node) -> set[torch.Tensor]:
    """The leaf tensor whose gradient ``node`` accumulates, if it is such a node."""
    return {node.variable} if hasattr(node, "variable") else set()


def _children(node: Node) -> list[Node]:
    """The nodes that ``node`` hands gradients to."""
    return [child for child, _ in node.next_functions if child is not None]


def _children_first(root: Node) -> list[Node]:
    """All nodes of the graph below ``root``, each after those it hands gradients to."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))
    return order
