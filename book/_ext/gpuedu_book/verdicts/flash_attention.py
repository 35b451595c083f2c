"""Numbers in the verdicts on FlashAttention."""

from __future__ import annotations

from gpuedu.flash_attention.cost import (
    GPT2_MEDIUM,
    attention_time,
    best_splits,
    extra_elements,
    figure_2,
    kernel_times,
    traffic,
    work,
)
from gpuedu.flash_attention.plan import AttentionShape, Tiles
from gpuedu.hardware import DTYPE_BYTES, GPUS
from gpuedu.transformer import MODELS

A100, LARGE = GPUS["A100-40GB"], GPUS["A100-80GB"]
TILES = Tiles(64, 384)


def c32() -> dict[str, object]:
    """Bytes, memory and FLOPs of GPT-2 medium's attention, standard and tiled, forward and backward."""
    rows = figure_2()
    flops = [
        sum(work(p, GPT2_MEDIUM, TILES).matmul_flops for p in (name, f"{name}_backward"))
        for name in ("version_1", "standard")
    ]
    scores = extra_elements("standard", GPT2_MEDIUM, TILES) * DTYPE_BYTES["fp16"]  # S and P
    kept = extra_elements("version_2", GPT2_MEDIUM, TILES) * DTYPE_BYTES["fp32"]  # LSE
    wide = AttentionShape(1024, 1024, 128, heads=8, batch=64)
    small = [traffic(p, wide, Tiles(16, 16)).nbytes(2) for p in ("version_1", "standard")]
    return {
        "shape": "GPT-2 medium",
        "width": wide.head_dim,
        "standard_gb": f"{rows['standard'].hbm_gb:.1f}",
        "flash_gb": f"{rows['version_1'].hbm_gb:.2f}",
        "more_flops": f"{100 * (flops[0] / flops[1] - 1):.0f}",
        "scores_gb": f"{scores / 1e9:.2f}",
        "kept_mb": f"{kept / 1e6:.2f}",
        "memory_ratio": f"{scores / kept:,.0f}",
        "block": 16,
        "worse": f"{small[0] / small[1]:.1f}",
    }


def c33() -> dict[str, object]:
    """Where tiles gain, where they do not, and what attention is of a whole model."""
    decode, tile = AttentionShape(1, 65536, 128, heads=16, kv_heads=2), Tiles(1, 128)
    splits = best_splits(decode, tile, A100)
    alone = attention_time("version_2", decode, tile, A100)
    split = attention_time("split_kv", decode, tile, A100, splits=splits)
    bytes_ratio = traffic("version_2", decode, tile).nbytes(2) / traffic("standard", decode, tile).nbytes(2)
    shares = {n: f"{100 * _share(n):.0f}" for n in (512, 4096, 65536)}
    large = attention_time("version_2", decode, tile, LARGE)
    return {
        "gpu": "A100",
        "card": A100.name,
        "large_card": LARGE.name,
        "large_us": f"{1e6 * large:,.0f}",
        "model": "Llama 2 7B",
        "keys": f"{decode.keys:,}",
        "alone_us": f"{1e6 * alone:,.0f}",
        "split_us": f"{1e6 * split:.0f}",
        "busy": f"{100 * kernel_times('version_2', decode, tile, A100)[0].busy:.0f}",
        "same_bytes": f"{100 * abs(bytes_ratio - 1):.1f}",
        "short": "512",
        "short_share": shares[512],
        "middle": "4,096",
        "middle_share": shares[4096],
        "long": "65,536",
        "long_share": shares[65536],
    }


def _share(length: int) -> float:
    """Share of Llama 2 7B's forward FLOPs that is in scores and values."""
    model = MODELS["llama-2-7b"]
    one_layer = work("standard", AttentionShape(length, length, model.head_dim, model.attention_heads), TILES)
    scores = model.layers * one_layer.matmul_flops
    return scores / (scores + 2 * length * model.parameters())
