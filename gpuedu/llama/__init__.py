"""A Llama-shaped language model in a file that reads like the paper, with loaders and tokenizer.

``gpuedu/llama/model.py`` is the model. Attention is a function and linear layers are ``nn.Linear``: other
kinds take their places.
"""

from .cache import KVCache
from .generate import generate, sampling_distribution, stream
from .gguf_file import load_gguf
from .hugging_face import load_hugging_face
from .linear_layers import linear_layers, replace_linear
from .model import Attention, Cache, Llama, LlamaConfig, RMSNorm, causal_attention, rotate
from .perplexity import negative_log_likelihoods, perplexity
from .sources import find_smollm2, load
from .tokenizer import Tokenizer

__all__ = [
    "Attention",
    "Cache",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RMSNorm",
    "Tokenizer",
    "causal_attention",
    "find_smollm2",
    "generate",
    "linear_layers",
    "load",
    "load_gguf",
    "load_hugging_face",
    "negative_log_likelihoods",
    "perplexity",
    "replace_linear",
    "rotate",
    "sampling_distribution",
    "stream",
]
