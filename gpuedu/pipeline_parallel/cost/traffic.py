"""What pipeline parallelism sends, beside what tensor parallelism would."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

from gpuedu.checks import check_count

from ..plan import Schedule


def boundary_bytes(sequence_length: int, microbatch_size: int, hidden_size: int, dtype_bytes: int = 2) -> int:
    """Bytes that cross one boundary between two stages for one microbatch, both ways together.

    Parameters
    ----------
    sequence_length : int
        Tokens s of one sequence.
    microbatch_size : int
        Sequences b of one microbatch.
    hidden_size : int
        Width h of the model.
    dtype_bytes : int
        Bytes of one element; 2 for 16-bit activations and gradients.

    Returns
    -------
    int
        Bytes: 2 s b h ``dtype_bytes``, one activation forward and its gradient back, however many
        layers a stage has.

    Raises
    ------
    ValueError
        If an argument is below 1.

    Notes
    -----
    A rank between two others sends as much: one activation to the next, one gradient to the one
    before. Where a stage is itself split by tensor parallelism, each of its t GPUs holds the same
    activation; here each sends it whole. Megatron-LM can send 1/t of it and gather on the other side.

    Examples
    --------
    GPT-3's shape, one sequence of 2,048 tokens:

    >>> boundary_bytes(2048, 1, 12288) / 1e6
    100.663296
    """
    sizes = {
        "sequence_length": sequence_length,
        "microbatch_size": microbatch_size,
        "hidden_size": hidden_size,
        "dtype_bytes": dtype_bytes,
    }
    for name, value in sizes.items():
        check_count(name, value)
    return 2 * sequence_length * microbatch_size * hidden_size * dtype_bytes


def tensor_parallel_bytes(
    layers: int,
    tensor_parallel: int,
    sequence_length: int,
    microbatch_size: int,
    hidden_size: int,
    dtype_bytes: int = 2,
) -> Fraction:
    """Bytes that each GPU of a tensor-parallel group sends for one microbatch, forward and backward.

    Parameters
    ----------
    layers : int
        Transformer layers that the group computes.
    tensor_parallel : int
        GPUs t in the group.
    sequence_length, microbatch_size, hidden_size, dtype_bytes : int
        As for :func:`boundary_bytes`.

    Returns
    -------
    Fraction
        Bytes: 4 ``layers`` * 2 (t - 1) / t * s b h ``dtype_bytes``. A layer has four all-reduces of
        one activation, two forward and two backward, and in a ring all-reduce each GPU sends
        2 (t - 1) / t of the array.

    Raises
    ------
    ValueError
        If an argument is below 1.

    Notes
    -----
    Sequence parallelism replaces each all-reduce by a reduce-scatter and an all-gather of the same
    total. Recomputation would add two all-reduces a layer.

    References
    ----------
    Shoeybi et al. 2019, "Megatron-LM", section 3; Narayanan et al. 2021, section 3.2.

    Examples
    --------
    12 layers over 8 GPUs against the boundary of a pipeline stage that has the same 12 layers:

    >>> tensor_parallel_bytes(12, 8, 2048, 1, 12288) / boundary_bytes(2048, 1, 12288)
    Fraction(42, 1)
    """
    check_count("layers", layers)
    check_count("tensor_parallel", tensor_parallel)
    one_activation = Fraction(boundary_bytes(sequence_length, microbatch_size, hidden_size, dtype_bytes), 2)
    return 4 * layers * Fraction(2 * (tensor_parallel - 1), tensor_parallel) * one_activation


def sends(schedule: Schedule) -> tuple[int, ...]:
    """How many activations and gradients each rank sends to other ranks in one step.

    Parameters
    ----------
    schedule : Schedule
        Any valid schedule.

    Returns
    -------
    tuple
        Per rank, messages of one microbatch's boundary activation each; half of
        :func:`boundary_bytes` is one message's size. Between two chunks of one rank nothing is sent.

    Examples
    --------
    Chunks buy a smaller bubble with traffic; a V has one message each way less at its turn:

    >>> from gpuedu.pipeline_parallel.plan import interleaved_1f1b, one_f_one_b, zb_v
    >>> sends(one_f_one_b(4, 8)), sends(interleaved_1f1b(4, 8, 2)), sends(zb_v(4, 8))
    ((8, 16, 16, 8), (24, 32, 32, 24), (16, 32, 32, 16))
    """
    homes = [schedule.home(part)[0] for part in range(schedule.depth)]
    sent = Counter()
    for rank, next_rank in pairwise(homes):
        if rank != next_rank:
            sent[rank] += schedule.microbatches
            sent[next_rank] += schedule.microbatches
    return tuple(sent[rank] for rank in range(schedule.stages))
