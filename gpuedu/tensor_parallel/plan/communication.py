"""Which collective runs where: the conjugate pairs f and g, and what embedding and loss need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from math import prod

from gpuedu.all_reduce.plan import Collective

from .tensor import Tensor

ALL_REDUCE = Collective.ALL_REDUCE
REDUCE_SCATTER = Collective.REDUCE_SCATTER
ALL_GATHER = Collective.ALL_GATHER

SITES = (
    "embedding",
    "attention_in",
    "attention_out",
    "ffn_in",
    "ffn_out",
    "head",
    "loss",
    "gradients",
)
"""Where things happen, in forward order: at the input of a column-parallel product (``attention_in``:
queries, keys and values; ``ffn_in``; ``head``), at the output of a row-parallel one (``attention_out``,
``ffn_out``; the embedding, cut by rows of its table), in the loss, and once a step on the gradients."""

LAYER_SITES = SITES[1:5]
COLUMN_SITES = ("attention_in", "ffn_in", "head")


class Phase(Enum):
    """When a collective runs; ``STEP`` is once at the end of a step, whatever the number of microbatches."""

    FORWARD = "forward"
    RECOMPUTE = "recompute"  # the forward a second time, in the backward
    BACKWARD = "backward"
    STEP = "step"


FORWARD, RECOMPUTE, BACKWARD, STEP = Phase
Call = tuple[str, Collective, str]  # site, collective, what it carries
AGAIN = "input, gathered again"
LOSS_BYTES = 4  # the loss is computed in FP32


@dataclass(frozen=True, slots=True)
class Communication:
    """One collective, as often as the model has its site.

    Parameters
    ----------
    site : str
        Where: a member of ``SITES``.
    phase : Phase
        When.
    collective : Collective
        Which.
    what : str
        What it carries, in words.
    shape : tuple of int
        Of the **whole** array, as nccl-tests counts: what an all-gather ends with and a
        reduce-scatter begins with.
    itemsize : float
        Bytes of one element.
    ranks : int
        How many ranks take part together: t, or fewer where only the copies of a KV head meet.
    count : int
        How often it runs for one microbatch (with ``Phase.STEP``: in one step): once a layer, or once.
    again : bool
        The all-gather with which the backward fetches an input once more, for the gradient of the weight.
    """

    site: str
    phase: Phase
    collective: Collective
    what: str
    shape: tuple[int, ...]
    itemsize: float
    ranks: int
    count: int
    again: bool = False

    @property
    def nbytes(self) -> float:
        """Bytes of the whole array of one run."""
        return prod(self.shape) * self.itemsize

    @property
    def overlaps(self) -> bool:
        """Whether it can run beside a product of its own layer, as in Megatron-LM.

        In the backward of a column-parallel product there are two products: the input is gathered again
        while the gradient of the input is computed, and that is summed while the gradient of the weight is.
        Every other collective brings what the very next product needs.
        """
        return self.phase is BACKWARD and self.site in COLUMN_SITES

    @property
    def bytes_sent(self) -> float:
        """Bytes that one rank sends in one run, with a ring (no algorithm sends fewer).

        Of the whole array a ring all-reduce sends 2 (n - 1) / n, a reduce-scatter or an all-gather half of
        that. The explicit plans of :mod:`gpuedu.all_reduce.plan` count the same.
        """
        passes = 2 if self.collective is ALL_REDUCE else 1
        return passes * (self.ranks - 1) * self.nbytes / self.ranks


def training_calls(
    weights: Iterable[Tensor],
    hidden: tuple[int, int, int],
    itemsize: float,
    *,
    layers: int,
    ranks: int,
    sequence_parallel: bool,
    regather: bool,
    recompute: bool,
) -> Iterator[Communication]:
    """The collectives of a training step in order; ``hidden`` is (batch, sequence, hidden_size)."""
    sp = sequence_parallel

    def run(phase: Phase, calls: Iterable[Call], count: int = 1) -> Iterator[Communication]:
        for site, collective, what in calls:
            again = what == AGAIN
            yield Communication(site, phase, collective, what, hidden, itemsize, ranks, count, again)

    yield from run(FORWARD, _row_forward("embedding", sp))
    yield from run(FORWARD, layer_forward(sp), layers)
    yield from run(FORWARD, _column_forward("head", sp))
    for what in ("largest logit", "logit of the target", "sum of exponentials"):
        yield Communication("loss", FORWARD, ALL_REDUCE, what, hidden[:2], LOSS_BYTES, ranks, 1)
    yield from run(BACKWARD, _column_backward("head", sp, regather))
    if recompute:
        yield from run(RECOMPUTE, layer_forward(sp), layers)
    yield from run(BACKWARD, layer_backward(sp, regather), layers)
    yield from run(BACKWARD, _row_backward("embedding", sp))
    yield from _gradients(weights, sp)


def inference_calls(
    hidden: tuple[int, int, int],
    vocab_size: int,
    itemsize: float,
    *,
    layers: int,
    ranks: int,
    sequence_parallel: bool,
) -> Iterator[Communication]:
    """The collectives of one forward pass that ends in the logits of each sequence's last token."""
    sp = sequence_parallel
    ends = ((_row_forward("embedding", sp), 1), (layer_forward(sp), layers), (_column_forward("head", sp), 1))
    for calls, count in ends:
        for site, collective, what in calls:
            yield Communication(site, FORWARD, collective, what, hidden, itemsize, ranks, count)
    logits = (hidden[0], 1, vocab_size)
    yield Communication("head", FORWARD, ALL_GATHER, "logits of the last token", logits, itemsize, ranks, 1)


