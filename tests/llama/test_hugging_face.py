"""Models from a Hugging Face directory: whole, in shards, broken; and the hub when there is none."""

from __future__ import annotations

import json

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from gpuedu.llama import Tokenizer, load, load_hugging_face
from gpuedu.llama.hugging_face import llama3_divisors, read_config, read_model
from gpuedu.llama.tokenizer import read_tokenizer

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """A tokenizer of bytes with two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.fixture
def directory(tmp_path):
    """What save_pretrained writes, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "chat_template": CHATML,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def rewrite(directory, change):
    """Change the tensors of a directory in place."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(12).view(1, 12))


def test_load_finds_out_that_it_is_a_directory(directory):
    model, tokenizer = load(directory)
    again, _ = load_hugging_face(str(directory))
    assert torch.equal(logits(model), logits(again))
    assert isinstance(tokenizer, Tokenizer)
    assert not model.training


def test_shards_are_the_whole(directory):
    whole = logits(read_model(directory))
    torch.manual_seed(0)
    them = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.2))
    (directory / "model.safetensors").unlink()
    them.save_pretrained(directory, max_shard_size="6KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert torch.equal(logits(read_model(directory)), whole)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"index.json are missing: {shards[1].name}"):
        read_model(directory)


def test_dtype_and_device_are_given(directory):
    model = read_model(directory, dtype=torch.bfloat16, device="meta")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with pytest.raises(TypeError, match=r"dtype=torch.int8: must be a floating-point"):
        read_model(directory, dtype=torch.int8)


def test_a_tied_head_is_one_tensor_with_the_embedding(directory):
    rewrite(directory, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"weights: 1 tensors missing: lm_head\.weight"):
        read_model(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    model = read_model(directory)
    assert model.lm_head.weight is model.embed_tokens.weight
    rewrite(directory, lambda weights: weights.update({"lm_head.weight": torch.zeros(40, 16)}))
    assert torch.equal(logits(read_model(directory)), logits(model))  # stored as well, and not looked at


def test_missing_tensors_are_named(directory):
    rewrite(directory, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"1 tensors missing: layers\.1\.mlp\.up_proj\.weight"):
        read_model(directory)


def test_many_missing_tensors_are_counted(directory):
    def only_norms(weights):
        for name in [name for name in weights if "norm" not in name]:
            del weights[name]

    rewrite(directory, only_norms)
    with pytest.raises(ValueError, match=r"16 tensors missing: embed_tokens.weight, .*, \.\.\.$"):
        read_model(directory)


def test_tensors_of_another_shape_are_named(directory):
    rewrite(directory, lambda weights: weights.update({"model.norm.weight": torch.ones(15)}))
    with pytest.raises(ValueError, match=r"another shape: norm\.weight \(15,\) for \(16,\)"):
        read_model(directory)


def test_unknown_tensors_are_named_except_tables_of_frequencies(directory):
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(directory, lambda weights: weights.update(inv_freq))
    read_model(directory)
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}
    rewrite(directory, lambda weights: weights.update(bias))
    with pytest.raises(ValueError, match=r"1 tensors unknown: layers\.0\.self_attn\.q_proj\.bias"):
        read_model(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': must be 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu': must be 'silu'"),
        ({"attention_bias": True}, "attention_bias=True: must be False"),
        ({"mlp_bias": True}, "mlp_bias=True: must be False"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type='yarn': must be 'default' or 'llama3'",
        ),
    ],
)
def test_other_models_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(transformers.LlamaConfig(**SIZES).to_dict() | changes)


@pytest.mark.parametrize("name", ["model_type", "hidden_size", "vocab_size", "rms_norm_eps"])
def test_missing_figures_are_named(name):
    values = transformers.LlamaConfig(**SIZES).to_dict()
    del values[name]
    with pytest.raises(ValueError, match=f"config.json: {name} is missing"):
        read_config(values)


@pytest.mark.parametrize(
    "name", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
)
def test_missing_figures_of_the_rotary_scaling_are_named(name):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    values = transformers.LlamaConfig(**SIZES).to_dict() | {"rope_parameters": rope}
    assert read_config(values).rope_divisors is not None
    del rope[name]
    with pytest.raises(ValueError, match=f"config.json: {name} is missing"):
        read_config(values)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load(directory)


def test_llama3_divisors_are_those_of_transformers():
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, rope_parameters=scaling, max_position_embeddings=131072
    )
    frequencies, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(torch.arange(0, 64, 2).float() / 64)
    divisors = llama3_divisors(5e5, 64, factor=32.0, low=1.0, high=4.0, context=8192)
    torch.testing.assert_close(plain / torch.tensor(divisors), frequencies, rtol=1e-5, atol=0)


# --- the tokenizer -------------------------------------------------------------------------------------


def test_special_tokens_come_from_either_form(directory):
    tokenizer = read_tokenizer(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (256, 257, 258)
    assert tokenizer.encode("<s>hi</s>")[0] == 256 and tokenizer.encode("<s>hi</s>")[-1] == 257
    assert tokenizer.decode(tokenizer.encode("<s>hi</s>")) == "<s>hi</s>"


def test_chat_is_what_transformers_renders(directory):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    them = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    for begin in (True, False):
        expected = them.apply_chat_template(
            messages, chat_template=CHATML, tokenize=False, add_generation_prompt=begin
        )
        assert read_tokenizer(directory).chat(messages, add_generation_prompt=begin) == expected


def test_a_chat_template_of_its_own_file_comes_first(directory):
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert read_tokenizer(directory).chat([{"role": "user", "content": "Hi"}]) == "Hi!"


def test_a_chat_template_may_refuse_and_may_not_do_harm(directory):
    template = directory / "chat_template.jinja"
    template.write_text("{{ raise_exception('no system, please') }}")
    with pytest.raises(ValueError, match="the chat template says: no system, please"):
        read_tokenizer(directory).chat([])
    template.write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises(Exception, match="unsafe"):
        read_tokenizer(directory).chat([])


def test_without_a_template_there_is_no_chat(directory):
    (directory / "tokenizer_config.json").unlink()
    tokenizer = read_tokenizer(directory)
    assert tokenizer.eos_id is None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "Hi"}])


# --- the hub -------------------------------------------------------------------------------------------


def test_offline_the_hub_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'nobody/nothing': is no file .* could not be fetched"):
        load("nobody/nothing")


def test_without_the_hubs_package_that_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="fetching it needs the package huggingface_hub"):
        load("nobody/nothing")


def test_a_model_that_the_hub_has_is_loaded(directory, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(directory))
    model, _ = load("somebody/something")
    assert torch.equal(logits(model), logits(read_model(directory)))


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "gone.safetensors"])
def test_what_cannot_be_a_model_is_refused(source):
    with pytest.raises(FileNotFoundError, match=r"must be a \.gguf file, a directory or a hub id"):
        load(source)
