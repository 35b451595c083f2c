"""When an answer ends, what its text is, and how it streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu import tinylm
from gpuedu.continuous_batching.plan import StaticBatching
from gpuedu.engine import LLM, Detokenizer, SamplingParams
from gpuedu.llama import generate

SPEECH = "My fellow Americans — the state of our “union” is strong. 🙂 Ünïcode"


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = tinylm.load("draft")
    return model.double(), tokenizer


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


@pytest.fixture(scope="module")
def plain(loaded):
    """Forty tokens after a prompt, and the prompt."""
    model, tokenizer = loaded
    prompt = tokenizer.encode("Our nation is")
    return prompt, generate(model, prompt, 40)


@pytest.fixture
def llm(loaded):
    return LLM(*loaded, num_blocks=64)


def test_length(llm, plain):
    prompt, tokens = plain
    (answer,) = llm.generate([prompt], SamplingParams(max_tokens=7, ignore_eos=True))
    assert (answer.token_ids, answer.finish_reason) == (tokens[:7], "length")
    assert answer.text == llm.tokenizer.decode(tokens[:7])
    assert answer.finished and answer.prompt_token_ids == prompt


def test_stop_token_is_the_last_and_no_text(llm, plain):
    prompt, tokens = plain
    stop = tokens[9]
    at = tokens.index(stop)
    params = SamplingParams(max_tokens=40, stop_ids=(stop,), ignore_eos=True)
    (answer,) = llm.generate([prompt], params)
    assert (answer.token_ids, answer.finish_reason) == (tokens[: at + 1], "stop")
    assert answer.text == llm.tokenizer.decode(tokens[:at])
    assert llm.kv.num_free_blocks == 64


def test_end_of_text_stops_unless_ignored(loaded, plain):
    model, tokenizer = loaded
    prompt, tokens = plain
    llm = LLM(model, tokenizer, num_blocks=64)
    eos, tokenizer.eos_id = tokenizer.eos_id, tokens[5]
    try:
        one, all_of_it = llm.generate(
            [prompt] * 2, [SamplingParams(max_tokens=20, ignore_eos=ignored) for ignored in (False, True)]
        )
    finally:
        tokenizer.eos_id = eos
    assert one.token_ids == tokens[: tokens.index(tokens[5]) + 1] and one.finish_reason == "stop"
    assert all_of_it.token_ids == tokens[:20] and all_of_it.finish_reason == "length"


def test_stop_text_ends_the_answer_before_it(llm, plain):
    prompt, tokens = plain
    whole = llm.tokenizer.decode(tokens)
    for stop in (whole[20:23], whole[11:30], whole[4]):
        params = SamplingParams(max_tokens=40, stop=("nowhere to be found", stop), ignore_eos=True)
        (answer,) = llm.generate([prompt], params)
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"
        # no token more than it takes
        assert stop in llm.tokenizer.decode(answer.token_ids)
        assert stop not in llm.tokenizer.decode(answer.token_ids[:-1])


def test_the_last_token_may_stop_too(llm, plain):
    prompt, tokens = plain
    params = SamplingParams(max_tokens=6, stop_ids=(tokens[5],), ignore_eos=True)
    (answer,) = llm.generate([prompt], params)
    assert answer.finish_reason == "stop"


def test_stream_is_what_generate_returns(llm, plain):
    prompt, tokens = plain
    whole = llm.tokenizer.decode(tokens)
    for stop in ((), (whole[20:26],)):
        params = SamplingParams(max_tokens=40, stop=stop, ignore_eos=True)
        (answer,) = llm.generate([prompt], params)
        pieces = list(llm.stream(prompt, params))
        assert [piece.token_id for piece in pieces] == answer.token_ids
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [
            answer.finish_reason
        ]
    # what could become the stop text is not shown
    shown = ""
    for piece in llm.stream(prompt, params):
        shown += piece.text
        assert whole.startswith(shown) and len(shown) <= 20


def test_streams_side_by_side(llm, loaded):
    model, tokenizer = loaded
    prompts = [tokenizer.encode(text) for text in ("We the people", "The economy", "Tonight")]
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    streams = [llm.stream(prompt, params) for prompt in prompts]
    rows = list(zip(*streams, strict=True))
    for prompt, row in zip(prompts, zip(*rows, strict=True), strict=True):
        assert [piece.token_id for piece in row] == generate(model, prompt, 12)
    assert not llm.has_unfinished()


def test_who_stops_listening_frees_the_blocks(llm):
    pieces = llm.stream("The state of", SamplingParams(max_tokens=50, ignore_eos=True))
    next(pieces)
    assert llm.kv.num_free_blocks < 64
    pieces.close()
    assert llm.kv.num_free_blocks == 64 and not llm.has_unfinished()


def test_a_stream_nobody_ever_listened_to(llm):
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    closed, dropped = (llm.stream("The state of", params) for _ in range(2))
    assert len(llm.scheduler.waiting) == 2
    closed.close()
    assert list(closed) == []
    del dropped
    assert not llm.has_unfinished() and not llm.scheduler.has_work()
    with pytest.raises(ValueError, match="prompt: must be one token or more"):
        llm.stream([], params)  # at once, and not with the first piece


def test_a_finished_stream_leaves_its_name_to_others(llm):
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    finished = llm.stream([1, 2], params)
    assert [next(finished).finish_reason for _ in range(2)] == [None, "length"]
    llm.add_request([3, 4], params, request_id=0)
    finished.close()
    del finished
    assert llm.has_unfinished()


def test_an_interrupted_stream_aborts_its_request_alone(llm, plain, monkeypatch):
    prompt, tokens = plain
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    pieces, other = (llm.stream(prompt, params) for _ in range(2))
    next(pieces)

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llm.runner, "execute", interrupt)
        next(pieces)
    assert len(llm.scheduler.running) == 1
    assert [piece.token_id for piece in other] == tokens[:6]
    assert not llm.has_unfinished()


@pytest.mark.parametrize("respond_early", [False, True])
def test_streams_of_a_static_batch(loaded, respond_early):
    model, tokenizer = loaded
    llm = LLM(
        model,
        tokenizer,
        num_blocks=64,
        make_scheduler=lambda kv: StaticBatching(3, kv, respond_early=respond_early),
    )
    prompts = [tokenizer.encode(text) for text in ("We the people", "The economy", "Tonight")]
    asked = [SamplingParams(max_tokens=length, ignore_eos=True) for length in (2, 6, 9)]
    short, long, left = (llm.stream(prompt, params) for prompt, params in zip(prompts, asked, strict=True))
    assert [piece.token_id for piece in short] == generate(model, prompts[0], 2)
    next(left)
    left.close()  # a batch keeps its members to the end
    assert [piece.token_id for piece in long] == generate(model, prompts[1], 6)
    with pytest.raises(ValueError, match="its batch has begun"):
        llm.abort(2)
    assert llm.abort_all() == []
    while llm.has_unfinished():
        llm.step()
    assert llm.kv.num_free_blocks == 64


def test_abort_waiting_and_running(llm, plain):
    prompt, tokens = plain
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    running = llm.add_request(prompt, params)
    for _ in range(3):
        llm.step()
    waiting = llm.add_request(prompt, params)
    assert llm.abort(waiting).token_ids == []
    answer = llm.abort(running)
    assert (answer.token_ids, answer.finish_reason) == (tokens[:3], "abort")
    assert llm.kv.num_free_blocks == 64 and not llm.has_unfinished()
    assert llm.step() == []


@given(st.text(alphabet=SPEECH, max_size=40))
def test_text_grows_to_what_decoding_at_once_gives(tokenizer, text):
    tokens = tokenizer.encode(text)
    words, pieces = Detokenizer(tokenizer), []
    for token in tokens:
        assert not words.append(token)
        pieces.append(words.take(finished=False))
    words.finish()
    pieces.append(words.take(finished=True))
    assert "".join(pieces) == words.text == tokenizer.decode(tokens)


def test_a_character_of_several_tokens_waits_for_all(tokenizer):
    tokens = tokenizer.encode("🙂")
    assert len(tokens) > 1
    words = Detokenizer(tokenizer)
    texts = [(words.append(token), words.text)[1] for token in tokens]
    assert texts == [""] * (len(tokens) - 1) + ["🙂"]
    cut = Detokenizer(tokenizer)
    cut.append(tokens[0])
    cut.finish()
    assert cut.text == tokenizer.decode(tokens[:1])


@given(st.text(alphabet=SPEECH, min_size=5, max_size=40), st.data())
def test_stop_text_wherever_it_stands(tokenizer, text, data):
    start = data.draw(st.integers(0, len(text) - 2))
    stop = text[start : start + data.draw(st.integers(1, 6))]
    words, shown = Detokenizer(tokenizer, [stop]), ""
    stopped = False
    for token in tokenizer.encode(text):
        stopped = words.append(token)
        shown += words.take(finished=stopped)
        if stopped:
            break
    assert stopped
    assert shown == words.text == text[: text.index(stop)]


def test_of_several_stop_texts_the_first_in_the_answer_counts(tokenizer):
    words = Detokenizer(tokenizer, ["ears", "years", "s ago"])
    for token in tokenizer.encode("Four score and seven years ago"):
        if words.append(token):
            break
    assert words.text == "Four score and seven "
