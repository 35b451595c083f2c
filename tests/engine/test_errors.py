"""What cannot be is said at once, with the name and the value, and leaves nothing behind."""

from __future__ import annotations

import pytest

from gpuedu.continuous_batching.plan import Decision, StaticBatching
from gpuedu.engine import LLM, SamplingParams, drive, measure_step_cost
from gpuedu.engine import llm as module
from gpuedu.llama import generate
from gpuedu.serving.workload import Request

FEW = SamplingParams(max_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_tokens": 0}, ValueError, "max_tokens=0"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens=1.5"),
        ({"temperature": -1.0, "seed": 0}, ValueError, "temperature=-1"),
        ({"temperature": 0.5}, ValueError, "temperature=0.5: needs a seed"),
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"top_p": 0.0}, ValueError, "top_p=0"),
        ({"top_p": 1.1}, ValueError, "top_p=1.1"),
        ({"seed": -1}, ValueError, "seed=-1"),
        (
            {"seed": 2**64, "temperature": 1.0},
            ValueError,
            r"seed=18446744073709551616: must be below 2\*\*64",
        ),
        ({"seed": 1.0}, TypeError, "seed=1.0"),
        ({"stop": ("",)}, ValueError, "stop="),
        ({"stop": "end"}, TypeError, "stop='end'"),
        ({"stop_ids": ("a",)}, TypeError, "stop_ids="),
        ({"stop_ids": 3}, TypeError, "stop_ids=3"),
    ],
)
def test_sampling(arguments, error, message):
    with pytest.raises(error, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_blocks": 10, "kv_memory_bytes": 10**6}, "must not both be given"),
        ({"kv_memory_bytes": 100}, "kv_memory_bytes=100: must be at least a block's"),
        ({"num_blocks": 10, "block_size": 0}, "block_size=0"),
        ({"num_blocks": 10, "max_num_seqs": 0}, "max_num_seqs=0"),
        ({"num_blocks": 10, "policy": "random"}, "policy='random'"),
        ({"num_blocks": 10, "preemption": "swap"}, "preemption='swap'"),
        (
            {"num_blocks": 10, "max_num_seqs": 4, "make_scheduler": lambda kv: StaticBatching(4, kv)},
            "max_num_seqs: must be left out",
        ),
    ],
)
def test_engine(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        LLM(model, **arguments)


def test_an_attention_that_would_not_be_used(make_model):
    model = make_model()
    model.layers[1].self_attn.attention = lambda q, k, v: q
    with pytest.raises(
        ValueError, match=r"model: attention of layer 1 is .*lambda.* must be causal_attention"
    ):
        LLM(model, num_blocks=10)


def test_memory_in_bytes(model):
    block_bytes = 16 * model.config.shape.kv_cache_bytes_per_token(dtype_bytes=8)
    llm = LLM(model, kv_memory_bytes=10 * block_bytes + 5)
    assert llm.kv.num_blocks == 10
    assert llm.runner.cache.memory_bytes == 10 * block_bytes
    assert LLM(model).kv.num_blocks == 4 * 256 // 16  # four sequences of the model's context


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], FEW, "prompt: must be one token or more"),
        ([40], FEW, "token 40 must be an int from 0 to 39"),
        ([-1], FEW, "token -1"),
        ([1.0], FEW, "token 1.0"),
        ([True], FEW, "token True"),
        ("text", FEW, "must be tokens, there is no tokenizer"),
        ([1], SamplingParams(stop=("x",)), "needs a tokenizer"),
        ([1] * 250, SamplingParams(max_tokens=7), "prompt of 250 tokens and max_tokens=7.*context of 256"),
        ([1] * 60, FEW, "prompt_tokens=60.*must be at most the KV cache's 15"),
        ([1] * 50, SamplingParams(max_tokens=12), "need 16 blocks of 4 tokens"),
    ],
)
def test_requests(model, prompt, params, message):
    llm = LLM(model, num_blocks=15, block_size=4)
    with pytest.raises(ValueError, match=message):
        llm.add_request(prompt, params)
    with pytest.raises(ValueError, match=message):
        llm.generate([[1, 2, 3], prompt], params)
    assert not llm.has_unfinished() and not llm.scheduler.has_work()
    assert len(llm.generate([[1, 2, 3]], FEW)[0].token_ids) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_salt": [1]}, r"cache_salt=\[1\]: must be hashable"),
        ({"client": {}}, r"client={}: must be hashable"),
        ({"request_id": [0]}, r"request_id=\[0\]: must be hashable"),
        ({"priority": "high"}, "priority='high': must be an int"),
    ],
)
def test_options_that_no_scheduler_could_use(model, options, message):
    llm = LLM(model, num_blocks=15, block_size=4)
    with pytest.raises(TypeError, match=message):
        llm.add_request([1] * 9, FEW, **options)
    assert not llm.has_unfinished() and not llm.scheduler.has_work()
    assert len(llm.generate([[1] * 9], FEW)[0].token_ids) == 4


