"""Bytes against packed tensors and a real model, times against sums layer by layer, and what both obey."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.hardware import GPUS
from gpuedu.llama import Llama, LlamaConfig, linear_layers
from gpuedu.quantization.cost import (
    decode_step,
    kv_bytes,
    largest_batch,
    linear_bytes,
    linear_shapes,
    multiply_dtype,
    prefill,
    weight_bytes,
)
from gpuedu.quantization.plan import FORMATS, KVQuantization, integer_format
from gpuedu.quantization.run import QuantizedKVCache, pack_gptq, packed_bytes, round_to_nearest
from gpuedu.transformer import MODELS

LLAMA, SMALL, LARGE = MODELS["llama-2-7b"], MODELS["smollm2-135m"], MODELS["llama-3-70b"]
A100, H100, B200, V100 = (GPUS[name] for name in ("A100-80GB", "H100-SXM", "B200", "V100"))
DENSE = ["gpt2", "opt-13b", "llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b", "smollm2-135m"]

# --- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_all_parameters_but_the_rest(name):
    model = MODELS[name]
    matrices = sum(m.weights for m in linear_shapes(model))
    layers = sum(model.layer_parameters(layer) for layer in range(model.layers))
    vectors = layers - matrices
    if model.moe is not None:
        routers = (model.layers - model.moe.dense_layers) * model.moe.experts * model.hidden_size
        vectors -= routers
    assert 0 < vectors < 0.002 * layers  # norms and biases


@pytest.mark.parametrize("name", DENSE)
def test_matrices_do_a_tokens_work(name):
    """Twice the weights is what a token costs in FLOP, less attention and output head."""
    model = MODELS[name]
    linear = 2 * sum(m.weights for m in linear_shapes(model))
    head = 2 * model.vocab_size * model.hidden_size
    attention = 4 * model.layers * model.attention_heads * model.head_dim
    assert linear == model.forward_flops(1) - head - attention


def test_shapes_are_those_of_a_real_model(small_llama):
    model, _ = small_llama
    shape = model.config.shape
    found = {}
    for name, layer in linear_layers(model).items():
        found.setdefault(name.rpartition(".")[2].removesuffix("_proj"), []).append(tuple(layer.weight.shape))
    assert {m.name: [(m.rows, m.columns)] * m.count for m in linear_shapes(shape)} == found


@pytest.mark.parametrize("bits, group", [(8, None), (4, None), (4, 32), (3, 32), (2, 16)])
def test_bytes_are_those_of_packed_tensors(bits, group):
    """A model's matrices quantized and packed for real."""
    shape = MODELS["smollm2-135m"]
    packed = 0
    for m in linear_shapes(shape):
        weight = torch.randn(m.rows, m.columns, generator=torch.Generator().manual_seed(0))
        packed += m.count * packed_bytes(pack_gptq(round_to_nearest(weight, bits, group=group)))
    assert linear_bytes(shape, integer_format(bits, group)) == packed


def test_weights_in_16_bits_are_two_bytes_a_parameter(small_llama):
    for name in DENSE:
        assert weight_bytes(MODELS[name], FORMATS["bf16"]) == 2 * MODELS[name].parameters()
    model, _ = small_llama
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weight_bytes(model.config.shape, FORMATS["fp32"], rest_bytes=4) == real


def test_llama_7b_at_four_bits_by_hand():
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * 32000 * 4096 + 65 * 4096
    assert weight_bytes(LLAMA, FORMATS["int4_g128"]) == matrices * 4.15625 / 8 + 2 * rest


@given(st.sampled_from(DENSE), st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 16, 32, 64]))
def test_fewer_bits_and_larger_groups_take_less(name, bits, group):
    model = MODELS[name]
    size = linear_bytes(model, integer_format(bits, group))
    assert size < linear_bytes(model, FORMATS["bf16"])
    assert size >= sum(m.weights for m in linear_shapes(model)) * bits / 8
    assert linear_bytes(model, integer_format(bits, group, asymmetric=False)) < size
    if group:
        assert linear_bytes(model, integer_format(bits)) < size


def test_a_group_must_divide_every_width():
    with pytest.raises(ValueError, match="row=576: must be a multiple of the group of 128"):
        linear_bytes(SMALL, FORMATS["int4_g128"])
    with pytest.raises(TypeError, match="format='int4': must be a Format"):
        linear_bytes(SMALL, "int4")
    with pytest.raises(TypeError, match="model='llama': must be a Transformer"):
        linear_shapes("llama")
    with pytest.raises(ValueError, match="rest_bytes=0: must be finite and above 0"):
        weight_bytes(SMALL, FORMATS["bf16"], rest_bytes=0)


