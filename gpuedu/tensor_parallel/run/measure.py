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
        Of that in collectives, waiting for other ranks included, in s: the median. On a GPU, which works
        on meanwhile, this means nothing.
    traffic : dict
        ``(phase, collective)`` -> count and bytes of one step.
    """

    losses: tuple[float, ...]
    step_s: float
    communication_s: float
    traffic: dict[tuple[Phase, Collective], Traffic]


def measure(sharding: Sharding, steps: int = 3, device: str = "cpu", dtype: str = "float32") -> Measurement:
    """Train a model on the processes of the group as ``sharding`` says; all ranks call it.

    Parameters
    ----------
    sharding : Sharding
        A plan for training, of as many ranks as there are processes, without recomputation and dropout.
    steps : int
        How many, after one that is not counted.
    device : str
        ``"cpu"`` or ``"cuda"``.
    dtype : str
        Name of a torch dtype of floats, such as ``"float32"`` or ``"bfloat16"``.

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
    group = world()
    check_plan(sharding, group.size)
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    model = Decoder(
        sharding.model, group, sequence_parallel=sharding.sequence_parallel, regather=sharding.regather
    ).to(device, float_dtype(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids, targets = _batch(sharding, device)
    losses, seconds, communication = [], [], []
    for _ in range(1 + steps):
        group.calls.clear()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(ids, targets)
        loss.backward()
        model.sum_gradients()
        optimizer.step()
        losses.append(loss.item())  # which waits for the GPU
        seconds.append(time.perf_counter() - start)
        communication.append(sum(call.seconds for call in group.calls))
    return Measurement(tuple(losses), median(seconds[1:]), median(communication[1:]), tally(group.calls))


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
    """Count and bytes of one step by phase and collective, as the plan has them."""
    counts, nbytes = Counter(), Counter()
    for c in sharding.communications:
        counts[c.phase, c.collective] += c.count
        nbytes[c.phase, c.collective] += c.count * c.nbytes
    return {key: Traffic(counts[key], int(nbytes[key])) for key in counts}


def check_plan(sharding: Sharding, ranks: int) -> None:
    """Raise unless ``sharding`` is one that :func:`measure` carries out."""
    if sharding.tensor_parallel != ranks:
        raise ValueError(f"tensor_parallel={sharding.tensor_parallel}: must be the {ranks} processes")
    if not sharding.training:
        raise ValueError("training=False: must be True")
    if sharding.recompute != "none" or sharding.dropout:
        raise ValueError(
            f"recompute={sharding.recompute!r}, dropout={sharding.dropout}: must be 'none' and False"
        )


def float_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={name!r}: must be a torch dtype of floats, such as 'float32'")
    return dtype


def _batch(sharding: Sharding, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets: the next id of each."""
    generator = torch.Generator().manual_seed(0)
    shape = sharding.batch, sharding.sequence + 1
    ids = torch.randint(sharding.model.vocab_size, shape, generator=generator).to(device)
    return ids[:, :-1], ids[:, 1:]
