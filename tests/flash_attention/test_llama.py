"""A whole language model runs on our attention: same logits, same text, same gradients."""

from functools import partial

import pytest
import torch

from gpuedu.flash_attention.plan import Tiles
from gpuedu.flash_attention.run import attention

llama = pytest.importorskip("gpuedu.llama", reason="gpuedu.llama is not here yet")
transformer = pytest.importorskip("gpuedu.transformer")

TILES = Tiles(8, 8)
WAYS = {
    "version 2": partial(attention, causal=True, tiles=TILES),
    "version 1": partial(attention, causal=True, tiles=TILES, plan="version_1"),
    "split-KV": partial(attention, causal=True, tiles=TILES, plan="split_kv", splits=3),
}


def tiny():
    """Three layers, four heads on two key heads."""
    from dataclasses import replace

    shape = replace(
        transformer.MODELS["smollm2-135m"], layers=3, hidden_size=64, attention_heads=4, kv_heads=2,
        head_dim=16, ffn_hidden_size=96, vocab_size=101,
    )  # fmt: skip
    return llama.Llama(llama.LlamaConfig(shape), seed=0)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_logits_and_gradients_are_sdpas(way):
    ids = torch.randint(0, 101, (2, 37), generator=torch.Generator().manual_seed(1))
    results = []
    for attend in (None, way):
        model = tiny()
        if attend is not None:
            model.use_attention(attend)
        logits = model(ids)
        logits.logsumexp(-1).mean().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    (expected, expected_grads), (logits, grads) = results
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for mine, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_text_with_a_cache_is_sdpas(way):
    """One query against a growing cache: the mask must stand at the bottom right."""
    prompt = list(range(20))
    expected = llama.generate(tiny(), prompt, 12)
    assert llama.generate(tiny().use_attention(way), prompt, 12) == expected
