"""A small memory planner: what training holds on one GPU, whichever way the model is spread."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.hardware import GPU
from gpuedu.pipeline_parallel.cost import one_f_one_b_peak_activations
from gpuedu.transformer import Transformer

from ..plan import LAYER_SITES, Sharding, shard
from .activations import end_activation_bytes, layer_activation_bytes

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 2, 12
"""Of one parameter in mixed precision with Adam: 16-bit weight and gradient; in FP32 a copy of the weight,
momentum and variance."""

OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that holds most, and what it keeps in its host's memory instead.

    Parameters
    ----------
    weights, gradients, optimizer : float
        The GPU's share of the model's states.
    activations : float
        Kept from forward to backward, over all microbatches in flight.
    working : float
        What is whole for a moment: the layer that ZeRO-3 or offloading brings in, with its gradient, and
        the layer whose activations full recomputation builds up again.
    host : float
        Bytes in the host's memory, for this GPU.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    host: float

    @property
    def total(self) -> float:
        """Bytes on the GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    def fits(self, gpu: GPU) -> bool:
        """Whether ``total`` is within the memory of ``gpu``; leaves nothing for the allocator's waste."""
        return self.total <= gpu.memory_bytes


def model_state_bytes(parameters: float, data_parallel: int = 1, zero: int = 0) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer states on each of N data-parallel GPUs.

    Parameters
    ----------
    parameters : float
        Parameters P of the model, or of the part that the GPU's group holds.
    data_parallel : int
        GPUs N that share the batch.
    zero : int
        Stage 0 (plain data parallelism: all GPUs hold all), 1 (optimizer states cut), 2 (gradients too),
        3 (weights too; FSDP).

    Returns
    -------
    tuple of float
        ``(weights, gradients, optimizer)``. Stage 3: (2 + 2 + 12) P / N in all.

    Raises
    ------
    TypeError, ValueError
        For a count that is no int or out of range.

    References
    ----------
    Rajbhandari et al. 2020, "ZeRO", figure 1 (K = 12).

    Examples
    --------
    >>> [round(sum(model_state_bytes(7.5e9, 64, stage)) / 1e9, 1) for stage in range(4)]
    [120.0, 31.4, 16.6, 1.9]
    """
    check_count("data_parallel", data_parallel)
    check_count("zero", zero, 0)
    if zero > 3:
        raise ValueError(f"zero={zero}: must be from 0 to 3")
    if not parameters >= 0:
        raise ValueError(f"parameters={parameters!r}: must be >= 0")
    n = data_parallel
    return (
        WEIGHT_BYTES * parameters / (n if zero == 3 else 1),
        GRADIENT_BYTES * parameters / (n if zero >= 2 else 1),
        OPTIMIZER_BYTES * parameters / (n if zero >= 1 else 1),
    )


def training_memory(
    model: Transformer,
    *,
    data_parallel: int = 1,
    zero: int = 0,
    offload: str = "none",
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    pipeline_parallel: int = 1,
    microbatches: int = 1,
    batch: int = 1,
    sequence: int = 2048,
    recompute: str = "none",
    dropout: bool = True,
) -> Memory:
    """What one GPU holds while ``model`` is trained in mixed precision with Adam.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        A model without MLA and MoE.
    data_parallel, zero : int
        GPUs that share the batch, and ZeRO's stage, as for :func:`model_state_bytes`.
    offload : str
        What lives in the host's memory: ``"none"``; ``"optimizer"`` (its states and the gradients it
        reads: ZeRO-Offload); ``"all"`` (weights too: ZeRO-Infinity).
    tensor_parallel : int
        Ranks that share each layer.
    sequence_parallel : bool
        As for :func:`~gpuedu.tensor_parallel.plan.shard`.
    pipeline_parallel : int
        Stages with equally many layers, run by 1F1B.
    microbatches : int
        Of a step, on each pipeline; stage 0 holds the activations of at most ``pipeline_parallel``.
    batch, sequence : int
        Sequences of one microbatch, tokens of each.
    recompute : str
        ``"none"``, ``"selective"`` or ``"full"``, as for :func:`~gpuedu.tensor_parallel.plan.shard`.
    dropout : bool
        Trained with dropout.

    Returns
    -------
    Memory
        Of the first or the last stage, whichever holds more.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or out of range, a number of layers that ``pipeline_parallel``
        does not divide, or anything that :func:`~gpuedu.tensor_parallel.plan.shard` refuses.

    Notes
    -----
    Left out: the CUDA context (about half a GB), communication buffers, kernels' workspace, fragmentation,
    prefetching by ZeRO-3 (one layer more). Where embeddings are tied, the last of several stages holds a copy
    of its own, as in Megatron-LM.

    References
    ----------
    Rajbhandari et al. 2020, "ZeRO"; Ren et al. 2021, "ZeRO-Offload"; Rajbhandari et al. 2021,
    "ZeRO-Infinity".

    Examples
    --------
    Llama 2 70B on 80 GB cards, every GPU computing whole layers:

    >>> from gpuedu.hardware import GPUS
    >>> from gpuedu.transformer import MODELS
    >>> model, gpu = MODELS["llama-2-70b"], GPUS["H100-SXM"]
    >>> training_memory(model).fits(gpu)
    False
    >>> training_memory(model, data_parallel=64, zero=3, recompute="full").fits(gpu)
    True
    """
    p = pipeline_parallel
    check_count("pipeline_parallel", p)
    check_count("microbatches", microbatches)
    if offload not in OFFLOADS:
        raise ValueError(f"offload={offload!r}: must be one of {', '.join(OFFLOADS)}")
    plan = shard(
        model,
        tensor_parallel,
        batch=batch,
        sequence=sequence,
        sequence_parallel=sequence_parallel,
        recompute=recompute,
        dropout=dropout,
    )
    if model.layers % p:
        raise ValueError(f"pipeline_parallel={p}: must divide layers={model.layers} without rest")
    in_flight = one_f_one_b_peak_activations(p, microbatches)
    stages = [_stage(plan, stage, p, in_flight[stage], data_parallel, zero, offload) for stage in {0, p - 1}]
    return max(stages, key=lambda memory: memory.total)


def _stage(
    plan: Sharding, stage: int, stages: int, in_flight: int, data_parallel: int, zero: int, offload: str
) -> Memory:
    """Memory of a GPU of one stage."""
    layers = plan.model.layers // stages
    first, last = stage == 0, stage == stages - 1
    blocks = {"layer": 0, "embedding": 0, "head": 0}  # parameters of the parts that are brought in one by one
    for weight in plan.weights:
        block = "layer" if weight.site in LAYER_SITES else weight.site
        blocks[block] += weight.local_elements
    if plan.model.tied_embeddings and not first:
        blocks["head"] += next(w.local_elements for w in plan.weights if w.name == "embedding")
    held = {"layer": layers * blocks["layer"], "embedding": first * blocks["embedding"]}
    held["head"] = last * blocks["head"]
    weights, gradients, optimizer = model_state_bytes(sum(held.values()), data_parallel, zero)

    brought = max(blocks[name] for name, parameters in held.items() if parameters)
    working = host = 0.0
    if zero == 3 or offload == "all":
        working += WEIGHT_BYTES * brought
    if zero >= 2 or offload != "none":
        working += GRADIENT_BYTES * brought
    if offload != "none":
        host, gradients, optimizer = gradients + optimizer, 0.0, 0.0
    if offload == "all":
        host, weights = host + weights, 0.0

    ends = end_activation_bytes(plan)
    activations = in_flight * (layers * layer_activation_bytes(plan) + first * ends["embedding"])
    activations += last * ends["head"]
    if plan.recompute == "full":
        working += _rebuilt(plan)
    return Memory(weights, gradients, optimizer, activations, working, host)


def _rebuilt(plan: Sharding) -> float:
    """Bytes of one layer's activations while full recomputation has them all."""
    whole = shard(
        plan.model,
        plan.tensor_parallel,
        batch=plan.batch,
        sequence=plan.sequence,
        sequence_parallel=plan.sequence_parallel,
        recompute="none",
        dropout=plan.dropout,
    )
    return layer_activation_bytes(whole)
