"""A trained model as a Hugging Face directory, which transformers reads too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpuedu.llama import Llama, LlamaConfig


def hugging_face_config(config: LlamaConfig, end_id: int) -> dict[str, object]:
    """What ``config.json`` says of a model; :func:`gpuedu.llama.hugging_face.read_config` reads it back."""
    shape = config.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context_length,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
    }


def save_model(model: Llama, end_id: int, folder: Path) -> None:
    """Write a model in half precision.

    Parameters
    ----------
    model : Llama
        With tied embeddings, which are stored once.
    end_id : int
        Token that begins and ends a text.
    folder : Path
        Gets ``config.json`` and ``model.safetensors``; made if it is missing.

    Raises
    ------
    ValueError
        If a weight is not finite in half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": p.detach().half().contiguous() for name, p in model.named_parameters()}
    for name, values in weights.items():
        if not torch.isfinite(values).all():
            raise ValueError(f"{name}: has values that are not finite in half precision")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(hugging_face_config(model.config, end_id), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
