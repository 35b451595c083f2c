"""Numbers in the verdicts on quantization."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from gpuedu.hardware import GPUS
from gpuedu.quantization.cost import PRODUCT_GAINS, decode_step, linear_bytes, prefill, weight_bytes
from gpuedu.quantization.plan import FORMATS, KVQuantization
from gpuedu.quantization.plot.measured import MEASURED
from gpuedu.transformer import MODELS

MODEL = MODELS["llama-3-8b"]
CONTEXT, BATCH, PROMPT = 2048, 256, 2048
ROOT = Path(__file__).resolve().parents[4]
RESULTS = ROOT / "benchmarks" / "results" / "quantization.json"
STUDY = ROOT / "measurements" / "quantization_perplexity.json"


def times(value: float) -> str:
    """A factor with three digits."""
    return f"{value:.3g} times"


def step_bytes(name: str, batch: int, quantization: KVQuantization | None = None) -> float:
    """Bytes that a decode step reads."""
    work = decode_step(MODEL, GPUS["H100-SXM"], FORMATS[name], batch, CONTEXT, quantization)
    return work.weight_bytes + work.kv_bytes


def c36() -> dict[str, object]:
    """How much less the weights take, the model, and a step."""
    four, sixteen = FORMATS["int4_g128"], FORMATS["bf16"]
    cache = KVQuantization(bits=2)
    return {
        "bits": f"{four.bits_per_number():.4g}",
        "group": four.group,
        "matrices": times(linear_bytes(MODEL, sixteen) / linear_bytes(MODEL, four)),
        "model": times(weight_bytes(MODEL, sixteen) / weight_bytes(MODEL, four)),
        "context": f"{CONTEXT:,}",
        "batch": BATCH,
        "one": times(step_bytes("bf16", 1) / step_bytes("int4_g128", 1)),
        "many": times(step_bytes("bf16", BATCH) / step_bytes("int4_g128", BATCH)),
        "cache": times(step_bytes("bf16", BATCH) / step_bytes("int4_g128", BATCH, cache)),
    }


def c37() -> dict[str, object]:
    """What arithmetic gains where the unit knows the format, and where not; and on the machine measured."""

    def gain(gpu: str, name: str) -> str:
        plain, quantized = (prefill(MODEL, GPUS[gpu], FORMATS[n], PROMPT).seconds for n in ("bf16", name))
        return times(plain / quantized)

    one = [
        decode_step(MODEL, GPUS["H100-SXM"], FORMATS[n], 1, CONTEXT).seconds for n in ("bf16", "int4_g128")
    ]
    (products,) = [
        b
        for b in json.loads(RESULTS.read_text())["benchmarks"]
        if b["name"] == "one linear layer in few bits"
    ]
    ratio = {
        (row["size"]["width"], row["size"]["tokens"]): {
            name: row["median_s"]["FP32"] / seconds for name, seconds in row["median_s"].items()
        }
        for row in products["rows"]
    }
    measured = {(g.gpu, g.format, g.tokens_from): g for g in PRODUCT_GAINS}
    few, many = measured["A100", "int4_wo", 1], measured["A100", "int4_wo", 512]
    native, slower = measured["H100", "fp8", 512], measured["B200", "fp8", 1]
    return {
        "few": few.tokens_to,
        "from": many.tokens_from,
        "weights_few": f"{few.median_gain:.2g}",
        "weights_many": f"{many.median_gain:.2g}",
        "native_share": f"{100 * native.faster_share:.0f}",
        "native_gain": f"{native.median_gain:.2g}",
        "slower_share": f"{100 * slower.faster_share:.0f}",
        "slower_gain": f"{slower.median_gain:.2g}",
        "prompt": f"{PROMPT:,}",
        "native": gain("H100-SXM", "fp8"),
        "missing": gain("A100-80GB", "fp8"),
        "weights": gain("H100-SXM", "int4_g128"),
        "decode": times(one[0] / one[1]),
        "cpu_small": times(ratio[576, 1]["INT8, dynamic"]),
        "cpu_large": times(ratio[4096, 1024]["INT8, dynamic"]),
        "cpu_expanded": times(ratio[4096, 1]["4 bits, expanded"]),
        "large": f"{4096:,}",
        "small": 576,
        "many": f"{1024:,}",
    }


def c38() -> dict[str, object]:
    """Nothing to compute: what the methods ask for is decided by tests."""
    return {}


def c39() -> dict[str, object]:
    """Measured perplexity over that of the full model: the mean over the draws of the calibration text."""
    group, three_away = 64, ratios("gptq", 3, "speeches", "docs")
    return {
        "group": group,
        "tokens": f"{evaluated():,}",
        "draws": len(three_away),
        "eight": left(ratios("gptq", 8, "mixed")),
        "four": left(ratios("gptq", 4, "mixed")),
        "three": left(ratios("gptq", 3, "mixed")),
        "two": left(ratios("gptq", 2, "mixed")),
        "two_rtn": left(ratios("rtn", 2, None)),
        "four_rtn": left(ratios("rtn", 4, None)),
        "home": left(ratios("gptq", 3, "speeches", "speeches")),
        "away": left(three_away),
        "away_low": f"{min(three_away):.2f}",
        "away_high": f"{max(three_away):.2f}",
        "away_rtn": left(ratios("rtn", 3, None, "docs")),
        "young": left(ratios("gptq", 2, "mixed", model="tinylm")),
        "token_plain": left(ratios("w8a8_token", 8, None, group=None)),
        "token_smooth": left(ratios("w8a8_token_smooth", 8, "mixed", group=None, alpha=0.5)),
        "tensor_plain": left(ratios("w8a8_tensor", 8, None, group=None)),
        "tensor_smooth": left(ratios("w8a8_tensor_smooth", 8, "mixed", group=None, alpha=0.5)),
    }


def evaluated() -> int:
    """Tokens of a text that were predicted; the first of a text is given."""
    method = json.loads(STUDY.read_text())["method"]
    return int(re.search(r"Perplexity: ([\d,]+) tokens", method)[1].replace(",", "")) - 1


def ratios(
    method: str,
    bits: int,
    calibration: str | None,
    text: str = "speeches",
    model: str = "smollm2",
    group: int | None = 64,
    alpha: float | None = None,
) -> list[float]:
    """Perplexity over that of the full model, one for each draw of the calibration text."""
    (full,) = (m for m in MEASURED if m.model == model and m.method == "fp32")
    wanted = (model, method, bits, group, calibration, alpha)
    return [
        getattr(m, text) / getattr(full, text)
        for m in MEASURED
        if (m.model, m.method, m.bits, m.group, m.calibration, m.alpha) == wanted
    ]


def left(ratios: Sequence[float]) -> str:
    """The mean as a factor: two decimals, or two digits where it is beyond a hundred."""
    value = fmean(ratios)
    return f"{value:.2f} times" if value < 100 else f"{float(f'{value:.2g}'):,.0f} times"
