"""The tokenizer: byte-level BPE, so that it can write any text, learned from the training text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpuedu.llama.gguf_file import PRE_TOKENIZERS

END = "<|endoftext|>"


def train_tokenizer(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """Learn a vocabulary.

    Parameters
    ----------
    texts : sequence of str
        To learn from.
    size : int
        Entries: 256 bytes, the end of a text, and the pairs that are merged.

    Returns
    -------
    tokenizers.Tokenizer
        Digits stay single, as in SmolLM2.

    References
    ----------
    Sennrich, Haddow and Birch. Neural machine translation of rare words with subword units. ACL 2016.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = PRE_TOKENIZERS["smollm"](), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write it as :func:`gpuedu.llama.tokenizer.read_tokenizer` reads it."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"bos_token": END, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def as_one_sequence(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """All texts as tokens, (n,), with the end-of-text token before each and after the last."""
    end = tokenizer.token_to_id(END)
    ids = [end]
    for encoding in tokenizer.encode_batch(list(texts)):
        ids += [*encoding.ids, end]
    return torch.tensor(ids)
