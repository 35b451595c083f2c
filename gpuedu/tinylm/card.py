"""The model card, written from measurements: ``python -m gpuedu.tinylm.card``.

``training.json`` says what training took; ``card.json`` what the finished models do; ``README.md`` is made
from both.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from gpuedu.llama import Llama, Tokenizer, generate, negative_log_likelihoods

from .models import FOLDER, MODELS, load, load_tokenizer
from .texts import TEXTS, text

PROMPT = "My fellow Americans,"
SAMPLE = {"max_new_tokens": 120, "temperature": 0.7, "top_p": 0.9, "seed": 0}
AGREEMENT_ON = "speech_2014"


def foretold(model: Llama, tokenizer: Tokenizer, name: str) -> dict[str, float]:
    """How well a model foretells one of the texts.

    Parameters
    ----------
    model, tokenizer : Llama, Tokenizer
        Of this package.
    name : str
        Of the text.

    Returns
    -------
    dict of str to float
        Perplexity a token with windows as long as the context, and the bits that a byte of the text costs:
        the one figure that can be compared between tokenizers.
    """
    tokens = tokenizer.encode(text(name))
    losses = negative_log_likelihoods(model, tokens, model.config.context_length).double()
    bits = losses.sum().item() / math.log(2)
    return {
        "perplexity": math.exp(losses.mean().item()),
        "bits_per_byte": bits / len(text(name).encode("utf-8")),
    }


@torch.no_grad()
def agreement(target: Llama, draft: Llama, tokens: list[int]) -> dict[str, float]:
    """How often the target would accept what the draft says.

    Parameters
    ----------
    target, draft : Llama
        Of one vocabulary.
    tokens : list of int
        A text, which both read in windows as long as the context.

    Returns
    -------
    dict of str to float
        ``sampled``: the mean of ``sum(min(p, q))``, the chance that a token drawn from the draft's
        distribution is accepted; ``greedy``: the share of places with the same most likely token.

    References
    ----------
    Leviathan, Kalman and Matias. Fast inference from transformers via speculative decoding. ICML 2023.
    """
    window = target.config.context_length
    windows = torch.tensor(tokens[: len(tokens) // window * window]).view(-1, window)
    p, q = (model(windows).softmax(-1) for model in (target, draft))
    return {
        "sampled": torch.minimum(p, q).sum(-1).mean().item(),
        "greedy": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
    }


def measurements() -> dict[str, Any]:
    """What the card says of the models as they are stored: a minute's work."""
    models = {name: load(name) for name in MODELS}
    (target, tokenizer), (draft, _) = models.values()
    samples = {
        name: tokenizer.decode(generate(model, tokenizer.encode(PROMPT), **SAMPLE))
        for name, (model, _) in models.items()
    }
    return {
        "texts": {
            name: {text_name: foretold(*of, text_name) for text_name in TEXTS} for name, of in models.items()
        },
        "agreement": agreement(target, draft, tokenizer.encode(text(AGREEMENT_ON))),
        "samples": samples,
    }


def card(training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The model card.

    Parameters
    ----------
    training : dict
        What ``training.json`` holds.
    measured : dict
        What :func:`measurements` returns.

    Returns
    -------
    str
        Markdown: ``card_template.md`` with its places filled.
    """
    wall = sum(training[name]["wall_s"] for name in MODELS)
    at_best = sum(training[name]["steps"] * training[name]["fastest_step_s"] for name in MODELS)
    template = (FOLDER / "card_template.md").read_text(encoding="utf-8")
    return template.format(
        shapes=_rows(_shapes()),
        vocabulary=f"{load_tokenizer().vocab_size:,}",
        flags=" --bf16" if training["bf16"] else "",
        precision="bfloat16" if training["bf16"] else "float32",
        minutes=wall / 60,
        minutes_at_best=at_best / 60,
        machine=training["machine"],
        training_tokens=f"{training['training_tokens']:,}",
        training=_rows(_of_training(training)),
        texts=_rows(_of_texts(measured["texts"])),
        sampled=f"{measured['agreement']['sampled']:.0%}",
        greedy=f"{measured['agreement']['greedy']:.0%}",
        prompt=PROMPT,
        target_sample=measured["samples"]["target"].replace("\n", " "),
        draft_sample=measured["samples"]["draft"].replace("\n", " "),
        **{name: SAMPLE[name] for name in ("temperature", "top_p", "seed")},
    )


def _shapes() -> dict[str, list[object]]:
    configs = [load(name)[0].config for name in MODELS]
    shapes = [config.shape for config in configs]
    return {
        "parameters": [f"{shape.parameters():,}" for shape in shapes],
        "layers": [shape.layers for shape in shapes],
        "hidden size": [shape.hidden_size for shape in shapes],
        "feed-forward size": [shape.ffn_hidden_size for shape in shapes],
        "query heads": [shape.attention_heads for shape in shapes],
        "KV heads": [shape.kv_heads for shape in shapes],
        "width of a head": [shape.head_dim for shape in shapes],
        "context, tokens": [config.context_length for config in configs],
    }


def _of_training(training: dict[str, Any]) -> dict[str, list[object]]:
    of = [training[name] for name in MODELS]
    return {
        "steps": [each["steps"] for each in of],
        "tokens seen": [f"{each['tokens']:,}" for each in of],
        "processor time, core-seconds": [each["processor_s"] for each in of],
        "validation perplexity": [f"{each['validation_perplexity']:.1f}" for each in of],
    }


def _of_texts(measured: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[object]]:
    def cell(model: str, name: str) -> str:
        figures = measured[model][name]
        return f"{figures['perplexity']:.1f} ({figures['bits_per_byte']:.2f})"

    return {
        about.title: [about.use, *(cell(model, name) for model in MODELS)] for name, about in TEXTS.items()
    }


def _rows(rows: dict[str, list[object]]) -> str:
    return "\n".join(f"| {name} | {' | '.join(map(str, cells))} |" for name, cells in rows.items())


def read_facts(name: str) -> dict[str, Any]:
    """One of the files of facts beside this module: ``"training"`` or ``"card"``."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Measure the models and write the card."""
    measured = measurements()
    (FOLDER / "card.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (FOLDER / "README.md").write_text(card(read_facts("training"), measured), encoding="utf-8")


if __name__ == "__main__":
    main()
