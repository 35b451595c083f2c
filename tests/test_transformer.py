"""A model's shape against transformers, torch's FLOP counter, what autograd keeps, and published numbers."""

import dataclasses

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpuedu.transformer import MLA, MODELS, MoE, Transformer


def llama_config(layers, hidden, heads, kv_heads, ffn, vocab, **more):
    return hf.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        vocab_size=vocab,
        **more,
    )


# The values of each model's published config.json; GPT-3 in the shape of its paper's table 2.1.
CONFIGS = {
    "gpt2": hf.GPT2Config(n_layer=12, n_embd=768, n_head=12, n_positions=1024, vocab_size=50257),
    "gpt3-175b": hf.GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048, vocab_size=50257),
    "opt-13b": hf.OPTConfig(
        num_hidden_layers=40,
        hidden_size=5120,
        num_attention_heads=40,
        ffn_dim=20480,
        vocab_size=50272,
        word_embed_proj_dim=5120,
        max_position_embeddings=2048,
    ),
    "llama-2-7b": llama_config(32, 4096, 32, 32, 11008, 32000),
    "llama-2-13b": llama_config(40, 5120, 40, 40, 13824, 32000),
    "llama-2-70b": llama_config(80, 8192, 64, 8, 28672, 32000),
    "llama-3-8b": llama_config(32, 4096, 32, 8, 14336, 128256),
    "llama-3-70b": llama_config(80, 8192, 64, 8, 28672, 128256),
    "llama-3-405b": llama_config(126, 16384, 128, 8, 53248, 128256),
    "mistral-7b": hf.MistralConfig(
        num_hidden_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=32000,
        sliding_window=4096,
    ),
    "qwen2.5-7b": hf.Qwen2Config(
        num_hidden_layers=28,
        hidden_size=3584,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    ),
    "deepseek-v3": hf.DeepseekV3Config(
        num_hidden_layers=61,
        hidden_size=7168,
        num_attention_heads=128,
        num_key_value_heads=128,
        intermediate_size=18432,
        vocab_size=129280,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        num_nextn_predict_layers=0,  # the multi-token prediction module is not part of the main model
    ),
    "smollm2-135m": llama_config(30, 576, 9, 3, 1536, 49152, tie_word_embeddings=True),
}


def build(config, device="meta"):
    with torch.device(device):
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.eval()


def numel(model):
    return sum(p.numel() for p in model.parameters())  # shared parameters are yielded once


def counted_flops(model, tokens, device="meta", **inputs):
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(ids, use_cache=True, **inputs)
    return counter.get_total_flops(), output.past_key_values


# Parameters


def test_catalogue_is_complete():
    assert list(MODELS) == list(CONFIGS)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_transformers(name):
    assert MODELS[name].parameters() == numel(build(CONFIGS[name]))


def test_parameters_equal_published_counts():
    # Totals of the published checkpoints' tensors, from their model cards' safetensors index.
    assert MODELS["llama-2-7b"].parameters() == 6_738_415_616
    assert MODELS["llama-3-8b"].parameters() == 8_030_261_248
    assert MODELS["mistral-7b"].parameters() == 7_241_732_096
    # Rounded, from papers and model cards, in 10^9.
    for name, billions, digits in (
        ("gpt2", 0.124, 3),
        ("llama-2-70b", 69, 0),
        ("llama-3-70b", 70.6, 1),
        ("llama-3-405b", 405.9, 1),
        ("qwen2.5-7b", 7.62, 2),
        ("deepseek-v3", 671, 0),
        ("smollm2-135m", 0.135, 3),
    ):
        assert round(MODELS[name].parameters() / 1e9, digits) == billions
    # Qwen2.5-7B's card: 6.53 B without embeddings. Its head is one of its own, as large as the embedding.
    qwen = MODELS["qwen2.5-7b"]
    assert round((qwen.parameters() - 2 * qwen.embedding_parameters()) / 1e9, 2) == 6.53


def test_parameters_equal_narayanan_2021_equation_2():
    for name in ("gpt2", "gpt3-175b"):
        m = MODELS[name]
        layers, h = m.layers, m.hidden_size
        equation = 12 * layers * h**2 + 13 * layers * h + (m.vocab_size + m.learned_positions) * h
        assert m.parameters() == equation + 2 * h  # the equation leaves the last norm out


def test_parts_add_up():
    for m in MODELS.values():
        head = 0 if m.tied_embeddings else m.vocab_size * m.hidden_size
        last_norm = m.hidden_size * (2 if m.norm == "layernorm" else 1)
        layers = sum(m.layer_parameters(i) for i in range(m.layers))
        assert m.embedding_parameters() + layers + last_norm + head == m.parameters()