def test_a_request_that_cannot_be_made_leaves_no_ghost(model, monkeypatch):
    llm = LLM(model, num_blocks=15)

    def refuse(*_):
        raise RuntimeError("no such request")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no such request"):
        patch.setattr(module, "EngineRequest", refuse)
        llm.add_request([1, 2], FEW)
    assert not llm.scheduler.has_work()
    assert len(llm.generate([[1, 2]], FEW)[0].token_ids) == 4


@pytest.mark.parametrize("temperature", [1e-39, 5e-324, 1e300])
def test_any_temperature_leaves_the_engine_running(model, temperature):
    llm = LLM(model, num_blocks=15)
    asked = [SamplingParams(max_tokens=4, temperature=temperature, seed=2**64 - 1), FEW]
    drawn, greedy = llm.generate([[1, 2]] * 2, asked)
    assert len(drawn.token_ids) == 4
    if temperature < 1:
        assert drawn.token_ids == greedy.token_ids


def interrupt_at(llm, number: int):
    """Somebody presses Ctrl-C in this step's computation."""
    execute, steps = llm.runner.execute, []

    def interrupted(batch):
        steps.append(batch)
        if len(steps) == number:
            raise KeyboardInterrupt
        return execute(batch)

    llm.runner.execute = interrupted


@pytest.mark.parametrize("number", [1, 2, 6])
def test_an_interrupted_generate_leaves_an_idle_engine(model, make_prompts, number):
    prompts = make_prompts(3, 5)
    llm = LLM(model, num_blocks=30, block_size=4, max_num_batched_tokens=9, max_num_seqs=3)
    interrupt_at(llm, number)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts, FEW)
    assert not llm.has_unfinished() and not llm.scheduler.has_work() and llm.kv.num_free_blocks == 30
    answers = llm.generate(prompts, FEW)
    assert [answer.token_ids for answer in answers] == [generate(model, prompt, 4) for prompt in prompts]


def test_an_interrupted_drive_keeps_trace_and_engine(model):
    llm = LLM(model, num_blocks=30, record=True)
    llm.generate([[1]], FEW)
    trace = llm.trace
    interrupt_at(llm, 3)
    with pytest.raises(KeyboardInterrupt):
        drive(llm, [Request(0, 0.0, 5, 1), Request(1, 0.0, 5, 9)])
    assert llm.trace is trace and not llm.has_unfinished() and llm.kv.num_free_blocks == 30
    assert [record.output_tokens for record in trace.requests] == [4, 1]
    assert len(trace.iterations) == 4 + 2
    drive(llm, [Request(2, 0.0, 5, 2)])
    assert len(trace.requests) == 3


def test_the_largest_request_that_fits(model):
    llm = LLM(model, num_blocks=15, block_size=4)
    (answer,) = llm.generate([[1] * 50], SamplingParams(max_tokens=11))
    assert len(answer.token_ids) == 11


def test_names(model):
    llm = LLM(model, num_blocks=15)
    llm.add_request([1, 2], FEW, request_id="a")
    with pytest.raises(ValueError, match="request_id='a': is here already"):
        llm.add_request([1, 2], FEW, request_id="a")
    with pytest.raises(KeyError, match="request_id='b'"):
        llm.abort("b")
    with pytest.raises(ValueError, match="requests are under way"):
        llm.generate([[1]], FEW)
    with pytest.raises(ValueError, match="requests are under way"):
        measure_step_cost(llm)
    llm.abort("a")
    with pytest.raises(KeyError, match="request_id='a'"):
        llm.abort("a")


def test_numbers_pass_over_names_that_are_taken(model):
    llm = LLM(model, num_blocks=15)
    for taken in (0, 1, 3):
        llm.add_request([1, 2], FEW, request_id=taken)
    assert [llm.add_request([1, 2], FEW) for _ in range(3)] == [2, 4, 5]
    assert [output.request_id for output in llm.abort_all()] == [0, 1, 3, 2, 4, 5]
    assert not llm.has_unfinished() and llm.kv.num_free_blocks == 15


def test_lists(model):
    llm = LLM(model, num_blocks=15)
    with pytest.raises(ValueError, match="params: 1 of them, must be one or 2"):
        llm.generate([[1], [2]], [FEW])
    with pytest.raises(TypeError, match="must be a sequence of prompts"):
        llm.generate("one text", FEW)
    assert llm.generate([], FEW) == []
    with pytest.raises(ValueError, match="record=True"):
        drive(llm, [])


def test_a_scheduler_that_lets_nobody_compute_is_said(model):
    class Idle(StaticBatching):
        def schedule(self):
            return Decision([], [])

    llm = LLM(model, num_blocks=20, make_scheduler=lambda kv: Idle(4, kv))
    llm.add_request([1, 2], FEW)
    with pytest.raises(RuntimeError, match="lets nobody compute"):
        llm.step()