# A column-parallel product begins with Megatron-LM's f, a row-parallel one ends with its g. Each is the
# other's conjugate: f copies, and all-reduces the gradient; g all-reduces, and copies the gradient. With
# sequence parallelism f gathers, and reduce-scatters the gradient; g reduce-scatters, and gathers it.


def _column_forward(site: str, sp: bool) -> Iterator[Call]:
    if sp:
        yield site, ALL_GATHER, "input"


def _column_backward(site: str, sp: bool, regather: bool) -> Iterator[Call]:
    if sp and regather:
        yield site, ALL_GATHER, AGAIN
    yield site, REDUCE_SCATTER if sp else ALL_REDUCE, "gradient of the input"


def _row_forward(site: str, sp: bool) -> Iterator[Call]:
    yield site, REDUCE_SCATTER if sp else ALL_REDUCE, "output"


def _row_backward(site: str, sp: bool) -> Iterator[Call]:
    if sp:
        yield site, ALL_GATHER, "gradient of the output"


def layer_forward(sp: bool) -> Iterator[Call]:
    """(site, collective, what) of one layer's forward, in order."""
    for half in ("attention", "ffn"):
        yield from _column_forward(f"{half}_in", sp)
        yield from _row_forward(f"{half}_out", sp)


def layer_backward(sp: bool, regather: bool) -> Iterator[Call]:
    """(site, collective, what) of one layer's backward, in order."""
    for half in ("ffn", "attention"):
        yield from _row_backward(f"{half}_out", sp)
        yield from _column_backward(f"{half}_in", sp, regather)


def unequal_gradients(weights: Iterable[Tensor], sp: bool) -> dict[str, list[Tensor]]:
    """The parameters of which several ranks hold the same and see different parts of the gradient.

    Copies of a KV head see different queries; with sequence parallelism whole parameters see different
    tokens (without it they see all, and their gradients are equal).
    """
    held = [w for w in weights if w.copies > 1]
    return {
        "gradients of whole parameters": [w for w in held if w.axis is None and sp],
        "gradients of copied KV heads": [w for w in held if w.axis is not None],
    }


def _gradients(weights: Iterable[Tensor], sp: bool) -> Iterator[Communication]:
    for what, shared in unequal_gradients(weights, sp).items():
        if shared:
            elements = sum(w.count * w.local_elements for w in shared)
            copies, itemsize = shared[0].copies, shared[0].itemsize
            yield Communication("gradients", STEP, ALL_REDUCE, what, (elements,), itemsize, copies, 1)