# --- the cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [0, 5, 16, 17, 50])
def test_cache_takes_what_a_real_one_takes(bits, tokens):
    shape = MODELS["smollm2-135m"]
    how = KVQuantization(bits, group=16, residual=16)
    cache = QuantizedKVCache(shape.layers, how)
    if tokens:
        k = v = torch.randn(1, shape.kv_heads, tokens, shape.head_dim).bfloat16()
        for layer in range(shape.layers):
            cache.append(layer, k, v)
    assert kv_bytes(shape, tokens, how) == cache.memory_bytes


@pytest.mark.parametrize("name", DENSE)
def test_full_cache_is_the_transformers(name):
    model = MODELS[name]
    assert kv_bytes(model, 1000) == 1000 * model.kv_cache_bytes_per_token(2)


@given(st.integers(1, 20_000), st.sampled_from([2, 4, 8]))
def test_a_quantized_cache_tends_to_its_bits(tokens, bits):
    how = KVQuantization(bits)
    ratio = kv_bytes(LLAMA, tokens) / kv_bytes(LLAMA, tokens, how)
    assert 1 <= ratio <= 16 / how.bits_per_number
    if tokens > 12_800:
        assert ratio == pytest.approx(16 / how.bits_per_number, rel=0.1)


@given(st.integers(100, 20_000), st.sampled_from([None, 2, 4, 8]), st.sampled_from(["bf16", "int4_g128"]))
def test_largest_batch_is_the_last_that_fits(context, bits, name):
    how = None if bits is None else KVQuantization(bits)
    batch = largest_batch(LLAMA, A100, FORMATS[name], context, how)

    def taken(batch):
        return weight_bytes(LLAMA, FORMATS[name]) + batch * kv_bytes(LLAMA, context, how)

    assert taken(batch) <= 0.9 * A100.memory_bytes < taken(batch + 1)


def test_no_room_is_a_batch_of_zero():
    assert largest_batch(LARGE, A100, FORMATS["bf16"], 4096) == 0
    assert largest_batch(LARGE, A100, FORMATS["int4_g128"], 4096) > 0


def test_what_the_cache_cannot_be_says_why():
    with pytest.raises(ValueError, match="model: must be one without MLA"):
        kv_bytes(MODELS["deepseek-v3"], 10)
    with pytest.raises(ValueError, match="group=48: must divide head_dim=128"):
        kv_bytes(LLAMA, 10, KVQuantization(4, group=48, residual=96))
    with pytest.raises(ValueError, match=r"usable=1\.5: must be at most 1"):
        largest_batch(LLAMA, A100, FORMATS["bf16"], 100, usable=1.5)


# --- time ----------------------------------------------------------------------------------------------


def decode_layer_by_layer(model, gpu, bits_of, batch, context, peak):
    """Bytes and FLOP of a decode step, added up matrix by matrix and layer by layer."""
    h, f = model.hidden_size, model.ffn_hidden_size
    queries, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
    moved = linear = attention = 0.0
    for _ in range(model.layers):
        for rows, columns in ((queries, h), (kv, h), (kv, h), (h, queries), (f, h), (f, h), (h, f)):
            moved += rows * columns * bits_of(columns) / 8
            linear += 2 * batch * rows * columns
        moved += batch * context * 2 * kv * 2
        attention += batch * (context + 1) * 2 * 2 * queries
    moved += model.vocab_size * h * 2
    head = 2 * batch * model.vocab_size * h
    return moved / gpu.memory_bandwidth, linear / peak + (attention + head) / gpu.peak("bf16")


@pytest.mark.parametrize("model", [LLAMA, LARGE, MODELS["mistral-7b"]])
@pytest.mark.parametrize("name", ["bf16", "int4_g128", "fp8", "int8"])
@pytest.mark.parametrize("batch, context", [(1, 1), (8, 2048), (256, 500)])
def test_decode_is_the_sum_over_layers(model, name, batch, context):
    format = FORMATS[name]
    peak = H100.peak({"fp8": "fp8", "int8": "int8"}.get(name, "bf16"))
    memory_s, compute_s = decode_layer_by_layer(model, H100, format.bits_per_number, batch, context, peak)
    step = decode_step(model, H100, format, batch, context)
    assert step.memory_s == pytest.approx(memory_s) and step.compute_s == pytest.approx(compute_s)
    assert step.seconds == max(step.memory_s, step.compute_s)


