"""The source's claims on quantization, each decided by a run, a price or a measurement that is kept."""

import copy
import inspect
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import nn

from gpuedu.hardware import GPUS
from gpuedu.quantization import run
from gpuedu.quantization.cost import PRODUCT_GAINS, decode_step, kv_bytes, linear_bytes, prefill
from gpuedu.quantization.plan import FORMATS, KVQuantization
from gpuedu.quantization.plot.measured import MEASURED
from gpuedu.quantization.run import QATLinear, awq, calibrate, gptq, quantize_model, smooth_model
from gpuedu.transformer import MODELS
from gpuedu_book.verdicts.quantization import c39

LLAMA = MODELS["llama-3-8b"]
A100, H100, B200 = (GPUS[name] for name in ("A100-80GB", "H100-SXM", "B200"))
ROOT = Path(__file__).resolve().parents[2]
RESULTS, MEASUREMENTS = ROOT / "benchmarks" / "results" / "quantization.json", ROOT / "measurements"

# C36: fewer bits shrink a model's memory and its demand for bandwidth.


def step_bytes(name, batch, quantization=None):
    work = decode_step(LLAMA, H100, FORMATS[name], batch, 2048, quantization)
    return work.weight_bytes + work.kv_bytes


def test_c36_scales_and_zeros_count():
    ratio = linear_bytes(LLAMA, FORMATS["bf16"]) / linear_bytes(LLAMA, FORMATS["int4_g128"])
    assert ratio == pytest.approx(16 / 4.15625)


def test_c36_the_cache_does_not_shrink_with_the_weights():
    gains = [step_bytes("bf16", batch) / step_bytes("int4_g128", batch) for batch in (1, 32, 256)]
    assert gains[0] > 3 > gains[1] > 1.5 > gains[2] > 1
    cache = 256 * kv_bytes(LLAMA, 2048)
    assert cache > 0.8 * step_bytes("bf16", 256)  # most of what a step for many reads


def test_c36_a_quantized_cache_does():
    how = KVQuantization(bits=2)
    assert step_bytes("bf16", 256) / step_bytes("int4_g128", 256, how) > 3


# C37: arithmetic in low precision is usually faster.


def test_c37_a_prompt_gains_where_the_tensor_cores_know_the_format():
    def gain(gpu, name):
        plain, quantized = (prefill(LLAMA, gpu, FORMATS[n], 2048).seconds for n in ("bf16", name))
        return plain / quantized

    assert gain(H100, "fp8") > 1.8 and gain(B200, "nvfp4") > 3
    assert gain(A100, "fp8") == gain(H100, "nvfp4") == 1
    assert gain(H100, "int4_g128") == gain(B200, "int4_g128") == 1  # weights alone: multiplied in 16 bits


def test_c37_one_reader_gains_by_bytes_alone():
    plain, four = (decode_step(LLAMA, H100, FORMATS[n], 1, 2048) for n in ("bf16", "int4_g128"))
    assert plain.compute_s == four.compute_s and plain.seconds > 3 * four.seconds


def gains_of(gpu, format):
    return {(g.tokens_from, g.tokens_to): g for g in PRODUCT_GAINS if (g.gpu, g.format) == (gpu, format)}


def test_c37_summary_of_measured_gpus_is_the_one_that_is_kept():
    kept = json.loads((MEASUREMENTS / "gemm_formats.json").read_text())["results"]
    assert [tuple(g) for g in PRODUCT_GAINS] == [tuple(result.values()) for result in kept]


def test_c37_measured_gpus_gain_from_weights_alone_with_few_tokens_and_from_both_with_many():
    weights, both = gains_of("A100", "int4_wo"), gains_of("A100", "sq")
    assert weights[1, 32].median_gain > 2 and weights[1, 32].faster_share > 0.9
    assert weights[512, None].median_gain < 1 and weights[512, None].faster_share < 0.1
    assert min(g.faster_share for g in both.values()) > 0.9
    assert gains_of("H100", "fp8")[512, None].faster_share > 0.95
    assert gains_of("B200", "nvfp4")[512, None].median_gain > 2


