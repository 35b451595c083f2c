"""Generated text against transformers, sampling against its distribution, perplexity against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuedu.llama import (
    Llama,
    LlamaConfig,
    generate,
    negative_log_likelihoods,
    perplexity,
    sampling_distribution,
    stream,
)
from gpuedu.llama.hugging_face import read_model
from gpuedu.transformer import Transformer

SIZES = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A random model of transformers, and the same as ours."""
    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.3)).eval()
    theirs.save_pretrained(folder)
    return theirs, read_model(folder)


@pytest.fixture(scope="module")
def ours(pair):
    return pair[1]


# --- generate ------------------------------------------------------------------------------------------


def test_greedy_text_is_that_of_transformers(pair):
    theirs, ours = pair
    for prompt in ([3], [7, 2, 9, 9, 1], list(range(30))):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=25,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert generate(ours, prompt, 25) == expected[0, len(prompt) :].tolist()


def test_greedy_text_is_what_full_passes_give(ours):
    ids = [5, 6]
    for token in generate(ours, ids, 12):
        assert token == ours(torch.tensor([ids]))[0, -1].argmax()
        ids = [*ids, token]


def test_it_stops_after_a_stop_token(ours):
    whole = generate(ours, [5, 6], 12)
    stop = whole[4]
    assert generate(ours, [5, 6], 12, stop_ids=[stop]) == whole[: whole.index(stop) + 1]


def test_sampled_text_is_the_seeds(ours):
    def sampled(seed):
        return generate(ours, [1], 30, temperature=1.0, seed=seed)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    nearly_greedy = generate(ours, [1], 30, temperature=1e-4, seed=1)
    assert (
        nearly_greedy == generate(ours, [1], 30, temperature=1.0, top_k=1, seed=2) == generate(ours, [1], 30)
    )


DRAWS = 400


def test_sampled_tokens_have_the_models_frequencies(ours):
    expected = sampling_distribution(ours(torch.tensor([[4]]))[0, -1], 1.5)
    drawn = torch.tensor([generate(ours, [4], 1, temperature=1.5, seed=seed)[0] for seed in range(DRAWS)])
    counts = torch.bincount(drawn, minlength=30)
    likely = DRAWS * expected > 5
    chi_squared = ((counts - DRAWS * expected) ** 2 / (DRAWS * expected))[likely].sum()
    degrees = int(likely.sum())
    assert degrees > 3
    assert chi_squared < degrees + 5 * math.sqrt(2 * degrees)