def test_active_parameters():
    for name, m in MODELS.items():
        assert (m.active_parameters() == m.parameters()) == (name != "deepseek-v3")
    # README_WEIGHTS.md of DeepSeek-V3: 36.6 B activated, with the output head, without the embedding.
    m = MODELS["deepseek-v3"]
    assert round((m.active_parameters() - m.embedding_parameters()) / 1e9, 1) == 36.6
    # A model that visits all its experts is its own active part.
    all_experts = dataclasses.replace(m, moe=dataclasses.replace(m.moe, experts_per_token=256))
    assert all_experts.active_parameters() == all_experts.parameters() == m.parameters()


@st.composite
def shapes(draw):
    """Small Llama shapes with everything that a shape may choose, and their transformers configs."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 5))  # need not be hidden_size / heads
    heads = kv_heads * group
    layers, hidden, ffn = draw(st.integers(1, 3)), heads * draw(st.integers(1, 12)), draw(st.integers(1, 50))
    vocab, tied, biased = draw(st.integers(2, 60)), draw(st.booleans()), draw(st.booleans())
    config = llama_config(
        layers,
        hidden,
        heads,
        kv_heads,
        ffn,
        vocab,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=biased,
        mlp_bias=biased,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    biases = "all" if biased else "none"
    shape = Transformer(layers, hidden, heads, kv_heads, head_dim, ffn, True, vocab, tied, biases, "rmsnorm")
    return shape, config


@settings(max_examples=25, deadline=None)
@given(shapes(), st.integers(1, 9))
def test_any_llama_shape_agrees_with_transformers(shape_and_config, tokens):
    shape, config = shape_and_config
    model = build(config)
    assert shape.parameters() == numel(model)
    assert shape.forward_flops(tokens, causal=False) == counted_flops(model, tokens)[0]


# KV cache


def test_trap_11_cache_counts_kv_heads():
    gqa = MODELS["llama-3-70b"]
    assert gqa.kv_cache_bytes_per_token(2) == 327_680
    assert gqa.kv_cache_bytes_per_token(2) * 4096 == 1.25 * 2**30
    mha = dataclasses.replace(gqa, kv_heads=gqa.attention_heads)
    assert mha.kv_cache_bytes_per_token(2) * 4096 == 10 * 2**30  # what counting attention heads gives
    # MLA caches a latent; expanded, every one of 128 heads would keep 192 + 128 numbers.
    mla = MODELS["deepseek-v3"]
    assert mla.kv_cache_bytes_per_token(2) == 70_272
    assert 61 * 128 * (192 + 128) * 2 / mla.kv_cache_bytes_per_token(2) == pytest.approx(71.1, abs=0.05)


def test_cache_equals_published_figures():
    # Zhao et al. 2025 (arXiv:2505.09343), table 1, BF16: KB of 1,000 bytes a token.
    assert MODELS["deepseek-v3"].kv_cache_bytes_per_token() == 70.272e3
    assert MODELS["llama-3-405b"].kv_cache_bytes_per_token() == 516.096e3
    # Kwon et al. 2023 (vLLM), section 3: 800 KB of 1,024 bytes a token of OPT-13B.
    assert MODELS["opt-13b"].kv_cache_bytes_per_token() == 800 * 1024


@pytest.mark.parametrize("name", ["gpt2", "opt-13b", "llama-3-8b", "qwen2.5-7b", "smollm2-135m"])
def test_cache_equals_what_transformers_keeps(name):
    tokens = 11
    _, cache = counted_flops(build(CONFIGS[name]), tokens)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert MODELS[name].kv_cache_bytes_per_token(cache.layers[0].keys.itemsize) * tokens == kept


@given(st.sampled_from(list(MODELS.values())), st.sampled_from([0.5, 1, 2, 4]))
def test_cache_is_linear_in_the_dtype(model, dtype_bytes):
    assert model.kv_cache_bytes_per_token(dtype_bytes) == dtype_bytes * model.kv_cache_bytes_per_token(1)


# FLOPs


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if m.parameters() < 10e9])
def test_flops_equal_torchs_counter(name):
    model, shape = build(CONFIGS[name]), MODELS[name]
    prefill, cache = counted_flops(model, 37)
    assert shape.forward_flops(37, causal=False) == prefill
    decode, _ = counted_flops(model, 1, past_key_values=cache)
    assert shape.forward_flops(1, context=37, causal=False) == decode


def test_flops_of_mla_and_moe_equal_torchs_counter():
    config = hf.DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=2,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=12,
        q_lora_rank=20,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        num_nextn_predict_layers=0,
        pad_token_id=0,
    )
    config._experts_implementation = "eager"  # one plain product per expert, which the counter sees
    model = build(config, device="cpu")
    shape = Transformer(
        3,
        32,
        4,
        4,
        12,
        48,
        True,
        64,
        False,
        "none",
        "rmsnorm",
        mla=MLA(12, 20, 8, 4, 6),
        moe=MoE(8, 3, 16, 2, 1),
    )
    assert shape.parameters() == numel(model)
    assert shape.forward_flops(7, causal=False) == counted_flops(model, 7, device="cpu")[0]


@pytest.mark.parametrize(("tokens", "context"), [(1, 40), (3, 40), (1, 2), (30, 5)])
def test_mla_takes_the_cheaper_of_two_equal_ways(tokens, context):
    """Expanding the latents or absorbing the expansion: same output, different FLOP."""
    heads, latent, nope, rope, v = 4, 24, 8, 4, 6
    generator = torch.Generator().manual_seed(0)
    cached = torch.randn(context + tokens, latent, dtype=torch.float64, generator=generator)
    rotary_key = torch.randn(context + tokens, rope, dtype=torch.float64, generator=generator)
    query = torch.randn(heads, tokens, nope + rope, dtype=torch.float64, generator=generator)
    up_key = torch.randn(heads, latent, nope, dtype=torch.float64, generator=generator)
    up_value = torch.randn(heads, latent, v, dtype=torch.float64, generator=generator)

    def expanded():
        keys, values = cached @ up_key, cached @ up_value
        keys = torch.cat([keys, rotary_key.expand(heads, -1, -1)], -1)
        return torch.softmax(query @ keys.mT, -1) @ values

    def absorbed():
        on_latent = query[..., :nope] @ up_key.mT
        joined, keys = torch.cat([on_latent, query[..., nope:]], -1), torch.cat([cached, rotary_key], -1)
        return torch.softmax(joined @ keys.T, -1) @ cached @ up_value

    flops, results = {}, []
    for way in (expanded, absorbed):
        with FlopCounterMode(display=False) as counter:
            results.append(way())
        flops[way.__name__] = counter.get_total_flops()
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)

    shape = Transformer(
        1,
        16,
        heads,
        heads,
        nope + rope,
        8,
        True,
        10,
        False,
        "none",
        "rmsnorm",
        mla=MLA(latent, None, nope, rope, v),
    )
    around = 16 * heads * (nope + rope) + 16 * (latent + rope) + heads * v * 16 + 3 * 16 * 8 + 16 * 10
    assert shape.forward_flops(tokens, context, causal=False) == 2 * tokens * around + min(flops.values())


def test_flops_equal_narayanan_2021_equation_3():
    # 96 s l h^2 (1 + s / 6h + V / 16 l h) with recomputation: four times the forward pass, where the
    # head runs three times. So forward: 24 s l h^2 (1 + s / 6h) + 2 s h V.
    m, s = MODELS["gpt3-175b"], 2048
    layers, h, vocab = m.layers, m.hidden_size, m.vocab_size
    forward = 24 * s * layers * h**2 + 4 * s**2 * layers * h + 2 * s * h * vocab
    assert m.forward_flops(s, causal=False) == forward
    body, head = forward - 2 * s * h * vocab, 2 * s * h * vocab
    assert 4 * body + 3 * head == pytest.approx(
        96 * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    )


def test_flops_are_close_to_two_a_parameter():
    for m in MODELS.values():
        stored_rows = m.embedding_parameters() if not m.tied_embeddings else 0  # looked up, not multiplied
        assert m.forward_flops(1) == pytest.approx(2 * (m.active_parameters() - stored_rows), rel=0.01)
    # Llama 3 405B: 3.8e25 FLOP for 15.6 T tokens (Llama Team 2024, section 3.2), by 6 N D.
    m = MODELS["llama-3-405b"]
    training = 3 * m.forward_flops(8192) / 8192 * 15.6e12
    assert training == pytest.approx(3.8e25, rel=0.05)  # the excess is attention, which 6 N D leaves out


@given(
    st.sampled_from([m for m in MODELS.values() if m.mla is None]),
    st.integers(1, 10**5),
    st.integers(1, 10**5),
    st.integers(0, 10**5),
)
def test_causal_flops_do_not_depend_on_the_chunks(model, first, second, context):
    parts = model.forward_flops(first, context) + model.forward_flops(second, context + first)
    assert parts == model.forward_flops(first + second, context)
    assert parts < model.forward_flops(first + second, context, causal=False)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(0, 10**5))
def test_chunks_never_make_mla_cheaper(first, second, context):
    model = MODELS["deepseek-v3"]
    parts = model.forward_flops(first, context) + model.forward_flops(second, context + first)
    assert parts >= model.forward_flops(first + second, context)


# Activations


class Layer(nn.Module):
    """One transformer layer in plain torch operations, for autograd to show what it keeps."""

    def __init__(self, shape, dropout):
        super().__init__()
        h, d, f = shape.hidden_size, shape.head_dim, shape.ffn_hidden_size
        self.shape, self.dropout = shape, dropout
        self.q, self.o = nn.Linear(h, shape.attention_heads * d), nn.Linear(shape.attention_heads * d, h)
        self.k, self.v = nn.Linear(h, shape.kv_heads * d), nn.Linear(h, shape.kv_heads * d)
        self.up, self.down = nn.Linear(h, f), nn.Linear(f, h)
        self.gate = nn.Linear(h, f) if shape.gated_ffn else None
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)

    def drop(self, x):
        return torch.native_dropout(x, 0.1, True)[0] if self.dropout else x

    def forward(self, x):  # [sequence, batch, hidden]
        m, (s, b, _) = self.shape, x.shape
        group = m.attention_heads // m.kv_heads
        y = self.norm1(x)
        q = self.q(y).view(s, b * m.kv_heads, group, m.head_dim).permute(1, 2, 0, 3).flatten(1, 2)
        k, v = (p(y).view(s, b * m.kv_heads, m.head_dim).transpose(0, 1) for p in (self.k, self.v))
        weights = self.drop(torch.softmax(torch.bmm(q, k.mT) * m.head_dim**-0.5, -1))
        heads = torch.bmm(weights, v).view(b, m.attention_heads, s, m.head_dim)
        x = x + self.drop(self.o(heads.permute(2, 0, 1, 3).flatten(2)))
        y = self.norm2(x)
        z = functional.silu(self.gate(y)) * self.up(y) if self.gate else functional.gelu(self.up(y))
        return x + self.drop(self.down(z))


def kept_bytes(layer, x):
    """Bytes of all distinct storages that the graph saves, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # holding it, so that no later one takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "ffn"), [(4, 4, 8, 128), (4, 2, 8, 48), (6, 1, 5, 20)]
)
def test_activations_equal_what_autograd_keeps(heads, kv_heads, head_dim, ffn, gated, dropout):
    shape = Transformer(2, 32, heads, kv_heads, head_dim, ffn, gated, 10, True, "all", "layernorm")
    batch, sequence = 3, 6
    layer = Layer(shape, dropout).bfloat16()
    x = torch.randn(sequence, batch, 32, dtype=torch.bfloat16, requires_grad=True)
    statistics = 2 * 2 * batch * sequence * 2  # mean and deviation of two norms, which the formula leaves out
    predicted = shape.activation_bytes(batch, sequence, layers=1, dropout=dropout)
    assert predicted == kept_bytes(layer, x) - statistics
    assert shape.activation_bytes(batch, sequence, dropout=dropout) == 2 * predicted


