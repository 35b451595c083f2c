"""What the book holds: its parts and techniques, once, for the map, the landing page and the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of the book; ``name`` is its folder under ``book/``."""

    name: str
    title: str
    summary: str


@dataclass(frozen=True)
class Technique:
    """A chapter: ``section`` is the source's, ``level`` and ``place`` say where on a cluster it acts."""

    slug: str
    part: str
    title: str
    section: str
    level: str
    place: str
    question: str

    @property
    def docname(self) -> str:
        """The chapter's page, without suffix."""
        return f"{self.part}/{self.slug}"

    @property
    def number(self) -> int:
        """The chapter's number, counted through the whole book."""
        return TECHNIQUES.index(self) + 1


PARTS = (
    Part("training", "Training", "One job on every GPU at once; what counts is the day it is done."),
    Part("inference", "Inference", "A stream of requests, each in a hurry; what counts is every answer."),
    Part("acceleration", "Acceleration", "The same answers for less time, memory and money."),
    Part("comparison", "Comparison", "The two jobs side by side, each difference computed."),
    Part("outlook", "Outlook", "Four predictions, and what speaks for each."),
)

LEVELS = {
    "cluster": "The cluster",
    "node": "A node",
    "gpu": "A GPU",
    "sm": "A streaming multiprocessor",
}

TECHNIQUES = (
    Technique(
        "all_reduce",
        "training",
        "All-reduce",
        "1",
        "cluster",
        "the fabric",
        "How do a thousand GPUs agree on one sum?",
    ),
    Technique(
        "data_parallel",
        "training",
        "Data parallelism",
        "1.1",
        "cluster",
        "the racks",
        "Must every GPU hold the whole model?",
    ),
    Technique(
        "tensor_parallel",
        "training",
        "Tensor parallelism",
        "1.2",
        "node",
        "NVLink",
        "What does it cost to split one matrix product over eight GPUs?",
    ),
    Technique(
        "pipeline_parallel",
        "training",
        "Pipeline parallelism",
        "1.2",
        "cluster",
        "the links between nodes",
        "How much of a pipelined cluster stands idle, and why?",
    ),
    Technique(
        "scaling",
        "training",
        "Scaling",
        "1",
        "cluster",
        "the whole cluster",
        "Twice the GPUs: how much sooner is the model done?",
    ),
    Technique(
        "inference_cost",
        "inference",
        "The cost of inference",
        "2.1.1",
        "gpu",
        "HBM",
        "What sets the price of a million tokens?",
    ),
    Technique(
        "prefill_decode",
        "inference",
        "Prefill and decode",
        "2.1.2",
        "gpu",
        "between HBM and the SMs",
        "Why does one GPU lack arithmetic in one phase and bandwidth in the next?",
    ),
    Technique(
        "multimodal",
        "inference",
        "Multimodal inputs",
        "2.1.3",
        "cluster",
        "the requests",
        "How many tokens is a picture, and what do they cost?",
    ),
    Technique(
        "load_balancing",
        "inference",
        "Load balancing",
        "2.2.1",
        "cluster",
        "the front door",
        "Which replica should take the next request?",
    ),
    Technique(
        "parallel_inference",
        "inference",
        "Parallel inference",
        "2.2.2",
        "node",
        "NVLink",
        "Do more GPUs bring one answer sooner?",
    ),
    Technique(
        "dynamic_batching",
        "inference",
        "Dynamic batching",
        "2.2.3",
        "gpu",
        "the queue",
        "How long should a server wait for company?",
    ),
    Technique(
        "operator_fusion",
        "acceleration",
        "Operator fusion",
        "3.1.1",
        "sm",
        "registers and SRAM",
        "What does a kernel save by not writing its result down?",
    ),
    Technique(
        "flash_attention",
        "acceleration",
        "FlashAttention",
        "3.1.1",
        "sm",
        "SRAM",
        "How can more arithmetic take less time?",
    ),
    Technique(
        "inference_libraries",
        "acceleration",
        "Inference libraries",
        "3.1.2",
        "sm",
        "the kernels",
        "What does a library do to a model's graph before it runs it?",
    ),
    Technique(
        "quantization",
        "acceleration",
        "Quantization",
        "3.2.1",
        "gpu",
        "weights in HBM",
        "How few bits will a weight bear?",
    ),
    Technique(
        "speculative_decoding",
        "acceleration",
        "Speculative decoding",
        "3.2.2",
        "gpu",
        "the engine's loop",
        "When does guessing ahead pay?",
    ),
    Technique(
        "continuous_batching",
        "acceleration",
        "Continuous batching",
        "3.3.1",
        "gpu",
        "the queue",
        "What becomes of the slots that finished requests leave empty?",
    ),
    Technique(
        "paged_attention",
        "acceleration",
        "PagedAttention",
        "3.3.2",
        "gpu",
        "KV cache in HBM",
        "Where does the memory of a KV cache go?",
    ),
    Technique(
        "disaggregation",
        "acceleration",
        "Prefill/decode disaggregation",
        "3.3.3",
        "cluster",
        "pools of nodes",
        "Should the two phases share a GPU?",
    ),
    Technique(
        "training_vs_inference",
        "comparison",
        "Training against inference",
        "4",
        "cluster",
        "the whole cluster",
        "What is left of the differences when each is computed?",
    ),
    Technique(
        "outlook",
        "outlook",
        "Outlook",
        "5",
        "cluster",
        "hardware to come",
        "Which of the source's four predictions hold up?",
    ),
)

BY_SLUG = {technique.slug: technique for technique in TECHNIQUES}


def find(slug: str) -> Technique:
    """The technique named ``slug``; ValueError for a slug that the book does not have."""
    if slug not in BY_SLUG:
        raise ValueError(f"slug={slug!r}: must be one of {', '.join(BY_SLUG)}")
    return BY_SLUG[slug]
