"""Training steps on processes, timed, and their traffic beside what the plan says."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from statistics import median

import torch

from gpuedu.all_reduce.plan import Collective

from ..plan import Phase, Sharding
from .decoder import Decoder
from .distributed import world
from .group import Traffic, tally

LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Measurement:
    """What some training steps took, on one rank.

    Parameters
    ----------
    losses : tuple of float
        Of every step; the model learns one batch by heart.
    step_s : float
        Time of a step, in s: the median.
    communication_s : float
        Of that in collectives, in s: the median. On a GPU, which works on meanwhile, this means nothing.
    waiting_s : float
        Of that waiting for other ranks before collectives, in s: the median. Counted apart only if they
        ``meet``; else it is part of ``communication_s``.
    traffic : dict
        ``(phase, collective)`` -> count and bytes of one step.
    """

    losses: tuple[float, ...]
    step_s: float
    communication_s: float
    waiting_s: float
    traffic: dict[tuple[Phase, Collective], Traffic]


def measure(
    sharding: Sharding,
    steps: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    check: bool = True,
    meet: bool = False,
) -> Measurement:
    """Train a model on the processes of the group as ``sharding`` says; all ranks call it.

    Parameters
    ----------
    sharding : Sharding
        A plan for training, of as many ranks as there are processes, without recomputation and dropout,
        its ``itemsize`` that of ``dtype``.
    steps : int
        How many, after one that is not counted.
    device : str
        ``"cpu"`` or ``"cuda"``.
    dtype : str
        Name of a torch dtype of floats, such as ``"float32"`` or ``"bfloat16"``.
    check, meet : bool
        As for :func:`world`: compare shapes between ranks, wait for each other before each collective.
        Both take time.

    Returns
    -------
    Measurement
        Of this rank.

    Raises
    ------
    ValueError
        If the plan is not one that this can carry out, or ``steps`` is below 1.
    PeerLost
        If another rank is gone.
    """
    group = world(check=check, meet=meet)
    check_plan(sharding, group.size, float_dtype(dtype))
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    model = Decoder(
        sharding.model, group, sequence_parallel=sharding.sequence_parallel, regather=sharding.regather
    ).to(device, float_dtype(dtype))
    ids, targets = _batch(sharding, device)
    losses, seconds, communication, waiting = [], [], [], []
    for _ in range(1 + steps):
        group.calls.clear()
        start = time.perf_counter()
        loss = model(ids, targets)
        loss.backward()
        model.sum_gradients()
        _descend(model)
        losses.append(loss.item())  # which waits for the GPU
        seconds.append(time.perf_counter() - start)
        communication.append(sum(call.seconds for call in group.calls))
        waiting.append(sum(call.waited_s for call in group.calls))
    times = (median(each[1:]) for each in (seconds, communication, waiting))
    return Measurement(tuple(losses), *times, tally(group.calls))


def table(measurement: Measurement, sharding: Sharding) -> str:
    """The traffic of a step, counted and planned, and the times.

    Parameters
    ----------
    measurement : Measurement
        From :func:`measure`.
    sharding : Sharding
        What was measured.

    Returns
    -------
    str
        Lines to print.
    """
    model, t = sharding.model, sharding.tensor_parallel
    kind = "tensor and sequence parallel" if sharding.sequence_parallel else "tensor parallel"
    lines = [
        f"{kind}: t = {t}, {model.layers} layers of width {model.hidden_size}, "
        f"{sharding.batch} x {sharding.sequence} tokens",
        f"{'phase':10}{'collective':16}{'runs':>6}{'planned':>9}{'MB':>12}{'planned':>12}",
    ]
    planned = planned_traffic(sharding)
    for key in {**planned, **measurement.traffic}:
        phase, collective = key
        ours, theirs = (found.get(key, Traffic(0, 0)) for found in (measurement.traffic, planned))
        lines.append(
            f"{phase.value:10}{collective.value:16}{ours.count:6}{theirs.count:9}"
            f"{ours.nbytes / 1e6:12.3f}{theirs.nbytes / 1e6:12.3f}"
        )
    share = measurement.communication_s / measurement.step_s
    lines.append(f"step {1e3 * measurement.step_s:.1f} ms, in collectives {share:.0%} of it")
    lines.append(f"loss {measurement.losses[0]:.4f} -> {measurement.losses[-1]:.4f}")
    return "\n".join(lines)


def planned_traffic(sharding: Sharding) -> dict[tuple[Phase, Collective], Traffic]:
    """What a step of one microbatch will send, as the plan has it.

    Parameters
    ----------
    sharding : Sharding
        Any.

    Returns
    -------
    dict
        ``(phase, collective)`` -> count and bytes, as :func:`tally` counts what has run.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> traffic = planned_traffic(shard(MODELS["llama-3-8b"], 8))  # 32 layers, embedding and loss
    >>> traffic[Phase.FORWARD, Collective.ALL_REDUCE].count
    68
    """
    counts, nbytes = Counter(), Counter()
    for c in sharding.communications:
        counts[c.phase, c.collective] += c.count
        nbytes[c.phase, c.collective] += c.count * c.nbytes
    return {key: Traffic(counts[key], int(nbytes[key])) for key in counts}


def check_plan(sharding: Sharding, ranks: int, dtype: torch.dtype) -> None:
    """Raise unless ``sharding`` is one that :func:`measure` carries out."""
    if sharding.tensor_parallel != ranks:
        raise ValueError(f"tensor_parallel={sharding.tensor_parallel}: must be the {ranks} processes")
    if not sharding.training:
        raise ValueError("training=False: must be True")
    if sharding.recompute != "none" or sharding.dropout:
        raise ValueError(
            f"recompute={sharding.recompute!r}, dropout={sharding.dropout}: must be 'none' and False"
        )
    if (itemsize := sharding.weights[0].itemsize) != dtype.itemsize:
        raise ValueError(f"itemsize={itemsize}: must be {dtype.itemsize}, that of a {dtype}")


def float_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={name!r}: must be a torch dtype of floats, such as 'float32'")
    return dtype


@torch.no_grad()
def _descend(model: Decoder) -> None:
    """A step of gradient descent. (torch's optimizers import a compiler first, which takes seconds.)"""
    for parameter in model.parameters():
        parameter -= LEARNING_RATE * parameter.grad
        parameter.grad = None


def _batch(sharding: Sharding, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets: the next id of each."""
    generator = torch.Generator().manual_seed(0)
    shape = sharding.batch, sharding.sequence + 1
    ids = torch.randint(sharding.model.vocab_size, shape, generator=generator).to(device)
    return ids[:, :-1], ids[:, 1:]