@pytest.mark.parametrize("name", ["gpt2", "gpt3-175b", "opt-13b"])
@pytest.mark.parametrize(("batch", "sequence"), [(1, 2048), (3, 100)])
def test_activations_equal_korthikanti_2022(name, batch, sequence):
    m = MODELS[name]
    sbh, attention = sequence * batch * m.hidden_size, 5 * m.attention_heads * sequence**2 * batch
    table_2 = {"none": 34 * sbh + attention, "selective": 34 * sbh, "full": 2 * sbh}
    for recompute, layer_bytes in table_2.items():
        assert m.activation_bytes(batch, sequence, recompute=recompute) == m.layers * layer_bytes
    # Section 5 of the paper: 5as/h = 80 for GPT-3, so that selective recomputation saves 70 %.
    gpt3 = MODELS["gpt3-175b"]
    saved = 1 - gpt3.activation_bytes(1, 2048, recompute="selective") / gpt3.activation_bytes(1, 2048)
    assert saved == pytest.approx(80 / 114) == pytest.approx(0.70, abs=0.005)


DENSE = [m for m in MODELS.values() if m.moe is None]


@given(
    st.sampled_from(DENSE),
    st.integers(1, 64),
    st.integers(1, 10**5),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
)
def test_activation_bytes_grow_as_they_should(model, batch, sequence, dropout, dtype_bytes):
    def size(b, s, layers, recompute):
        return model.activation_bytes(
            b, s, layers, dtype_bytes=dtype_bytes, dropout=dropout, recompute=recompute
        )

    for recompute in ("none", "selective", "full"):
        assert size(batch, sequence, 2, recompute) == 2 * batch * size(1, sequence, 1, recompute)
    assert size(1, sequence, 1, "none") > size(1, sequence, 1, "selective") > size(1, sequence, 1, "full")
    assert size(1, 2 * sequence, 1, "none") > 2 * size(1, sequence, 1, "none")  # attention's square
    assert size(1, 2 * sequence, 1, "selective") == 2 * size(1, sequence, 1, "selective")


