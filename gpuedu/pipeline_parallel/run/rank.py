"""One rank of a pipeline: it carries out its actions on real tensors, one after the other."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from ..plan import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, Action, Schedule
from .part import Part
from .result import Record


class Message(NamedTuple):
    """A tensor on its way to an action: what it is, the part that waits for it, the microbatch."""

    kind: str  # "activation", from the part before, or "gradient", from the part after
    part: int
    microbatch: int


class Mail(Protocol):
    """What carries tensors from action to action."""

    def put(self, message: Message, tensor: torch.Tensor) -> None:
        """Send ``tensor`` off, without waiting for it to arrive."""

    def take(self, message: Message) -> torch.Tensor:
        """The tensor of ``message``, once it has arrived."""


def consumed(schedule: Schedule, action: Action) -> Message | None:
    """The message that ``action`` waits for, None if it needs nothing from another part."""
    part = schedule.part(action.stage, action.chunk)
    if action.kind is FORWARD:
        return Message("activation", part, action.microbatch) if part > 0 else None
    if action.kind is BACKWARD_WEIGHT or part == schedule.depth - 1:
        return None
    return Message("gradient", part, action.microbatch)


def produced(schedule: Schedule, action: Action) -> Message | None:
    """The message that ``action`` ends in, None if no other part needs its result."""
    part = schedule.part(action.stage, action.chunk)
    if action.kind is FORWARD:
        return Message("activation", part + 1, action.microbatch) if part < schedule.depth - 1 else None
    if action.kind is BACKWARD_WEIGHT or part == 0:
        return None
    return Message("gradient", part - 1, action.microbatch)


class Rank:
    """One rank of a training step: its parts of the model, its share of the data, and its clock.

    Parameters
    ----------
    schedule : Schedule
        A valid schedule.
    rank : int
        Which of its ranks this is.
    modules : sequence of callables
        The rank's parts of the model, one a chunk.
    inputs, targets : Tensor or None
        The whole batch: the inputs where part 0 is, the targets where the last part is.
    loss_fn : callable
        ``loss_fn(output, target)``: the mean loss over the samples of a microbatch.
    mail : Mail
        Where messages come from and go to.
    device : torch.device
        Where the rank computes.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        modules: Sequence[Callable],
        inputs: torch.Tensor | None,
        targets: torch.Tensor | None,
        loss_fn: Callable,
        mail: Mail,
        device: torch.device,
    ):
        m, last = schedule.microbatches, schedule.depth - 1
        numbers = [schedule.part(rank, chunk) for chunk in range(schedule.chunks)]
        self.schedule, self.mail, self.device = schedule, mail, device
        self.inputs = microbatches("inputs", inputs, m) if 0 in numbers else None
        self.input_gradients = _input_gradients(inputs, m) if 0 in numbers and inputs.requires_grad else None
        self.targets = microbatches("targets", targets, m) if last in numbers else None
        self.parts = [
            Part(
                module,
                input_gradient=number > 0 or inputs.requires_grad,
                loss=(lambda output, target: loss_fn(output, target) / m) if number == last else None,
            )
            for number, module in zip(numbers, modules, strict=True)
        ]
        self.loss: torch.Tensor | None = None
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.peak_held = 0

    def record(self, start: float) -> Record:
        """What was measured of the step that began at ``start``, in s of :func:`time.perf_counter`."""
        loss = None if self.loss is None else self.loss.item()
        return Record(platform.node(), start, tuple(self.starts), tuple(self.ends), loss, self.peak_held)

    def run(self, action: Action) -> None:
        """Wait for what ``action`` needs, carry it out, send on what it computed."""
        message = consumed(self.schedule, action)
        arrived = None if message is None else self.mail.take(message)
        self.starts.append(self._now())
        result, message = self._compute(action, arrived), produced(self.schedule, action)
        if message is not None:
            result = result.contiguous()  # as it will be sent
        self.ends.append(self._now())
        if message is not None:
            self.mail.put(message, result)

    def _compute(self, action: Action, arrived: torch.Tensor | None) -> torch.Tensor | None:
        part, j = self.parts[action.chunk], action.microbatch
        if action.kind is FORWARD:
            return self._forward(part, j, self.inputs[j] if arrived is None else arrived)
        if action.kind is BACKWARD_WEIGHT:
            return part.backward_weight(j)
        backward = part.backward_input if action.kind is BACKWARD_INPUT else part.full_backward
        gradient = backward(j, torch.ones_like(self.loss) if arrived is None else arrived)
        if gradient is not None and produced(self.schedule, action) is None:
            self.input_gradients[j].add_(gradient)
        return gradient

    def _forward(self, part: Part, j: int, x: torch.Tensor) -> torch.Tensor:
        result = part.forward(j, x, None if part.loss is None else self.targets[j])
        if part.loss is not None:
            self.loss = result if self.loss is None else self.loss + result
        self.peak_held = max(self.peak_held, sum(len(part.held) for part in self.parts))
        return result

    def _now(self) -> float:
        """The time when all work given to the device so far is done, in s."""
        if self.device.type == "cuda":
            # Only this stream: messages are under way on others, and may be for long.
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


def microbatches(name: str, batch: torch.Tensor | None, count: int) -> tuple[torch.Tensor, ...]:
    """``batch`` cut along its first dimension into ``count`` equal microbatches."""
    if not isinstance(batch, torch.Tensor):
        raise TypeError(f"{name}={batch!r}: must be a tensor, on the rank that needs it")
    if batch.dim() == 0 or batch.shape[0] == 0 or batch.shape[0] % count:
        raise ValueError(
            f"{name} of shape {tuple(batch.shape)}: the first dimension must be a multiple of the "
            f"{count} microbatches"
        )
    return batch.split(batch.shape[0] // count)


def _input_gradients(inputs: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Where each microbatch of ``inputs`` is to add its gradient."""
    if not inputs.is_leaf:
        raise ValueError("inputs: must be a leaf of autograd's graph if they require a gradient")
    if inputs.grad is None:
        inputs.grad = torch.zeros_like(inputs)
    return microbatches("inputs.grad", inputs.grad, count)
