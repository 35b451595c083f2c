"""An inference engine small enough to read: paged KV cache, continuous batching, chunked prefill, caching.

What it decides is made by :mod:`gpuedu.continuous_batching.plan` and :mod:`gpuedu.paged_attention.plan`;
here the decisions are carried out on a real model. Begin with ``llm.py``.
"""

from .batch import AttentionCall, Batch, make_batch
from .detokenizer import Detokenizer
from .kv_cache import PagedKVCache
from .llm import LLM
from .model_runner import ModelRunner
from .outputs import Piece, RequestOutput
from .prediction import drive, measure_iterations, measure_step_cost, median_residuals, predict, residuals
from .request import EngineRequest
from .sampler import Sampler, choose_tokens
from .sampling_params import SamplingParams
from .stream import Stream
from .trace import Trace
from .trial import Trial, run_trial

__all__ = [
    "LLM",
    "AttentionCall",
    "Batch",
    "Detokenizer",
    "EngineRequest",
    "ModelRunner",
    "PagedKVCache",
    "Piece",
    "RequestOutput",
    "Sampler",
    "SamplingParams",
    "Stream",
    "Trace",
    "Trial",
    "choose_tokens",
    "drive",
    "make_batch",
    "measure_iterations",
    "measure_step_cost",
    "median_residuals",
    "predict",
    "residuals",
    "run_trial",
]