# Bad input

LLAMA, DEEPSEEK = MODELS["llama-3-8b"], MODELS["deepseek-v3"]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("layers", 0, ValueError),
        ("hidden_size", 4096.0, TypeError),
        ("attention_heads", True, TypeError),
        ("kv_heads", 5, ValueError),
        ("head_dim", -1, ValueError),
        ("learned_positions", -1, ValueError),
        ("gated_ffn", 1, TypeError),
        ("tied_embeddings", None, TypeError),
        ("biases", True, ValueError),
        ("norm", "batchnorm", ValueError),
        ("mla", 512, TypeError),
        ("mla", DEEPSEEK.mla, ValueError),  # kv_heads and head_dim do not fit
        ("moe", 8, TypeError),
        ("moe", MoE(8, 2, 64, dense_layers=32), ValueError),
    ],
)
def test_transformer_rejects(field, value, error):
    with pytest.raises(
        error, match=field if field not in ("mla", "moe") else "mla|moe|kv_heads|dense_layers"
    ):
        dataclasses.replace(LLAMA, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("head_dim", 128), ("kv_heads", 8), ("norm", "layernorm"), ("biases", "qkv")]
)
def test_mla_needs_a_shape_that_fits(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(DEEPSEEK, **{field: value})


def test_moe_has_no_biased_experts():
    with pytest.raises(ValueError, match="biases"):
        dataclasses.replace(LLAMA, biases="all", moe=MoE(8, 2, 64))


def test_parts_reject():
    with pytest.raises(ValueError, match="kv_lora_rank"):
        MLA(0, None, 1, 1, 1)
    with pytest.raises(TypeError, match="q_lora_rank"):
        MLA(1, 1.5, 1, 1, 1)
    with pytest.raises(ValueError, match="experts_per_token=9"):
        MoE(8, 9, 64)
    with pytest.raises(TypeError, match="shared_experts"):
        MoE(8, 2, 64, shared_experts=0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LLAMA.layer_parameters(32), ValueError, "layer=32: must be from 0 to 31"),
        (lambda: LLAMA.layer_parameters(-1), ValueError, "layer=-1"),
        (lambda: LLAMA.kv_cache_bytes_per_token(0), ValueError, "dtype_bytes=0"),
        (lambda: LLAMA.kv_cache_bytes_per_token("bf16"), TypeError, "dtype_bytes='bf16'"),
        (lambda: LLAMA.kv_cache_bytes_per_token(float("nan")), ValueError, "dtype_bytes=nan"),
        (lambda: LLAMA.forward_flops(0), ValueError, "tokens=0"),
        (lambda: LLAMA.forward_flops(1.5), TypeError, "tokens=1.5"),
        (lambda: LLAMA.forward_flops(1, -1), ValueError, "context=-1"),
        (lambda: LLAMA.forward_flops(1, causal="yes"), TypeError, "causal='yes'"),
        (lambda: LLAMA.activation_bytes(0, 1), ValueError, "batch=0"),
        (lambda: LLAMA.activation_bytes(1, 0), ValueError, "sequence=0"),
        (lambda: LLAMA.activation_bytes(1, 1, 33), ValueError, "layers=33: must be <= 32"),
        (lambda: LLAMA.activation_bytes(1, 1, 0), ValueError, "layers=0"),
        (lambda: LLAMA.activation_bytes(1, 1, dropout=0.1), TypeError, "dropout=0.1"),
        (lambda: LLAMA.activation_bytes(1, 1, recompute="some"), ValueError, "recompute='some'"),
        (lambda: DEEPSEEK.activation_bytes(1, 1), ValueError, "without mla and moe"),
    ],
)
def test_methods_reject(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_shapes_are_values():
    assert dataclasses.replace(LLAMA) == LLAMA
    assert len({*MODELS.values()}) == len(MODELS)  # hashable, so that what follows from them can be memoized
    with pytest.raises(dataclasses.FrozenInstanceError):
        LLAMA.layers = 1
