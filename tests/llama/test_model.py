"""The model against transformers' Llama, its cache against full passes, its parts against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gpuedu.llama import (
    KVCache,
    Llama,
    LlamaConfig,
    RMSNorm,
    causal_attention,
    linear_layers,
    replace_linear,
    rotate,
)
from gpuedu.llama.hugging_face import read_config, read_model
from gpuedu.transformer import MODELS, Transformer

VOCABULARY = 50


def shape(**changes) -> Transformer:
    sizes = {"layers": 2, "hidden_size": 32, "attention_heads": 4, "kv_heads": 2, "head_dim": 8}
    sizes |= {"ffn_hidden_size": 48, "gated_ffn": True, "vocab_size": VOCABULARY, "tied_embeddings": True}
    return Transformer(**sizes | {"biases": "none", "norm": "rmsnorm"} | changes)


def model(seed: int = 0, **changes) -> Llama:
    """A model whose weights are large enough for attention to matter."""
    made = Llama(LlamaConfig(shape(**changes), context_length=64), seed)
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
    return made.eval()


def some_ids(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, size, generator=torch.Generator().manual_seed(seed))


# --- against transformers ------------------------------------------------------------------------------

THEIRS = {
    "grouped queries, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "one KV head, own head": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "as many KV heads, wide heads": {"num_key_value_heads": 4, "head_dim": 16},
    "another base and epsilon": {"rope_theta": 1e5, "rms_norm_eps": 1e-3},
    "stretched as Llama 3.1": {
        "max_position_embeddings": 256,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def theirs(seed: int = 0, **changes) -> transformers.LlamaForCausalLM:
    """A random model of transformers, its weights large enough for attention to matter."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2}
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


