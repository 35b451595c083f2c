"""How fast tiled attention is in plain torch, what memory it takes, and how fast plans are priced.

Run with ``python -m benchmarks.flash_attention``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks._harness import row, sample, write
from gpuedu.flash_attention.cost import attention_time, plan_traffic, traffic, work
from gpuedu.flash_attention.plan import AttentionShape, Tiles, version_2, version_2_backward
from gpuedu.flash_attention.run import attention, peak_extra_bytes
from gpuedu.hardware import GPUS

HEADS, HEAD_DIM = 8, 64


def inputs(length: int, *, gradients: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, HEADS, length, HEAD_DIM, generator=generator).requires_grad_(gradients)
        for _ in range(3)
    ]


def sdpa(q, k, v, causal):
    return scaled_dot_product_attention(q, k, v, is_causal=causal)


def tiled(q, k, v, causal):
    return attention(q, k, v, causal=causal)


def standard(q, k, v, causal):
    """All scores at once, as it is written in a notebook."""
    scores = q @ k.mT * HEAD_DIM**-0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return torch.softmax(scores, -1) @ v


def with_backward(function: Callable, tensors: list[torch.Tensor], causal: bool) -> None:
    out = function(*tensors, causal)
    torch.autograd.grad(out, tensors, torch.ones_like(out))


def taking_turns(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Samples of each call, one of each after the other, so that all see the same machine."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def forward(causal: bool) -> dict:
    rows = []
    for length in (512, 1024, 2048, 4096, 8192):
        tensors = inputs(length)
        ways = {"gpuedu": tiled, "sdpa": sdpa} | ({"standard": standard} if length <= 4096 else {})
        assert (tiled(*tensors, causal) - sdpa(*tensors, causal)).abs().max() < 2e-6
        repeats = 7 if length <= 4096 else 3
        size = {"tokens": length, "heads": HEADS, "head_dim": HEAD_DIM}
        calls = {name: partial(way, *tensors, causal) for name, way in ways.items()}
        rows.append(row(size, taking_turns(calls, repeats)))
        print(causal, size, f"{1 / rows[-1]['times_ours']['sdpa']:.2f} times SDPA's time")
    target = {"of": "sdpa", "at_most": 1.6 if causal else 1.25, "size": {"tokens": 4096}}
    name = f"attention forward, {'causal' if causal else 'without a mask'}"
    return {"name": name, "target_ratio": target, "rows": rows}


def both_passes(causal: bool) -> dict:
    rows = []
    for length in (512, 1024, 2048, 4096):
        tensors = inputs(length, gradients=True)
        ways = {"gpuedu": tiled, "sdpa": sdpa, "standard": standard}
        calls = {name: partial(with_backward, way, tensors, causal) for name, way in ways.items()}
        size = {"tokens": length, "heads": HEADS, "head_dim": HEAD_DIM}
        rows.append(row(size, taking_turns(calls, 3)))
        print("both", causal, size, {n: f"{1e3 * s:.0f} ms" for n, s in rows[-1]["median_s"].items()})
    name = f"attention forward and backward, {'causal' if causal else 'without a mask'}"
    return {"name": name, "rows": rows}


def extra_bytes(way: Callable, tensors: list[torch.Tensor]) -> int:
    """Bytes of tensors alive at once beside Q, K, V and the result."""
    return peak_extra_bytes(lambda: way(*tensors, False)) - tensors[0].nbytes


def one_head(length: int) -> list[torch.Tensor]:
    return [t[:, :1].contiguous() for t in inputs(length)]


def memory() -> dict:
    """Bytes beside inputs and result, of one head up to 32,768 tokens; and what one run took."""
    rows = []
    for length in (1024, 2048, 4096, 8192, 16384, 32768):
        tensors = one_head(length)
        ways = {"gpuedu": tiled} | ({"standard": standard} if length <= 8192 else {})
        calls = {name: partial(way, *tensors, False) for name, way in ways.items()}
        rows.append(row({"tokens": length, "heads": 1, "head_dim": HEAD_DIM}, taking_turns(calls, 1)))
        rows[-1]["extra_bytes"] = {name: extra_bytes(way, tensors) for name, way in ways.items()}
        print("memory", rows[-1]["size"], rows[-1]["extra_bytes"])
    for each in rows:
        if not each["times_ours"]:
            del each["times_ours"]  # standard attention would take gigabytes
    eight_heads = {name: extra_bytes(way, inputs(4096)) for name, way in
                   (("gpuedu", tiled), ("standard", standard))}  # fmt: skip
    share = eight_heads["gpuedu"] / eight_heads["standard"]
    print(f"at 4,096 tokens and {HEADS} heads {share:.4f} of standard attention's extra memory")
    return {"name": "attention of one head as it grows", "rows": rows,
            "extra_bytes_at_4096_tokens_8_heads": eight_heads}  # fmt: skip


def price_by_formula(length: int) -> None:
    a = AttentionShape(length, length, 128, heads=32, kv_heads=8, causal=True)
    for name in ("standard", "version_1", "version_2", "version_2_backward"):
        traffic(name, a, Tiles(128, 128))
        work(name, a, Tiles(128, 128))
        attention_time(name, a, Tiles(128, 128), GPUS["H100-SXM"])


def price_by_plan(length: int) -> None:
    a = AttentionShape(length, length, 128, causal=True)
    for make in (version_2, version_2_backward):
        plan_traffic(make(a, Tiles(128, 128)))


def pricing() -> dict:
    rows = []
    for length in (2**12, 2**14, 2**16, 2**20):
        ways = {"gpuedu": price_by_formula} | (
            {"plan, step by step": price_by_plan} if length <= 2**14 else {}
        )
        samples = {name: sample(partial(way, length)) for name, way in ways.items()}
        rows.append(row({"tokens": length}, samples))
        print("price", length, {n: f"{1e3 * s:.2f} ms" for n, s in rows[-1]["median_s"].items()})
    for each in rows:
        if not each["times_ours"]:
            del each["times_ours"]  # there is no rival
    return {"name": "price plans by formula", "target_s": {"tokens": 2**20, "seconds": 1.0}, "rows": rows}


def main() -> None:
    benchmarks = [
        forward(False),
        forward(True),
        both_passes(False),
        both_passes(True),
        memory(),
        pricing(),
    ]
    print(write("flash_attention", ["torch"], benchmarks).name)


if __name__ == "__main__":
    main()
