"""Models from a GGUF file, the format of llama.cpp: dequantized, and in this package's order of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from gpuedu.transformer import Transformer

from .model import Llama, LlamaConfig
from .tokenizer import Tokenizer
from .weights import with_weights

if TYPE_CHECKING:
    import gguf

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROTARY_DIVISORS = "rope_freqs.weight"
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # in tokenizer.ggml.token_type

# Byte-level BPE cuts a text first; what the model's tokenizer.ggml.pre stands for
PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def load_gguf(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer of a GGUF file.

    Parameters
    ----------
    path : str or Path
        Of the file; any quantization that the package ``gguf`` can undo.
    dtype : torch.dtype
        That the model gets.
    device : torch.device or str
        Where it gets to.

    Returns
    -------
    tuple
        The Llama and its Tokenizer, ready to use.

    Raises
    ------
    ModuleNotFoundError
        If the package ``gguf`` is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no GGUF file, a figure is missing, the model is of another kind, or its tensors are not
        those of its shape.
    """
    reader = _reader(Path(path))
    return read_model(reader, dtype, device), read_tokenizer(reader)


def _reader(path: Path) -> gguf.GGUFReader:
    """The file, its tensors mapped into memory."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path}: reading it needs the package gguf (pip install gguf)") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    return gguf.GGUFReader(path)


_MISSING = object()


def _field(reader: gguf.GGUFReader, key: str, default: Any = _MISSING) -> Any:
    """A value of the file's metadata; ValueError if it is missing and there is no default."""
    if key in reader.fields:
        return reader.fields[key].contents()
    if default is _MISSING:
        raise ValueError(f"GGUF: {key} is missing")
    return default


def read_config(reader: gguf.GGUFReader) -> LlamaConfig:
    """What the model is like, from the file's metadata and the names of its tensors."""
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"GGUF: general.architecture={architecture!r}: must be 'llama'")
    scaling = _field(reader, "llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"GGUF: llama.rope.scaling.type={scaling!r}: must be 'none'")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError("GGUF: tensor token_embd.weight is missing")
    heads = _field(reader, "llama.attention.head_count")
    hidden = _field(reader, "llama.embedding_length")
    shape = Transformer(
        layers=_field(reader, "llama.block_count"),
        hidden_size=hidden,
        attention_heads=heads,
        kv_heads=_field(reader, "llama.attention.head_count_kv", heads),
        head_dim=_field(reader, "llama.attention.key_length", hidden // heads),
        ffn_hidden_size=_field(reader, "llama.feed_forward_length"),
        gated_ffn=True,
        vocab_size=int(tensors["token_embd.weight"].shape[1]),  # GGUF names the fastest axis first
        tied_embeddings="output.weight" not in tensors,
        biases="none",
        norm="rmsnorm",
    )
    divisors = tensors.get(ROTARY_DIVISORS)
    return LlamaConfig(
        shape,
        rope_theta=_field(reader, "llama.rope.freq_base", LlamaConfig.rope_theta),
        norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        context_length=_field(reader, "llama.context_length"),
        rope_divisors=None if divisors is None else tuple(divisors.data.tolist()),
    )


def read_model(
    reader: gguf.GGUFReader, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Llama:
    """The model alone: see :func:`load_gguf`."""
    from gguf import dequantize

    config, weights = read_config(reader), {}
    for tensor in reader.tensors:
        if tensor.name == ROTARY_DIVISORS:
            continue
        name = _our_name(tensor.name)
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name.endswith("q_proj.weight"):
            values = half_split_rows(values, config.shape.attention_heads)
        elif name.endswith("k_proj.weight"):
            values = half_split_rows(values, config.shape.kv_heads)
        weights[name] = values.to(dtype) if isinstance(dtype, torch.dtype) else values
    return with_weights(config, weights, dtype, device)


def _our_name(name: str) -> str:
    """``blk.0.attn_q.weight`` as ``layers.0.self_attn.q_proj.weight``; an unknown name as it is."""
    stem, _, kind = name.rpartition(".")
    layer = ""
    if stem.startswith("blk."):
        _, index, stem = stem.split(".", 2)
        layer = f"layers.{index}."
    return f"{layer}{NAMES[stem]}.{kind}" if stem in NAMES else name


def half_split_rows(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix from GGUF's order to that of :func:`gpuedu.llama.model.rotate`.

    Parameters
    ----------
    weights : Tensor
        (heads * head_dim, hidden): in each head rows 2i and 2i + 1 are a rotary pair.
    heads : int
        Query heads, or KV heads.

    Returns
    -------
    Tensor
        The same rows; in each head rows i and i + head_dim / 2 are a pair.

    Examples
    --------
    >>> half_split_rows(torch.arange(8).view(8, 1), heads=2).flatten().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return weights.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """The tokenizer alone: byte-level BPE from vocabulary and merges in the file's metadata."""
    model = _field(reader, "tokenizer.ggml.model")
    if model != "gpt2":
        raise ValueError(f"GGUF: tokenizer.ggml.model={model!r}: must be 'gpt2', byte-level BPE")
    cut = _field(reader, "tokenizer.ggml.pre")
    if cut not in PRE_TOKENIZERS:
        raise ValueError(f"GGUF: tokenizer.ggml.pre={cut!r}: must be one of {', '.join(PRE_TOKENIZERS)}")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer, backend.decoder = PRE_TOKENIZERS[cut](), decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type", [])
    special = [
        t for t, kind in zip(tokens, kinds, strict=False) if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)
    ]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    return Tokenizer(
        backend,
        bos_id=_field(reader, "tokenizer.ggml.bos_token_id", None),
        eos_id=_field(reader, "tokenizer.ggml.eos_token_id", None),
        chat_template=_field(reader, "tokenizer.chat_template", None),
    )
