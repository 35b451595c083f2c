"""The two models as they are stored: whole, small, what their card says, and readable."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gpuedu import tinylm
from gpuedu.llama import generate, linear_layers
from gpuedu.tinylm import TEXTS, card, models, text
from gpuedu.tinylm.models import FOLDER, MODELS, smollm2_or_target
from gpuedu.tinylm.train.corpus import EVALUATION, VALIDATION
from gpuedu.tinylm.train.recipe import RECIPES

MOST_BYTES = 10_000_000
FEW_MILLION = range(2_000_000, 8_000_000)
# Not a pinned result: what a model of word frequencies alone would reach is 300 or more
READS_LIKE_ITS_TEXT = {"target": 60.0, "draft": 130.0}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request):
    """Name, model and tokenizer."""
    return request.param, *tinylm.load(request.param)


# --- what is stored ------------------------------------------------------------------------------------


def test_weights_and_tokenizer_are_small_enough():
    files = [FOLDER / "tokenizer.json", *(FOLDER / name / "model.safetensors" for name in MODELS)]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


def test_sizes_are_a_few_million_and_about_a_tenth_of_that():
    target, draft = (tinylm.load(name)[0].config.shape.parameters() for name in MODELS)
    assert target in FEW_MILLION
    assert 7 < target / draft < 13


def test_both_have_one_tokenizer_of_at_most_4096_entries():
    sizes = {tinylm.load(name)[0].config.shape.vocab_size for name in MODELS}
    assert sizes == {tinylm.load_tokenizer().vocab_size}
    assert max(sizes) <= 4096


def test_groups_of_128_divide_what_is_quantized(loaded):
    _, model, _ = loaded
    assert all(linear.in_features % 128 == 0 for linear in linear_layers(model).values())
    assert model.config.shape.hidden_size % 128 == model.config.shape.ffn_hidden_size % 128 == 0


def test_weights_are_finite_and_stored_in_half_precision(loaded):
    name, model, _ = loaded
    assert all(torch.isfinite(weights).all() for weights in model.parameters())
    assert all(torch.equal(weights, weights.half().float()) for weights in model.parameters())
    logits = model(torch.arange(300).view(1, 300))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(tinylm.load(name, torch.float16)[0](torch.arange(9).view(1, 9))).all()


def test_transformers_reads_them_and_finds_the_same(loaded):
    name, model, tokenizer = loaded
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(text("speech_2014")[:900])])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="name='large': must be one of target, draft"):
        tinylm.load("large")


# --- the tokenizer -------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_comes_back(written):
    tokenizer = tinylm.load_tokenizer()
    assert tokenizer.decode(tokenizer.encode(written)) == written


def test_tokens_are_pieces_of_words_and_single_digits():
    tokenizer = tinylm.load_tokenizer()
    assert tokenizer.encode("1862") == [tokenizer.encode(digit)[0] for digit in "1862"]
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>" == tokenizer.decode([tokenizer.bos_id])
    for name in TEXTS:
        assert len(text(name)) / len(tokenizer.encode(text(name))) > 2.3  # characters a token


# --- the texts -----------------------------------------------------------------------------------------

SHA256 = {
    "moby_dick_16": "2b50e3f9f73dcc2399f697f57b4ea6520598ad4a6ccf2b1be06c62d422a17042",
    "moby_dick_54": "fcc67927a37caf79ee8b8948d99a3b5ba602ccb190c7a103dd4901b80fc0ead2",
    "speech_1864": "eac7412865135b33fa0a8714a8c559684b7665a1a1bd73b7ef3ade6b9a294350",
    "speech_2004": "6c3a0a491a829b2028f5b2cb8309e5be52e77d98da253e7ec4d80e84c623018d",
    "speech_2012": "56c3a3d0ba5175d6ca79e228595a7c852ea8187a15ed78d114e1bfbc99f073e5",
    "speech_2014": "e4c22861404eeb6c2fd4ee9991fb7b14e0b1ec9827ef95babd2cab30aa5606d6",
    "speech_2019": "7f076d2e27a7f1d37915c1a78dd265ea686968444b583f247a4cb62fb5be9832",
}


def test_texts_are_the_packages_files_byte_for_byte():
    folder = FOLDER / "texts"
    assert {path.stem for path in folder.glob("*.txt")} == set(TEXTS) == set(SHA256)
    for name, digest in SHA256.items():
        assert hashlib.sha256((folder / f"{name}.txt").read_bytes()).hexdigest() == digest
        assert 30_000 <= len(text(name)) < 50_000


def test_each_domain_has_texts_to_calibrate_and_to_evaluate():
    uses = {(about.domain, about.use) for about in TEXTS.values()}
    assert uses == {(d, u) for d in ("speeches", "moby_dick") for u in ("calibration", "evaluation")}
    assert {about.source for about in TEXTS.values() if about.use == "evaluation"} == EVALUATION
    assert not EVALUATION & VALIDATION


def test_provenance_names_every_text():
    provenance = (FOLDER / "texts" / "README.md").read_text()
    for name, about in TEXTS.items():
        assert f"| `{name}.txt` | {about.title} | {about.use} | `{about.source}` |" in provenance


def test_an_unknown_text_is_an_error():
    with pytest.raises(ValueError, match="name='hamlet': must be one of speech_2014"):
        text("hamlet")


# --- the card ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """What the models do now."""
    return card.measurements()


def test_card_is_made_from_its_facts():
    made = card.card(card.read_facts("training"), card.read_facts("card"))
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == made


def test_facts_of_the_card_are_what_the_models_do(measured):
    stored = card.read_facts("card")
    for model in MODELS:
        for name, figures in measured["texts"][model].items():
            for kind, value in figures.items():
                assert math.isclose(value, stored["texts"][model][name][kind], rel_tol=2e-3), (model, name)
    for kind, value in measured["agreement"].items():
        assert math.isclose(value, stored["agreement"][kind], rel_tol=5e-3)


def test_training_took_what_the_recipes_say():
    stored = card.read_facts("training")
    for name, recipe in RECIPES.items():
        assert stored[name]["steps"] == recipe.steps
        assert tinylm.load(name)[0].config == recipe.config
        assert stored[name]["losses"][-1] < 0.8 * stored[name]["losses"][0]


def test_bits_a_byte_are_the_perplexity_spread_over_the_bytes(measured):
    tokenizer = tinylm.load_tokenizer()
    for name, figures in measured["texts"]["target"].items():
        tokens, size = len(tokenizer.encode(text(name))) - 1, len(text(name).encode())
        bits = math.log2(figures["perplexity"]) * tokens / size
        assert math.isclose(bits, figures["bits_per_byte"], rel_tol=1e-9)


# --- do they read like their text? ---------------------------------------------------------------------


def test_held_out_text_is_foretold_nearly_as_well_as_seen_text(measured):
    for model in MODELS:
        of = measured["texts"][model]
        seen, held_out = (
            [of[name]["bits_per_byte"] for name, about in TEXTS.items() if about.use == use]
            for use in ("calibration", "evaluation")
        )
        assert (
            max(of[name]["perplexity"] for name in ("speech_2014", "speech_1864"))
            < READS_LIKE_ITS_TEXT[model]
        )
        assert sum(held_out) / len(held_out) < 1.15 * sum(seen) / len(seen)


def test_the_target_is_the_better_one_on_every_text(measured):
    for name in TEXTS:
        target, draft = (measured["texts"][model][name]["perplexity"] for model in MODELS)
        assert target < draft


def test_the_draft_is_often_right(measured):
    assert measured["agreement"]["sampled"] > 0.5
    assert measured["agreement"]["greedy"] > 0.4


def words(of: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", of.lower())


def test_what_they_write_is_made_of_their_texts_words(loaded):
    _, model, tokenizer = loaded
    known = {word for name in TEXTS for word in words(text(name))}  # of 3 % of the training text
    for prompt in ("My fellow Americans,", "The Congress of the United States", "The whale"):
        ids = generate(model, tokenizer.encode(prompt), 150, temperature=0.7, top_p=0.9, seed=1)
        written = words(tokenizer.decode(ids))[1:-1]  # the first and the last may be pieces
        assert len(written) > 40
        assert sum(word in known for word in written) > 0.8 * len(written)
        assert len(set(written)) > 0.35 * len(written), "it does not repeat itself"


# --- the fallback of the labs --------------------------------------------------------------------------


def test_without_smollm2_labs_get_the_target_and_are_told(monkeypatch, capsys):
    monkeypatch.setattr(models, "find_smollm2", lambda: None)
    name, model, tokenizer = smollm2_or_target()
    assert name == "tinylm"
    assert model.config.shape.vocab_size == tokenizer.vocab_size
    assert "SmolLM2 is not installed" in capsys.readouterr().out


def test_without_gguf_smollm2_cannot_be_read(monkeypatch):
    monkeypatch.setattr(models, "find_smollm2", lambda: FOLDER)
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    assert smollm2_or_target()[0] == "tinylm"


def test_with_smollm2_labs_get_it(monkeypatch, capsys):
    monkeypatch.setattr(models, "find_smollm2", lambda: "a.gguf")
    monkeypatch.setattr(models, "load_any", lambda path, dtype, device: (path, dtype, device))
    expected = ("SmolLM2-135M-Instruct", "a.gguf", torch.bfloat16, "cpu")
    assert smollm2_or_target(torch.bfloat16) == expected
    assert "SmolLM2-135M-Instruct" in capsys.readouterr().out


def test_facts_are_json_that_anybody_reads():
    for name in ("training", "card"):
        assert json.loads((FOLDER / f"{name}.json").read_text()) == card.read_facts(name)