def test_c37_measured_eight_bits_are_slower_than_sixteen_for_few_tokens_on_a_fast_gpu():
    few = gains_of("B200", "fp8")[1, 32]
    assert few.median_gain < 1 and few.faster_share < 0.5


def test_c37_on_this_machine_it_depends_on_size_and_unit():
    """The recorded benchmark: integers win where a unit multiplies them and there is enough to do."""
    benchmarks = json.loads(RESULTS.read_text())["benchmarks"]
    (products,) = (b for b in benchmarks if b["name"] == "one linear layer in few bits")
    gains = {
        (row["size"]["width"], row["size"]["tokens"]): {
            name: row["median_s"]["FP32"] / seconds for name, seconds in row["median_s"].items()
        }
        for row in products["rows"]
    }
    assert gains[4096, 1024]["INT8, dynamic"] > 1.5
    assert gains[576, 1]["INT8, dynamic"] < 1  # over before it is rounded
    assert gains[4096, 1]["4 bits, expanded"] < 1  # expanding costs more than the bytes save here


# C38: SmoothQuant, AWQ and GPTQ are methods of quantization-aware training or of post-training quantization.


def test_c38_none_of_the_three_trains(small_llama, monkeypatch):
    model, ids = small_llama

    def forbidden(*_, **__):
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    for quantizer in (run.gptq_quantizer(4, group=32), run.awq_quantizer(4, group=32)):
        quantize_model(copy.deepcopy(model), ids, quantizer)
    smooth_model(model, calibrate(model, ids))
    assert all(weights.grad is None for weights in model.parameters())
    for function in (gptq, awq, smooth_model):
        assert "optim" not in inspect.getsource(inspect.getmodule(function))


