"""How full a replica was: of slots, of KV cache, of arithmetic. Three things, three names."""

from __future__ import annotations

from gpuedu.checks import check_count
from gpuedu.hardware import GPU
from gpuedu.transformer import Transformer

from .events import SimulationLog
from .replica import TICKS


def slot_occupancy(log: SimulationLog, slots: int) -> float:
    """Share of the slots that computed for somebody while their replica computed.

    Parameters
    ----------
    log : SimulationLog
        Of a simulation.
    slots : int
        Slots of each replica: ``max_num_seqs``, or the batch size of static batching.

    Returns
    -------
    float
        0 to 1. The rows of finished members of a static batch do not count; a replica's idle time is left
        out. (Busy time itself says nothing: a replica that computes for one of 256 slots is busy.)
    """
    check_count("slots", slots)
    busy = sum(usage.busy_ticks for usage in log.usage)
    return sum(usage.slot_ticks for usage in log.usage) / (busy * slots)


def kv_occupancy(log: SimulationLog) -> float:
    """Share of the KV cache in use while replicas computed, 0 to 1."""
    return sum(usage.kv_ticks for usage in log.usage) / sum(usage.busy_ticks for usage in log.usage)


def roofline_utilization(
    log: SimulationLog, model: Transformer, gpu: GPU, *, dtype: str = "bf16", gpus: int = 1
) -> float:
    """Share of the peak FLOP/s that went into tokens, from the first arrival to the last token.

    Parameters
    ----------
    log : SimulationLog
        Of a simulation.
    model, gpu
        What ran on what.
    dtype : str
        Whose peak.
    gpus : int
        GPUs of each replica.

    Returns
    -------
    float
        0 to 1: twice the parameters a token visits for every token that had to be computed, prompts and
        outputs, and attention left out, as in the usual definition of model FLOPs utilization. What a cache
        knew, what was computed again after a preemption, and an answer's last token, which nobody feeds
        back, do not count.
    """
    check_count("gpus", gpus)
    requests = log.requests
    tokens = sum(requests.prompt_tokens) - sum(requests.cached_tokens)
    tokens += sum(requests.output_tokens) - len(requests)
    seconds = log.end_s - min(log.requests.arrival_s)
    return 2 * model.active_parameters() * tokens / (seconds * gpu.peak(dtype) * gpus * len(log.usage))


def mean_in_system(log: SimulationLog) -> float:
    """Requests waiting and running, averaged over the time from 0 to the last token."""
    return sum(usage.in_system_ticks for usage in log.usage) / TICKS / log.end_s
