"""Predicted against measured, on this machine: ``python -m gpuedu.engine``."""

from __future__ import annotations

import argparse
from statistics import mean, median

from gpuedu import tinylm
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.step_cost import fit_step_cost
from gpuedu.serving.workload import Poisson, Uniform, make_requests

from .llm import LLM
from .prediction import drive, measure_iterations, median_residuals, predict, residuals

NUM_BLOCKS = 800


def main() -> None:
    """Measure the machine, serve requests at random, measure again, and simulate the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.7, help="as a share of what the engine can serve")
    arguments = parser.parse_args()
    name, model, _ = tinylm.smollm2_or_target()
    llm = LLM(model, num_blocks=NUM_BLOCKS, enable_prefix_caching=False, max_num_seqs=16, record=True)
    before = measure_iterations(llm)
    cost = fit_step_cost(before)
    prompts, outputs = Uniform(16, 256), Uniform(8, 64)
    # Served alone a request takes so long; sixteen together take a third of it each, roughly
    alone_s = cost.seconds(0, 0, [(136, 0)]) + 36 * cost.seconds(1, 154)
    workload = make_requests(
        arguments.requests, Poisson(3 * arguments.rate / alone_s), prompts, outputs, seed=1
    )
    measured = drive(llm, workload)
    cost = fit_step_cost(before + measure_iterations(llm))
    print(f"{name}: {cost}")
    predicted = predict(workload, cost, llm.config, num_blocks=NUM_BLOCKS)
    report(measured, predicted)


def report(measured: RequestLog, predicted: RequestLog) -> None:
    """A line for each figure."""
    off = residuals(measured, predicted)
    print(f"{'':12} {'measured':>10} {'predicted':>10} {'median residual':>16}")
    for name in ("ttft_s", "tpot_s", "latency_s"):
        ours, theirs = (median(getattr(log, name)()) for log in (measured, predicted))
        print(f"{name:12} {ours:10.4f} {theirs:10.4f} {median_residuals(off)[name]:16.1%}")
    rates = [sum(log.output_tokens) / max(log.finish_s) for log in (measured, predicted)]
    print(f"{'tokens/s':12} {rates[0]:10.1f} {rates[1]:10.1f} {abs(off['throughput'][0]):16.1%}")
    print(f"mean residual of the latency, with its sign: {mean(off['latency_s']):+.1%}")


if __name__ == "__main__":
    main()