def test_c38_training_with_rounded_weights_is_another_thing():
    torch.manual_seed(0)
    x, target = torch.randn(200, 16), torch.randn(16, 4)
    layer = QATLinear(nn.Linear(16, 4, bias=False), bits=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (layer(x) - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


# C39: these methods lower the precision and keep the accuracy almost intact.


TEXTS = ("speeches", "moby_dick", "docs")


def draws(method, bits, calibration=None, text="speeches", model="smollm2", group=64, alpha=None):
    """Perplexity over the full model's, one for each draw of the calibration text."""
    (full,) = (m for m in MEASURED if m.model == model and m.method == "fp32")
    wanted = (model, method, bits, group, calibration, alpha)
    found = [m for m in MEASURED if (m.model, m.method, m.bits, m.group, m.calibration, m.alpha) == wanted]
    assert len({m.seed for m in found}) == len(found) > 0
    return [getattr(m, text) / getattr(full, text) for m in found]


def ratio(*args, **options):
    return fmean(draws(*args, **options))


@pytest.mark.parametrize("model", ["smollm2", "tinylm"])
def test_c39_eight_bits_cost_almost_nothing(model):
    for method, calibration in (("rtn", None), ("gptq", "mixed"), ("awq", "mixed")):
        assert ratio(method, 8, calibration, model=model) < 1.02


def test_c39_two_bits_ruin_a_small_model_by_any_of_these_methods():
    assert min(ratio("rtn", 2), ratio("gptq", 2, "mixed"), ratio("awq", 2, "mixed")) > 3


def test_c39_a_model_that_was_hardly_trained_bears_more():
    for method, calibration in (("rtn", None), ("gptq", "mixed")):
        assert ratio(method, 2, calibration, model="tinylm") < ratio(method, 2, calibration) / 2


def test_c39_four_bits_are_close_and_methods_differ():
    rounded, moved, scaled = ratio("rtn", 4), ratio("gptq", 4, "mixed"), ratio("awq", 4, "mixed")
    assert 1.05 < moved < rounded < 1.5 and scaled < rounded


def test_c39_the_calibration_text_decides_at_three_bits():
    """GPTQ calibrated on speeches alone helps speeches, and loses to plain rounding on another text."""
    assert len(draws("gptq", 3, "speeches")) == 3
    assert max(draws("gptq", 3, "speeches")) < ratio("rtn", 3)
    assert min(draws("gptq", 3, "speeches", "docs")) > ratio("rtn", 3, text="docs")
    assert max(draws("gptq", 3, "speeches")) < ratio("gptq", 3, "docs")
    assert min(draws("gptq", 3, "speeches", "docs")) > max(draws("gptq", 3, "mixed", "docs"))
    assert min(draws("gptq", 3, "speeches", "docs")) > ratio("gptq", 3, "docs", "docs")


def test_c39_every_draw_counts_in_what_is_printed():
    """Mean, lowest and highest of the study's own file, none of them a single draw's."""
    results = json.loads((MEASUREMENTS / "quantization_perplexity.json").read_text())["results"]
    (full,) = (r for r in results if r["model"] == "smollm2" and r["method"] == "fp32")
    kept = [
        r["perplexity"]["docs"] / full["perplexity"]["docs"]
        for r in results
        if (r["model"], r["method"], r["bits"], r["group"]) == ("smollm2", "gptq", 3, 64)
        and r["calibration"] == "speeches"
    ]
    printed = c39()
    expected = {"away": fmean(kept), "away_low": min(kept), "away_high": max(kept)}
    for name, value in expected.items():
        assert float(printed[name].split()[0]) == pytest.approx(value, abs=0.011)
    assert printed["draws"] == len(kept) and printed["tokens"] == "2,048"


@pytest.mark.parametrize("text", TEXTS)
def test_c39_smoothquant_keeps_eight_bit_activations_only_with_a_scale_a_token(text):
    for alpha in (0.5, 0.65, 0.8):
        token, tensor = (
            ratio(f"w8a8_{per}_smooth", 8, "mixed", text, group=None, alpha=alpha)
            for per in ("token", "tensor")
        )
        assert 0.99 < token < 1.03
        assert 1.7 < tensor < ratio("w8a8_tensor", 8, text=text, group=None)


def test_c39_what_one_scale_loses_is_the_first_token_where_no_norm_stands():
    """The recorded ablation, activations alone."""
    kept = json.loads((MEASUREMENTS / "smoothquant_sites.json").read_text())
    loudest = kept["loudest_down_proj"]
    assert [site["token"] for site in loudest] == [0, 0, 0]
    assert loudest[0]["largest"] > 100 * loudest[0]["next_token"]
    assert loudest[0]["step"] > 2 * loudest[0]["next_token"] and loudest[0]["others_rounded_to_zero"] == 1
    assert kept["loudest_elsewhere"]["largest"] < min(site["largest"] for site in loudest) / 10
    times = {(r["rounded"], r["smoothing"], r["down_smoothing"]): r["times"] for r in kept["results"]}
    for alpha in (None, 0.5):  # down_proj loses, and smoothing behind norms does not change that
        assert times["down_proj", alpha, None] - 1 > 4 * (times["all but down_proj", alpha, None] - 1)
    assert times["all but down_proj", 0.5, None] < 1.01 < 1.1 < times["all but down_proj", None, None]
    lost = times["all", 0.5, None] - 1
    assert times["all, first token apart", 0.5, None] - 1 < lost / 3
    assert times["all", 0.5, 0.8] < times["all", 0.5, 0.5] < 1 + lost / 3


def test_clip_by_the_weights_error_is_no_sure_gain():
    """What the chapter says of the option "mse", from the study."""
    gain = {
        (bits, group, text): ratio("rtn_mse", bits, text=text, group=group)
        / ratio("rtn", bits, text=text, group=group)
        for bits in (2, 3)
        for group in (32, 64, None)
        for text in TEXTS
    }
    assert max(value for (bits, *_), value in gain.items() if bits == 2) < 1
    assert all(gain[3, 32, text] < 1 < gain[3, None, text] for text in TEXTS)
    assert gain[3, 64, "speeches"] < 1 < gain[3, 64, "docs"]