def test_a_stream_gives_tokens_as_they_come(ours):
    tokens = stream(ours, [5, 6], 12)
    assert [next(tokens), next(tokens)] == generate(ours, [5, 6], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, "ids: must be one token or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"max_new_tokens": 63}, "max_new_tokens=63: must be at most 62"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0}, "temperature=1.0: needs a seed"),
        ({"temperature": 1.0, "seed": 2**64}, "seed=18446744073709551616: must be below"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1: must be at least 0"),
        ({"temperature": 1.0, "seed": 0, "top_k": 0}, "top_k=0: must be at least 1"),
        ({"temperature": 1.0, "seed": 0, "top_p": 0.0}, "top_p=0.0: must be above 0"),
        ({"temperature": 1.0, "seed": 0, "top_p": 1.1}, "top_p=1.1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_token(ours, arguments, message):
    with pytest.raises(ValueError, match=message):
        stream(ours, **{"ids": [1, 2], "max_new_tokens": 5} | arguments)


# --- the distribution ----------------------------------------------------------------------------------

logit_lists = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


@given(logit_lists, st.floats(0.2, 3), st.integers(1, 14), st.floats(0.05, 1))
def test_cut_distributions_keep_ratios_and_the_likeliest(logits, temperature, top_k, top_p):
    logits = torch.tensor(logits)
    whole = sampling_distribution(logits, temperature)
    torch.testing.assert_close(whole, (logits / temperature).softmax(0))
    for how in ({"top_k": top_k}, {"top_p": top_p}, {"top_k": top_k, "top_p": top_p}):
        cut = sampling_distribution(logits, temperature, **how)
        kept = cut > 0
        assert math.isclose(cut.sum(), 1, abs_tol=1e-5)
        torch.testing.assert_close(cut[kept], whole[kept] / whole[kept].sum())
        assert kept.all() or whole[~kept].max() <= whole[kept].min()
        if "top_k" in how:
            assert kept.sum() <= top_k
        if list(how) == ["top_p"]:
            smallest = whole[kept].min()
            assert whole[kept].sum() >= top_p - 1e-5
            assert whole[kept].sum() - smallest < top_p + 1e-5


def test_cut_distributions_are_those_of_transformers():
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 3
    top_k = transformers.TopKLogitsWarper(7)(None, logits / 0.7)
    torch.testing.assert_close(sampling_distribution(logits, 0.7, top_k=7), top_k.softmax(-1))
    top_p = transformers.TopPLogitsWarper(0.8)(None, logits / 0.7)
    torch.testing.assert_close(sampling_distribution(logits, 0.7, top_p=0.8), top_p.softmax(-1))
    both = transformers.TopPLogitsWarper(0.8)(None, top_k)
    torch.testing.assert_close(sampling_distribution(logits, 0.7, top_k=7, top_p=0.8), both.softmax(-1))


@pytest.mark.parametrize("temperature", [1e-39, 5e-324])
def test_tiny_temperatures_are_nearly_zero(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0, -torch.inf], [-1e30, 1e30, 3e38, 0.0]])
    assert torch.equal(sampling_distribution(logits, temperature), sampling_distribution(logits, 0.0))
    assert sampling_distribution(torch.ones(2), temperature).tolist() == [0.5, 0.5]


def test_top_p_of_one_keeps_every_token():
    """Of many tokens the running sum rounds up to 1 before the last."""
    logits = torch.randn(49152, generator=torch.Generator().manual_seed(0)) * 3
    whole = sampling_distribution(logits, 1.0)
    assert torch.equal(sampling_distribution(logits, 1.0, top_p=1.0), whole)
    assert (sampling_distribution(logits, 1.0, top_k=40000, top_p=1.0) > 0).sum() == 40000


def test_temperature_zero_is_the_first_of_the_largest():
    assert sampling_distribution(torch.tensor([[1.0, 3.0, 3.0]]), 0.0).tolist() == [[0.0, 1.0, 0.0]]


# --- perplexity ----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(2, 25), st.integers(1, 20), st.integers(0, 9))
def test_every_token_but_the_first_is_foretold_once(count, window, seed):
    ours = MODEL
    tokens = torch.randint(30, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = negative_log_likelihoods(ours, tokens, window)
    expected = []
    for n in range(1, count):
        start = (n - 1) // window * window
        logits = ours(torch.tensor([tokens[start:n]]))[0, -1]
        expected.append(-logits.log_softmax(-1)[tokens[n]].item())
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert math.isclose(perplexity(ours, tokens, window), math.exp(sum(expected) / (count - 1)), rel_tol=1e-4)


MODEL = Llama(
    LlamaConfig(
        Transformer(
            layers=1, hidden_size=8, attention_heads=2, kv_heads=1, head_dim=4, ffn_hidden_size=16,
            gated_ffn=True, vocab_size=30, tied_embeddings=False, biases="none", norm="rmsnorm",
        ),
        context_length=20,
    )
).eval()  # fmt: skip


def test_a_model_that_knows_nothing_might_as_well_choose_among_all():
    with torch.no_grad():
        blank = Llama(MODEL.config)
        blank.lm_head.weight.zero_()
    assert math.isclose(perplexity(blank, list(range(30)), 8), 30, rel_tol=1e-5)


def test_perplexity_is_the_exponential_of_transformers_loss(pair):
    theirs, ours = pair
    tokens = torch.randint(30, (33,), generator=torch.Generator().manual_seed(0))
    loss = theirs(tokens[None], labels=tokens[None]).loss
    assert math.isclose(perplexity(ours, tokens, 32), loss.exp().item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "window", "message"),
    [
        ([1], 4, r"tokens of shape \(1,\): must be \(n,\) with n >= 2"),
        ([[1, 2]], 4, r"tokens of shape \(1, 2\)"),
        ([1, 2], 0, "window=0: must be at least 1"),
        ([1, 2], 21, "window=21: must be at most context_length=20"),
    ],
)
def test_texts_and_windows_that_do_not_fit(tokens, window, message):
    with pytest.raises(ValueError, match=message):
        perplexity(MODEL, tokens, window)


@pytest.mark.parametrize(
    "tokens", [[1.9, 2.7, 3.2], [True, False, True], torch.tensor([1j, 2j]), torch.tensor([1.0, 2.0])]
)
def test_tokens_are_whole_numbers(tokens):
    with pytest.raises(TypeError, match=r"tokens of torch\..* must be whole numbers"):
        negative_log_likelihoods(MODEL, tokens, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_tokens_of_any_integer_kind(dtype):
    expected = negative_log_likelihoods(MODEL, [1, 2, 3], 4)
    assert torch.equal(negative_log_likelihoods(MODEL, torch.tensor([1, 2, 3], dtype=dtype), 4), expected)
