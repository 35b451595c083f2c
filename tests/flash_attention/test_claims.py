"""The source's claims on FlashAttention, each decided by a count or a run."""

import pytest
import torch

from gpuedu.flash_attention.cost import (
    DECODING_TABLE,
    GPT2_MEDIUM,
    attention_time,
    best_splits,
    extra_elements,
    figure_2,
    traffic,
    work,
)
from gpuedu.flash_attention.plan import AttentionShape, Op, Tiles, version_1, version_1_backward
from gpuedu.flash_attention.run import attention, peak_extra_bytes
from gpuedu.hardware import GPUS
from gpuedu.transformer import MODELS
from gpuedu_book.verdicts.flash_attention import c32, c33

# C32: fusion in SRAM, and the score matrix never travels to memory.


def test_c32_no_step_moves_a_score():
    """What crosses is rows of Q, K, V, O and statistics; S and P are made on the chip and stay there."""
    for plan in (version_1, version_1_backward):
        moved = {
            s.what for s in plan(AttentionShape(256, 256, 16), Tiles(64, 64)).steps if s.op is not Op.COMPUTE
        }
        assert moved.isdisjoint({"S", "P", "dP", "dS"})
    rows = figure_2()
    assert rows["standard"].hbm_gb / rows["version_1"].hbm_gb == pytest.approx(6.2, abs=0.05)


def test_c32_memory_doubles_with_the_length_and_standards_quadruples():
    def extra(length, plan):
        q, k, v = torch.randn(3, 1, 2, length, 16)
        measured = peak_extra_bytes(lambda: attention(q, k, v, plan=plan, tiles=Tiles(32, 32)))
        return measured - q.nbytes

    for length in (256, 512):
        assert extra(2 * length, "standard") / extra(length, "standard") == pytest.approx(4, rel=0.05)
        assert extra(2 * length, "version_2") < 2 * extra(length, "version_2")


def test_c32_a_fuser_would_not_find_it():
    """More FLOPs, and numbers that standard attention does not have: running maxima and sums."""
    tile = Tiles(64, 384)
    ratio = [
        sum(work(p, GPT2_MEDIUM, tile).matmul_flops for p in (name, f"{name}_backward"))
        for name in ("version_1", "standard")
    ]
    assert ratio[0] / ratio[1] == pytest.approx(7 / 6)
    assert work("version_1", GPT2_MEDIUM, tile).rescaled > 0
    assert work("standard", GPT2_MEDIUM, tile).rescaled == 0


def test_c32_flips_with_tiles_that_are_too_small():
    wide = AttentionShape(1024, 1024, 128, heads=8, batch=64)
    tiny, good, standard = (
        traffic(plan, wide, tile).nbytes(2)
        for plan, tile in (
            ("version_1", Tiles(16, 16)),
            ("version_1", Tiles(64, 384)),
            ("standard", Tiles(16, 16)),
        )
    )
    assert good < standard < tiny


def test_c32_bytes_that_a_forward_keeps():
    """S and P in two bytes against one log-sum-exp a row in four, by hand and on real tensors."""
    batch, heads, length = 64, 16, 1024
    scores, kept = 2 * 2 * batch * heads * length**2, 4 * batch * heads * length
    said = c32()
    assert (said["scores_gb"], said["kept_mb"]) == (f"{scores / 1e9:.2f}", f"{kept / 1e6:.2f}")
    assert said["memory_ratio"] == f"{scores / kept:,.0f}" == "1,024"
    q, k = torch.randn(2, 2, 2, 256, 16, dtype=torch.float16)
    products = q @ k.mT
    probabilities, lse = torch.softmax(products, -1), torch.logsumexp(products.float(), -1)
    assert (products.nbytes + probabilities.nbytes) / lse.nbytes == 256  # N_k, and not 2 N_k


# C33: it speeds attention up enormously.


def test_c33_bytes_and_time_of_many_queries():
    """Where the paper measured, the roofline alone gives a factor; short rows and small heads gain less."""
    rows = figure_2()
    assert 2 < rows["standard"].roofline_ms / rows["version_1"].roofline_ms < 41.7 / 7.3 + 1
    gains = []
    for length in (64, 1024, 16384):
        a = AttentionShape(length, length, 64, heads=16, batch=64)
        times = [attention_time(p, a, Tiles(128, 64), GPUS["A100-40GB"]) for p in ("standard", "version_2")]
        gains.append(times[0] / times[1])
    assert gains == sorted(gains) and gains[0] < 2 < gains[-1]


def test_c33_one_query_gains_nothing_from_tiles_alone():
    decode, tile = AttentionShape(1, 65536, 128, heads=16, kv_heads=2), Tiles(1, 128)
    a100 = GPUS["A100-80GB"]
    standard, second = (traffic(p, decode, tile).nbytes(2) for p in ("standard", "version_2"))
    assert second == pytest.approx(standard, rel=0.03)  # the scores of one query are next to nothing
    alone = attention_time("version_2", decode, tile, a100)
    split = attention_time("split_kv", decode, tile, a100, splits=best_splits(decode, tile, a100))
    assert alone > attention_time("standard", decode, tile, a100)  # 16 programs on 108 multiprocessors
    assert alone / split > 25


def test_c33_published_decoding_fits_the_smaller_card():
    """The source names no memory size: with the 80 GB card's bandwidth the roofline is below every row."""
    tile, misses = Tiles(1, 128), {}
    for name in ("A100-40GB", "A100-80GB"):
        misses[name] = [
            1e6
            * attention_time(
                "version_2",
                AttentionShape(1, keys, 128, heads=16, kv_heads=2, batch=batch),
                tile,
                GPUS[name],
            )
            / printed
            - 1
            for batch, keys, _, printed, _ in DECODING_TABLE
        ]
    assert max(map(abs, misses["A100-40GB"])) < 0.125
    assert max(misses["A100-80GB"]) < -0.15 and min(misses["A100-80GB"]) > -0.33
    said = c33()
    assert (said["card"], said["large_card"]) == tuple(misses)
    ratio = float(said["large_us"].replace(",", "")) / float(said["alone_us"].replace(",", ""))
    assert ratio == pytest.approx(1555 / 2039, rel=1e-3)  # bound by bandwidth on both


def attention_share(length: int) -> float:
    """Share of a forward's FLOPs that is in scores and values, for Llama-2 7B's shape."""
    model = MODELS["llama-2-7b"]
    scores = work(
        "standard", AttentionShape(length, length, model.head_dim, model.attention_heads), Tiles(64, 64)
    )
    in_layers = model.layers * scores.matmul_flops
    return in_layers / (in_layers + 2 * length * model.parameters())


def test_c33_a_whole_model_gains_what_attention_is_of_it():
    shares = [attention_share(n) for n in (512, 4096, 65536)]
    assert shares[0] < 0.03 and shares[1] < 0.2 and shares[2] > 0.6
    assert shares == sorted(shares)


def test_c33_memory_it_saves_is_linear_against_quadratic():
    tile = Tiles(64, 64)
    ratio = [
        extra_elements("standard", AttentionShape(n, n, 64), tile)
        / extra_elements("version_2", AttentionShape(n, n, 64), tile)
        for n in (1024, 2048)
    ]
    assert ratio == [2 * 1024, 2 * 2048]