@pytest.mark.parametrize("name", ["bf16", "int4_g128", "fp8"])
def test_prefill_is_the_roofline_of_its_flops(name):
    tokens = 2048
    work = prefill(LLAMA, H100, FORMATS[name], tokens)
    pairs = tokens * (tokens + 1) / 2
    attention = LLAMA.layers * 4 * pairs * 4096
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    peak = H100.peak("fp8" if name == "fp8" else "bf16")
    assert work.compute_s == pytest.approx(
        2 * tokens * matrices / peak + (attention + 2 * 32000 * 4096) / H100.peak("bf16")
    )
    assert not work.memory_bound


def test_decode_of_one_sequence_gains_what_the_bytes_do():
    sixteen, four = (decode_step(LLAMA, A100, FORMATS[name], 1, 1) for name in ("bf16", "int4_g128"))
    assert sixteen.memory_bound and four.memory_bound
    gain = sixteen.seconds / four.seconds
    assert gain == pytest.approx(
        (sixteen.weight_bytes + sixteen.kv_bytes) / (four.weight_bytes + four.kv_bytes)
    )
    assert 3.5 < gain < 16 / 4.15625  # the output head stays as it is


def test_weight_only_gains_vanish_with_the_batch():
    """The cache takes over, then the tensor cores do; in both the weights' bytes matter less and less."""
    gains = []
    for batch in (1, 4, 16, 64, 256, 1024):
        times = [decode_step(LLAMA, A100, FORMATS[n], batch, 128).seconds for n in ("bf16", "int4_g128")]
        gains.append(times[0] / times[1])
    assert all(a > b for a, b in pairwise(gains))
    assert gains[0] > 3.3 and gains[-1] < 1.2
    compute = [decode_step(MODELS["llama-3-8b"], A100, FORMATS[n], 512, 1) for n in ("bf16", "int4_g128")]
    assert compute[0].seconds == compute[1].seconds and not compute[0].memory_bound


def test_prefill_gains_only_where_the_tensor_cores_know_the_format():
    def gain(gpu, name):
        plain, quantized = (prefill(LLAMA, gpu, FORMATS[n], 2048).seconds for n in ("bf16", name))
        return plain / quantized

    assert gain(A100, "int4_g128") == gain(H100, "int4_g128") == 1
    assert gain(A100, "fp8") == 1 and 1.8 < gain(H100, "fp8") < 2
    assert gain(H100, "nvfp4") == 1 and 3 < gain(B200, "nvfp4") < 4
    assert 1.8 < gain(A100, "int8") < 2


def test_a_gpu_multiplies_in_what_it_has():
    assert multiply_dtype(V100, FORMATS["bf16"]) == "fp16"  # it has no BF16
    assert multiply_dtype(B200, FORMATS["mxfp4"]) == "fp4"
    assert multiply_dtype(A100, FORMATS["mxfp4"]) == "bf16"
    assert multiply_dtype(V100, FORMATS["fp32"]) == "fp32"


@pytest.mark.parametrize("function", [decode_step, prefill])
def test_what_cannot_be_priced_says_why(function):
    counts = (1, 1) if function is decode_step else (1,)
    with pytest.raises(ValueError, match="model: must be one without MLA and MoE"):
        function(MODELS["deepseek-v3"], H100, FORMATS["bf16"], *counts)
    with pytest.raises(ValueError, match="=0: must be at least 1"):
        function(LLAMA, H100, FORMATS["bf16"], *[0 for _ in counts])


def test_a_quantized_cache_speeds_long_contexts_up():
    how = KVQuantization(bits=2)
    plain, quantized = (decode_step(LLAMA, A100, FORMATS["bf16"], 16, 4096, q) for q in (None, how))
    assert quantized.weight_bytes == plain.weight_bytes
    assert quantized.kv_bytes == 16 * kv_bytes(LLAMA, 4096, how)
    assert plain.seconds / quantized.seconds > 2


def test_a_real_models_parameters_are_counted(small_llama):
    model, _ = small_llama
    again = Llama(LlamaConfig(model.config.shape))
    total = sum(p.numel() for p in again.parameters())
    assert weight_bytes(model.config.shape, FORMATS["bf16"]) == 2 * total
