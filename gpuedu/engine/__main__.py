"""Predicted against measured, on this machine: ``python -m gpuedu.engine``."""

from __future__ import annotations

import argparse
from statistics import mean, median

from gpuedu import tinylm
from gpuedu.serving.workload import AllAtOnce, Poisson, Uniform, make_requests

from .llm import LLM
from .prediction import measure_step_cost, median_residuals, predict, throughput
from .trial import Trial, run_trial

NUM_BLOCKS = 800


def main() -> None:
    """Serve requests at random a few times, measure the machine between, and simulate the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument(
        "--rate", type=float, default=0.5, help="as a share of the rate at which as many at once are cleared"
    )
    parser.add_argument("--runs", type=int, default=3, help="of the same requests")
    arguments = parser.parse_args()
    if arguments.requests < 1 or arguments.runs < 2 or not 0 < arguments.rate < float("inf"):
        parser.error("--requests must be at least 1, --runs at least 2, --rate above 0")
    name, model, _ = tinylm.smollm2_or_target()
    llm = LLM(model, num_blocks=NUM_BLOCKS, enable_prefix_caching=False, max_num_seqs=16, record=True)
    lengths = Uniform(16, 256), Uniform(8, 64)
    at_once = make_requests(arguments.requests, AllAtOnce(), *lengths, seed=1)
    cleared = predict(at_once, measure_step_cost(llm), llm.config, num_blocks=NUM_BLOCKS)
    arrivals = Poisson(arguments.rate * arguments.requests / max(cleared.finish_s))
    workload = make_requests(arguments.requests, arrivals, *lengths, seed=1)
    trial = run_trial(llm, workload, runs=arguments.runs)
    cost = trial.step_costs[-1]
    times = (f"{knot}: {1e3 * s:.1f}" for knot, s in zip(cost.knots, cost.knots_s, strict=True))
    print(f"{name}, ms of an iteration by its tokens: {', '.join(times)}")
    report(trial)


def report(trial: Trial) -> None:
    """A line for each figure."""
    found = {
        "predicted": trial.residuals(), "replayed": trial.replay_residuals(), "run to run": trial.scatter()
    }  # fmt: skip
    off = {name: median_residuals(values) for name, values in found.items()}

    kinds = {"tokens/s": "throughput"}

    def line(name: str, ours: float, theirs: float, decimals: int) -> str:
        medians = " ".join(f"{column[kinds.get(name, name)]:10.1%}" for column in off.values())
        return f"{name:12} {ours:10.{decimals}f} {theirs:10.{decimals}f} {medians}"

    print(f"{'':12} {'medians':^21} {'median residuals':^32}")
    print(f"{'':12} {'measured':>10} {'predicted':>10} {' '.join(f'{name:>10}' for name in off)}")
    for name in ("ttft_s", "tpot_s", "latency_s"):
        ours, theirs = (
            median(value for log in logs for value in getattr(log, name)())
            for logs in (trial.measured, trial.predicted)
        )
        print(line(name, ours, theirs, 4))
    ours, theirs = (median(map(throughput, logs)) for logs in (trial.measured, trial.predicted))
    print(line("tokens/s", ours, theirs, 1))
    signed = mean(found["predicted"]["latency_s"])
    print(f"mean residual of the predicted latency, with its sign: {signed:+.1%}")


if __name__ == "__main__":
    main()