@pytest.mark.parametrize("case", THEIRS)
def test_logits_are_those_of_transformers(case, tmp_path):
    them = theirs(**THEIRS[case])
    them.save_pretrained(tmp_path)
    us, ids = read_model(tmp_path), some_ids(3, 60)
    with torch.no_grad():
        expected, found = them(ids).logits, us(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_transformers(tmp_path):
    them = theirs(num_key_value_heads=2, tie_word_embeddings=True)
    them.save_pretrained(tmp_path)
    us, ids = read_model(tmp_path), some_ids(2, 30)
    for each in (them(ids).logits, us(ids)):
        functional.cross_entropy(each[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = {name.removeprefix("model."): p.grad for name, p in them.named_parameters()}
    for name, parameter in us.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_parameters_are_those_of_the_shape():
    for changes in ({}, {"tied_embeddings": False}, {"head_dim": 16}):
        of_shape = shape(**changes)
        assert sum(p.numel() for p in Llama(LlamaConfig(of_shape)).parameters()) == of_shape.parameters()


# --- the cache -----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_any_pieces_with_a_cache_are_the_whole_at_once(cuts, seed):
    us, ids = model(seed), some_ids(2, sum(cuts), seed=seed)
    cache = KVCache(us.config, batch=2, capacity=sum(cuts))
    with torch.no_grad():
        pieces = [us(piece, cache) for piece in ids.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), us(ids), rtol=1e-4, atol=1e-5)
    assert cache.length == sum(cuts)


def test_a_truncated_cache_is_as_if_the_rest_had_not_been_said():
    us, ids, other = model(), some_ids(1, 9), some_ids(1, 4, seed=1)
    cache = KVCache(us.config)
    with torch.no_grad():
        us(ids, cache)
        cache.truncate(5)
        found = us(other, cache)
        expected = us(torch.cat((ids[:, :5], other), dim=1))[:, 5:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_cache_knows_its_bytes_and_its_room():
    config = LlamaConfig(shape(), context_length=64)
    cache = KVCache(config, batch=3, capacity=10, dtype=torch.float16)
    assert cache.memory_bytes == 3 * 10 * shape().kv_cache_bytes_per_token(2)
    k = torch.zeros(3, 2, 11, 8)
    with pytest.raises(ValueError, match="11 tokens: must be at most capacity=10"):
        cache.append(0, k, k)
    with pytest.raises(ValueError, match=r"must be \(3, 2, tokens, 8\)"):
        cache.append(0, k[:2], k[:2])
    with pytest.raises(ValueError, match="length=1: must be from 0 to 0"):
        cache.truncate(1)
    with pytest.raises(ValueError, match="capacity=0"):
        KVCache(config, capacity=0)


def test_last_only_is_the_last():
    us, ids = model(), some_ids(2, 7)
    torch.testing.assert_close(us(ids, last_only=True), us(ids)[:, -1:])


# --- attention -----------------------------------------------------------------------------------------


def plain_attention(q, k, v):
    """The formula, with a loop over query heads."""
    tokens, context, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    hidden = torch.ones(tokens, context, dtype=torch.bool).triu(context - tokens + 1)
    heads = []
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // group].mT / math.sqrt(q.shape[3])
        heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, h // group])
    return torch.stack(heads, dim=1)


@given(
    tokens=st.integers(1, 9),
    before=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_causal_attention_is_its_formula(tokens, before, kv_heads, group, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, kv_heads * group, tokens, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, before + tokens, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(causal_attention(q, k, v), plain_attention(q, k, v))


def test_more_queries_than_keys_are_an_error():
    with pytest.raises(ValueError, match="3 queries: must be at most the 2 keys"):
        causal_attention(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))


def test_the_model_runs_on_another_attention():
    us, ids, seen = model(), some_ids(2, 9), []

    def counted(q, k, v):
        seen.append((q.shape, k.shape))
        return plain_attention(q, k, v)

    with torch.no_grad():
        expected = us(ids)
        assert us.use_attention(counted) is us
        torch.testing.assert_close(us(ids), expected, rtol=1e-4, atol=1e-5)
    assert seen == [((2, 4, 9, 8), (2, 2, 9, 8))] * 2


# --- linear layers -------------------------------------------------------------------------------------


def test_linear_layers_stand_in_order_of_execution():
    us, order = model(), []
    for name, linear in linear_layers(us).items():
        linear.register_forward_hook(lambda *_, name=name: order.append(name))
    us(some_ids(1, 3))
    assert order == list(linear_layers(us))
    assert len(order) == 7 * us.config.shape.layers
    weights = sum(linear.weight.numel() for linear in linear_layers(us).values())
    norms = (2 * us.config.shape.layers + 1) * us.config.shape.hidden_size
    assert weights == us.config.shape.parameters() - us.config.shape.embedding_parameters() - norms


def test_a_replaced_linear_layer_is_used():
    us, ids = model(), some_ids(1, 5)
    before = us(ids)
    name = "layers.1.mlp.down_proj"

    class Doubled(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return 2 * self.linear(x)

    replace_linear(us, name, Doubled(linear_layers(us)[name]))
    doubled = us(ids)
    assert (doubled - before).abs().max() > 1e-3
    with torch.no_grad():
        linear_layers(us)[name].linear.weight.mul_(0.5)
    torch.testing.assert_close(us(ids), before)
    with pytest.raises(ValueError, match="name='lm_head': must be a linear layer"):
        replace_linear(us, "lm_head", torch.nn.Identity())


def test_layer_by_layer_is_the_whole():
    us, ids = model(), some_ids(2, 6)
    hidden, rotary = us.embed_tokens(ids), us.rotary(torch.arange(6))
    for layer in us.layers:
        hidden = layer(hidden, rotary)
    torch.testing.assert_close(us.lm_head(us.norm(hidden)), us(ids))


# --- rotary positions and norm -------------------------------------------------------------------------


def rotated(vector: torch.Tensor, position: int, us: Llama) -> torch.Tensor:
    return rotate(vector.view(1, 1, 1, -1), us.rotary(torch.tensor([position]))).flatten()


@given(m=st.integers(0, 60), n=st.integers(0, 60), shift=st.integers(0, 60), seed=st.integers(0, 99))
def test_a_score_depends_on_the_distance_alone(m, n, shift, seed):
    us = model().double()
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    here = rotated(q, m, us) @ rotated(k, n, us)
    there = rotated(q, m + shift, us) @ rotated(k, n + shift, us)
    assert math.isclose(here, there, rel_tol=1e-4, abs_tol=1e-4)  # angles are float32


def test_rotation_keeps_lengths_and_turns_each_pair_by_its_angle():
    us = model().double()
    q = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotated(q, 0, us), q)
    pairs = torch.complex(q[:4], q[4:])
    angles = torch.tensor([7 * 10000.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
    expected = pairs * torch.polar(torch.ones(4, dtype=torch.float64), angles)
    torch.testing.assert_close(
        rotated(q, 7, us), torch.cat((expected.real, expected.imag)), rtol=1e-5, atol=1e-5
    )


def test_positions_may_differ_between_sequences():
    us, ids = model(), some_ids(2, 6)
    shifted = torch.stack((torch.arange(6), torch.arange(6) + 20))
    # scores depend on distances alone, so the logits of a sequence do not change when it is moved as a whole
    torch.testing.assert_close(us(ids, positions=shifted), us(ids), rtol=1e-3, atol=1e-4)
    spread = torch.stack((torch.arange(6), torch.arange(6) * 3))
    moved = (us(ids, positions=spread) - us(ids)).abs().amax((1, 2))
    assert moved[0] < 1e-4 < 1e-3 < moved[1]


def test_rmsnorm_is_torchs():
    norm, x = RMSNorm(16, 1e-3), torch.randn(3, 5, 16)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
    torch.testing.assert_close(norm(x), functional.rms_norm(x, (16,), norm.weight, 1e-3))
    tiny = torch.full((1, 16), 1e-3, dtype=torch.float16)  # whose squares float16 cannot hold
    torch.testing.assert_close(
        RMSNorm(16, 1e-12).half()(tiny), torch.ones(1, 16, dtype=torch.float16), rtol=1e-2, atol=0
    )


# --- dtypes, seeds, bad input --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_near(dtype):
    us, ids = model(), some_ids(2, 9)
    expected = us(ids)
    found = model().to(dtype)(ids)
    assert found.dtype == dtype
    error = (found.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float64 else 0.05)


def test_the_same_seed_gives_the_same_model():
    config = LlamaConfig(shape())
    first, second, other = (Llama(config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])


def test_initial_weights_foretell_nothing():
    us, ids = Llama(LlamaConfig(shape())), some_ids(4, 30)
    loss = functional.cross_entropy(us(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss - math.log(VOCABULARY)) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gated_ffn": False}, "shape.gated_ffn=False: must be True in a Llama"),
        ({"biases": "qkv"}, "shape.biases='qkv': must be 'none' in a Llama"),
        ({"norm": "layernorm"}, "shape.norm='layernorm': must be 'rmsnorm'"),
        ({"learned_positions": 8}, "shape.learned_positions=8: must be 0"),
        ({"head_dim": 7}, "shape.head_dim=7: must be even"),
    ],
)
def test_other_kinds_of_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(shape(**changes))


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"rope_theta": 0.0}, "rope_theta=0.0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan"),
        ({"context_length": 0}, "context_length=0"),
        ({"rope_divisors": (1.0,)}, "rope_divisors: must be head_dim / 2 = 4 numbers, not 1"),
    ],
)
def test_figures_out_of_range_are_refused(figures, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(shape(), **figures)


def test_things_that_are_no_shape_or_no_config_are_refused():
    with pytest.raises(TypeError, match="shape='smollm2'"):
        LlamaConfig("smollm2")
    with pytest.raises(TypeError, match="must be a LlamaConfig"):
        Llama(MODELS["smollm2-135m"])
    with pytest.raises(ValueError, match="mla"):
        LlamaConfig(MODELS["deepseek-v3"])


def test_ids_that_do_not_fit_are_refused():
    us = model()
    with pytest.raises(ValueError, match=r"ids of shape \(3,\): must be \(batch, tokens\)"):
        us(some_ids(3))
    with pytest.raises(ValueError, match=r"ids of shape \(1, 0\)"):
        us(some_ids(1, 0))
    with pytest.raises(ValueError, match="65 tokens: must be at most context_length=64"):
        us(some_ids(1, 65))
    for positions, message in (([62, 63, 64], "positions from 62 to 64"), ([-1, 0, 1], "positions from -1")):
        with pytest.raises(ValueError, match=message):
            us(some_ids(1, 3), positions=torch.tensor(positions))
    assert us(some_ids(1, 3), positions=torch.tensor([61, 62, 63])).shape[1] == 3


def test_read_config_knows_old_and_new_files():
    old = theirs().config.to_dict()
    assert read_config(old).rope_theta == 10000.0
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert read_config(old | rope).rope_theta == 7.0
    del old["rope_parameters"]
    assert read_config(old | {"rope_theta": 9.0}).rope_theta == 9.0
