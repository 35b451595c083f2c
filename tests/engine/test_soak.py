"""Thousands of requests of all kinds, many of them dropped on the way: nothing is left behind."""

from __future__ import annotations

import random

import pytest

from gpuedu.engine import LLM, SamplingParams
from gpuedu.llama import generate

REQUESTS = 2000
CANCELLED = 0.25


def any_request(choose: random.Random, prompts: list[list[int]]) -> tuple[list[int], SamplingParams]:
    prompt = choose.choice(prompts)
    rule = choose.choice([{}, {}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.8, "top_k": 5}])
    if rule:
        rule = rule | {"seed": choose.randrange(100)}
    stop_ids = tuple(choose.sample(range(40), choose.choice([0, 0, 2])))
    return prompt, SamplingParams(max_tokens=choose.randint(1, 12), stop_ids=stop_ids, **rule)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_every_block_is_free_in_the_end(model, make_prompts, policy):
    choose = random.Random(policy)
    prompts = make_prompts(7, 60, longest=24)
    llm = LLM(
        model,
        num_blocks=40,
        block_size=4,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        policy=policy,
        record=True,
    )
    asked, answers, cancelled = {}, {}, set()
    requests = REQUESTS if policy == "fcfs" else REQUESTS // 4
    while len(asked) < requests or llm.has_unfinished():
        for _ in range(choose.choice([0, 1, 2, 4])):
            if len(asked) < requests:
                prompt, params = any_request(choose, prompts)
                asked[llm.add_request(prompt, params, priority=choose.randrange(3))] = prompt, params
        answers |= {output.request_id: output for output in llm.step() if output.finished}
        for name in [name for name in asked if name not in answers and name not in cancelled]:
            if choose.random() < CANCELLED / 8:
                assert llm.abort(name).finish_reason == "abort"
                cancelled.add(name)
    assert len(answers) + len(cancelled) == requests
    assert requests * 0.1 < len(cancelled) < requests * 0.5
    assert llm.kv.num_free_blocks == llm.kv.num_blocks
    assert sum(answer.num_preemptions for answer in answers.values()) > 5
    assert sum(answer.num_cached_tokens for answer in answers.values()) > 1000
    assert not llm.scheduler.running and not llm.scheduler.waiting and not llm.scheduler.has_work()
    assert len(llm.trace.requests) == len(answers)
    check_answers(model, asked, answers, choose)


def check_answers(model, asked, answers, choose):
    """Some of the texts are made once more by the model alone."""
    for name in choose.sample(sorted(answers), 100):
        prompt, params = asked[name]
        rule = {key: getattr(params, key) for key in ("temperature", "top_k", "top_p", "seed", "stop_ids")}
        assert answers[name].token_ids == generate(model, prompt, params.max_tokens, **rule)
        stopped = answers[name].token_ids[-1] in params.stop_ids
        assert answers[name].finish_reason == ("stop" if stopped else "length")
