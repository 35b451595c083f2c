"""Models from a Hugging Face directory: ``config.json``, safetensors in one file or several, tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gpuedu.transformer import Transformer

from .model import Llama, LlamaConfig
from .tokenizer import Tokenizer, read_tokenizer
from .weights import with_weights

# What config.json must say where it says it at all
REQUIRED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "chat_template.jinja"]


def load_hugging_face(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer of a directory as ``save_pretrained`` writes it.

    Parameters
    ----------
    directory : str or Path
        With ``config.json``, ``model.safetensors`` or its shards and their index, and ``tokenizer.json``.
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
    FileNotFoundError
        If a file is missing.
    ValueError
        If the model is of another kind, or its tensors are not those of its configuration.
    """
    return read_model(directory, dtype, device), read_tokenizer(Path(directory))


def read_model(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Llama:
    """The model alone: see :func:`load_hugging_face`."""
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a model's shape is read from this file, and it is missing")
    config = read_config(json.loads(path.read_text(encoding="utf-8")))
    weights = {
        name.removeprefix("model."): tensor
        for file in _weight_files(directory)
        for name, tensor in load_file(file).items()
        if not name.endswith("rotary_emb.inv_freq")  # old files store what follows from rope_theta
    }
    return with_weights(config, weights, dtype, device)


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors of a model: its one file, or those that its index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise FileNotFoundError(
            f"{single}: weights are read from this file or {index.name}; both are missing"
        )
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{directory}: files of {index.name} are missing: {', '.join(missing)}")
    return [directory / name for name in names]


def read_config(values: dict[str, Any]) -> LlamaConfig:
    """The configuration that ``config.json`` holds.

    Parameters
    ----------
    values : dict
        What stands in the file.

    Returns
    -------
    LlamaConfig
        The same, in this package's terms.

    Raises
    ------
    ValueError
        If a figure is missing, or the model is of another kind than :class:`Llama`.

    Examples
    --------
    >>> sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
    >>> read_config({"model_type": "llama", "vocab_size": 20, "rms_norm_eps": 1e-6} | sizes).shape.kv_heads
    4
    """
    if "model_type" not in values:
        raise ValueError("config.json: model_type is missing; it must be 'llama'")
    for name, value in REQUIRED.items():
        if values.get(name, value) != value:
            raise ValueError(f"config.json: {name}={values[name]!r}: must be {value!r}")
    try:
        heads = values["num_attention_heads"]
        shape = Transformer(
            layers=values["num_hidden_layers"],
            hidden_size=values["hidden_size"],
            attention_heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            ffn_hidden_size=values["intermediate_size"],
            gated_ffn=True,
            vocab_size=values["vocab_size"],
            tied_embeddings=values.get("tie_word_embeddings", False),
            biases="none",
            norm="rmsnorm",
        )
        eps = values["rms_norm_eps"]
        theta, divisors = _rotary(values, shape.head_dim)
    except KeyError as error:
        raise ValueError(f"config.json: {error.args[0]} is missing") from None
    context = values.get("max_position_embeddings", LlamaConfig.context_length)
    return LlamaConfig(shape, theta, eps, context, divisors)


def _rotary(values: dict[str, Any], head_dim: int) -> tuple[float, tuple[float, ...] | None]:
    """Base of the rotary frequencies, and what each is divided by."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", values.get("rope_theta", LlamaConfig.rope_theta)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"config.json: rope_type={kind!r}: must be 'default' or 'llama3'")
    return theta, llama3_divisors(
        theta,
        head_dim,
        factor=rope["factor"],
        low=rope["low_freq_factor"],
        high=rope["high_freq_factor"],
        context=rope["original_max_position_embeddings"],
    )


def llama3_divisors(
    theta: float, head_dim: int, *, factor: float, low: float, high: float, context: int
) -> tuple[float, ...]:
    """How Llama 3.1 stretches its context: slow rotary frequencies are divided by a factor, fast ones kept.

    Parameters
    ----------
    theta : float
        Base of the frequencies.
    head_dim : int
        Width of a head.
    factor : float
        By which the slow ones are divided.
    low, high : float
        A frequency is slow below ``low`` turns in the original context, fast above ``high``; between the
        two the divisor's inverse goes over linearly.
    context : int
        The original context, tokens.

    Returns
    -------
    tuple of float
        ``head_dim / 2`` divisors, for :class:`LlamaConfig`.

    Examples
    --------
    >>> divisors = llama3_divisors(5e5, 128, factor=8.0, low=1.0, high=4.0, context=8192)
    >>> divisors[0], divisors[-1]
    (1.0, 8.0)
    """
    divisors = []
    for i in range(0, head_dim, 2):
        turns = context * theta ** (-i / head_dim) / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


def download(name: str) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the hub's cache on this machine.

    Parameters
    ----------
    name : str
        Such as ``"HuggingFaceTB/SmolLM2-135M-Instruct"``.

    Returns
    -------
    Path
        Its directory.

    Raises
    ------
    ModuleNotFoundError
        If the package ``huggingface_hub`` is not installed.
    ConnectionError
        If it could not be fetched.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"source={name!r}: is no file or directory here; fetching it needs the package huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own errors, and those of whichever HTTP client it uses
        raise ConnectionError(
            f"source={name!r}: is no file or directory here, and could not be fetched from the hub "
            f"({type(error).__name__}). Offline, name a GGUF file or a directory."
        ) from error
