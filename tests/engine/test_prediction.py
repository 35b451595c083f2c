"""The simulator and the engine make the same decisions; with the same prices they tell the same times."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gpuedu.engine.__main__ as command
from gpuedu.continuous_batching.plan import SchedulerConfig, VLLMScheduler
from gpuedu.engine import (
    LLM,
    SamplingParams,
    drive,
    measure_iterations,
    measure_step_cost,
    median_residuals,
    predict,
    residuals,
    run_trial,
    trial,
)
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import RequestLog, RequestRecord
from gpuedu.serving.simulator import Replica, simulate
from gpuedu.serving.step_cost import LinearStepCost
from gpuedu.serving.workload import Poisson, Request, Uniform, make_requests

MEASUREMENTS = Path(__file__).parents[2] / "measurements"
COST = LinearStepCost(0.02, token_s=0.0007, decode_s=0.003, context_s=2e-5, pair_s=1e-6)


class Clock:
    """Stands still unless something that takes time is done."""

    def __init__(self):
        self.now = 100.0
        self.slowness = 1.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def priced_engine(model, clock: Clock, **limits) -> LLM:
    """An engine on whose clock an iteration takes what the step cost says."""
    llm = LLM(model, enable_prefix_caching=False, clock=clock, record=True, **limits)
    schedule = llm.scheduler.schedule

    def schedule_and_wait():
        decision = schedule()
        if not decision.is_empty:
            chunks = [(tokens, sequence.num_computed_tokens) for sequence, tokens in decision.chunks]
            seconds = COST.seconds(len(decision.decodes), decision.context_tokens, chunks)
            clock.now += clock.slowness * seconds
        return decision

    llm.scheduler.schedule = schedule_and_wait
    return llm


LIMITS = {
    "plain": {"num_blocks": 200},
    "chunks": {"num_blocks": 200, "max_num_batched_tokens": 16},
    "few places": {"num_blocks": 200, "max_num_seqs": 3},
    "few blocks": {"num_blocks": 16, "block_size": 4, "max_num_batched_tokens": 24},
    "held back": {"num_blocks": 300, "block_size": 4, "long_prefill_token_threshold": 6},
}


@pytest.mark.parametrize("rate", [2.0, 1000.0])
@pytest.mark.parametrize("name", LIMITS)
def test_engine_and_simulator_tell_the_same_times(model, name, rate):
    requests = make_requests(40, Poisson(rate), Uniform(1, 40), Uniform(1, 20), seed=3)
    clock = Clock()
    limits = dict(LIMITS[name])
    llm = priced_engine(model, clock, **limits)
    measured = drive(llm, requests, sleep=clock.sleep)
    num_blocks, block_size = limits.pop("num_blocks"), limits.pop("block_size", 16)
    predicted = predict(requests, COST, llm.config, num_blocks=num_blocks, block_size=block_size)
    assert len(measured) == 40
    theirs = {record.request_id: record for record in predicted}
    for record in measured:
        other = theirs[record.request_id]
        for field in ("arrival_s", "start_s", "first_token_s", "finish_s", "worst_gap_s"):
            assert getattr(record, field) == pytest.approx(getattr(other, field), abs=1e-8), field
        for field in ("prompt_tokens", "output_tokens", "preemptions"):
            assert getattr(record, field) == getattr(other, field)
    assert (sum(measured.preemptions) > 0) == (name == "few blocks")
    assert max(max(map(abs, values)) for values in residuals(measured, predicted).values()) < 1e-6
    assert len(llm.trace.requests) == 40 and not llm.has_unfinished()


def test_the_simulator_replays_a_trace(model):
    """From the trace alone: what was asked, and what the iterations cost."""
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=100, max_num_batched_tokens=32)
    lengths = [(3, 5), (30, 9), (50, 2), (1, 14)]
    drive(llm, [Request(n, 1e-4 * n, *both) for n, both in enumerate(lengths)], sleep=clock.sleep)
    workload = llm.trace.workload()
    assert [(request.prompt_tokens, request.output_tokens) for request in workload] == lengths
    cost = llm.trace.fit()
    replica = Replica(VLLMScheduler(SchedulerConfig(max_num_batched_tokens=32), BlockCounter(100)), cost)
    log = simulate(workload, [replica]).requests
    measured = sorted(llm.trace.requests, key=lambda record: record.prompt_tokens)
    predicted = sorted(log, key=lambda record: record.prompt_tokens)
    for ours, theirs in zip(measured, predicted, strict=True):
        assert theirs.latency_s == pytest.approx(ours.latency_s, rel=0.01)


def test_a_replayed_request_is_compared_with_itself(model):
    """Under the names that they had, which are not in the order of arrival."""
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=100)
    lengths = {7: (3, 5), "b": (50, 2), 0: (30, 9)}
    asked = [Request(name, 1e-4 * n, *both) for n, (name, both) in enumerate(lengths.items())]
    drive(llm, asked, sleep=clock.sleep)
    workload = llm.trace.workload()
    assert {r.request_id: (r.prompt_tokens, r.output_tokens) for r in workload} == lengths
    found = residuals(llm.trace.requests, predict(workload, COST, llm.config, num_blocks=100))
    assert max(max(map(abs, values)) for values in found.values()) < 1e-6


def test_measured_step_cost_is_the_true_one(model):
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=200)
    fitted = measure_step_cost(llm, batch_sizes=(1, 3, 8), prompt_tokens=(4, 60, 120))
    assert llm.trace.iterations == [] and len(llm.trace.requests) == 0
    for batch in ((4, 300, ()), (1, 40, ()), (0, 0, ((100, 0),)), (2, 60, ((30, 0), (50, 0)))):
        assert fitted.seconds(*batch) == pytest.approx(COST.seconds(*batch), rel=0.01)


def test_waiting_counts_from_when_it_came(model):
    """Requests that come during an iteration wait from then on, and not from its end."""
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=100)
    requests = [Request(0, 0.0, prompt_tokens=30, output_tokens=3), Request(1, 0.001, 5, 1)]
    log = drive(llm, requests, sleep=clock.sleep)
    records = {record.request_id: record for record in log}
    first = COST.seconds(0, 0, [(30, 0)])
    assert records[1].arrival_s == pytest.approx(0.001)
    assert records[1].start_s == pytest.approx(first)
    assert records[1].ttft_s == pytest.approx(first + COST.seconds(1, 30, [(5, 0)]) - 0.001)


def test_residuals():
    def log(*rows):
        return RequestLog(RequestRecord(n, 0.0, 0.0, first, end, 5, out) for n, first, end, out in rows)

    found = residuals(log((0, 1.0, 3.0, 3), (1, 2.0, 2.0, 1)), log((1, 1.0, 1.0, 1), (0, 1.5, 4.5, 3)))
    assert found["ttft_s"] == [0.5, -0.5]
    assert found["tpot_s"] == [0.5]
    assert found["latency_s"] == [0.5, -0.5]
    assert found["throughput"] == [pytest.approx(3.0 / 4.5 - 1)]
    assert median_residuals(found)["ttft_s"] == 0.5


UNLIKE = {"batch_sizes": (1, 3, 8), "prompt_tokens": (4, 60, 120)}


def test_a_trial_on_a_steady_machine(model):
    """Runs repeat themselves, and every one is as predicted."""
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=200)
    requests = make_requests(12, Poisson(2.0), Uniform(1, 40), Uniform(2, 20), seed=3)
    trial = run_trial(llm, requests, runs=3, sleep=clock.sleep, **UNLIKE)
    assert [len(log) for log in (*trial.measured, *trial.predicted, *trial.replayed)] == 9 * [12]
    found, replayed, scatter = trial.residuals(), trial.replay_residuals(), trial.scatter()
    assert {name: len(values) for name, values in found.items()} == {
        "ttft_s": 36, "latency_s": 36, "tpot_s": 36, "throughput": 3,
    }  # fmt: skip
    assert len(scatter["ttft_s"]) == 24
    for off in (found, replayed):
        assert max(max(map(abs, values)) for values in off.values()) < 0.03
    assert max(max(map(abs, values)) for values in scatter.values()) < 1e-6
    assert not llm.has_unfinished()


def test_each_run_is_predicted_by_the_measurements_around_it(model, monkeypatch):
    """The machine takes 1, 1.9, 2, 2, 2 times as long from phase to phase."""
    clock = Clock()
    llm = priced_engine(model, clock, num_blocks=200)
    requests = make_requests(6, Poisson(2.0), Uniform(1, 40), Uniform(2, 20), seed=3)
    order, slowness = [], iter((1.0, 1.9, 2.0, 2.0, 2.0))

    def phase(name, function):
        def begun(*arguments, **options):
            order.append(name)
            clock.slowness = next(slowness)
            return function(*arguments, **options)

        return begun

    monkeypatch.setattr(trial, "measure_iterations", phase("measure", measure_iterations))
    monkeypatch.setattr(trial, "drive", phase("drive", drive))
    found = run_trial(llm, requests, runs=2, sleep=clock.sleep, **UNLIKE)
    assert order == ["measure", "drive", "measure", "drive", "measure"]
    first, second = (cost.seconds(4, 200) / COST.seconds(4, 200) for cost in found.step_costs)
    assert 1.2 < first < 1.8
    assert second == pytest.approx(2, rel=0.01)
    off, replayed = found.residuals()["latency_s"], found.replay_residuals()["latency_s"]
    assert max(off[:6]) < -0.1 and max(map(abs, off[6:])) < 0.03  # the first run was slower than foreseen
    assert max(map(abs, replayed)) < 0.03
    assert found.scatter()["throughput"][0] > 0.01  # the run before was faster than the later


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"record": False}, "must keep a trace"),
        ({"enable_prefix_caching": True}, "must not find prefixes"),
        ({"make_scheduler": lambda kv: VLLMScheduler(SchedulerConfig(), kv)}, "not one of its own"),
    ],
)
def test_what_cannot_be_predicted_is_not_tried(model, options, match):
    llm = LLM(model, num_blocks=64, **{"record": True, "enable_prefix_caching": False} | options)
    with pytest.raises(ValueError, match=match):
        run_trial(llm, [Request(0, 0.0, 5, 1)])


def test_one_run_is_no_trial(model):
    llm = LLM(model, num_blocks=64, enable_prefix_caching=False, record=True)
    with pytest.raises(ValueError, match="runs=1: must be"):
        run_trial(llm, [Request(0, 0.0, 5, 1)], runs=1)


@pytest.mark.parametrize(
    ("workload", "match"),
    [
        ([Request(0, 0.0, 16, 4)], "longest answer has 4 tokens"),
        ([], "longest answer has 0 tokens"),
        ([Request(0, 0.0, 16, 9), Request(0, 1.0, 16, 9)], "ids that differ"),
        ([Request(0, 0.0, 600, 900)], "tokens"),
    ],
)
def test_nothing_is_measured_for_requests_that_cannot_be_tried(model, monkeypatch, workload, match):
    llm = LLM(model, num_blocks=64, enable_prefix_caching=False, record=True)
    monkeypatch.setattr(llm, "step", None)
    with pytest.raises(ValueError, match=match):
        run_trial(llm, workload)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_sizes": ()}, "batch_sizes: must be at least one"),
        ({"batch_sizes": (0,)}, "batch_sizes=0"),
        ({"prompt_tokens": (16, -1)}, "prompt_tokens=-1"),
        ({"output_tokens": 0}, "output_tokens=0"),
    ],
)
def test_a_measurement_of_nothing(model, options, match):
    with pytest.raises(ValueError, match=match):
        measure_iterations(LLM(model, num_blocks=64), **options)


def test_a_measurement_finds_no_prefix_of_the_one_before(model):
    llm = LLM(model, num_blocks=300)
    first, second = (measure_iterations(llm, batch_sizes=(3,), prompt_tokens=(40, 60)) for _ in range(2))
    assert [iteration[1:] for iteration in first] == [iteration[1:] for iteration in second]
    kinds = {(bool(iteration.decodes), bool(iteration.chunks)) for iteration in first}
    assert kinds == {(False, True), (True, False), (True, True)}


def test_an_engine_that_is_not_idle(model):
    llm = LLM(model, num_blocks=64, record=True)
    name = llm.add_request([1, 2, 3], SamplingParams(max_tokens=9))
    for busy in (lambda: drive(llm, [Request(5, 0.0, 4, 2)]), lambda: measure_iterations(llm)):
        with pytest.raises(ValueError, match="must have the engine to itself"):
            busy()
    llm.abort(name)
    assert llm.kv.num_free_blocks == 64


@pytest.mark.parametrize("bad", [["--runs", "1"], ["--requests", "0"], ["--rate", "0"], ["--rate", "nan"]])
def test_the_command_refuses_at_once(monkeypatch, capsys, bad):
    monkeypatch.setattr("sys.argv", ["engine", *bad])
    monkeypatch.setattr(command.tinylm, "smollm2_or_target", None)
    with pytest.raises(SystemExit):
        command.main()
    assert "--runs at least 2" in capsys.readouterr().err


def stored_times(log):
    """Of each request: first token, a token after it, whole answer."""
    log = {name: np.array(column) for name, column in log.items()}
    first, whole = log["first_token_s"] - log["arrival_s"], log["finish_s"] - log["arrival_s"]
    return {
        "ttft_s": first, "tpot_s": (whole - first) / (log["output_tokens"] - 1), "latency_s": whole
    }  # fmt: skip


def test_the_stored_trial_is_within_its_bar():
    """The table of the book: recomputed from the raw times, and under 15 % in the median."""
    report = json.loads((MEASUREMENTS / "serving_prediction.json").read_text())
    assert [result["model"] for result in report["results"]] == ["tinylm", "SmolLM2-135M-Instruct"]
    for result in report["results"]:
        runs = result["runs"]
        assert len(runs) >= 3
        assert all(len(log["request_id"]) == report["requests"] for run in runs for log in run.values())
        pairs = {how: [(run["measured"], run[how]) for run in runs] for how in ("predicted", "replayed")}
        pairs["run_to_run"] = [(late["measured"], soon["measured"]) for soon, late in pairwise(runs)]
        for how, logs in pairs.items():
            off = {"ttft_s": [], "tpot_s": [], "latency_s": []}
            for ours, theirs in logs:
                assert ours["request_id"] == theirs["request_id"]
                seen, foretold = stored_times(ours), stored_times(theirs)
                for name, values in off.items():
                    values += list(abs(foretold[name] / seen[name] - 1))
            for name, values in off.items():
                stored = result["median_residuals"][how][name]
                assert np.median(values) == pytest.approx(stored, rel=0.02)
                assert how == "run_to_run" or stored < 0.15


def test_the_command_prints_measured_and_predicted(make_model, monkeypatch, capsys):
    model = make_model(context_length=512)
    monkeypatch.setattr(command.tinylm, "smollm2_or_target", lambda: ("small", model, None))
    monkeypatch.setattr("sys.argv", ["engine", "--requests", "5", "--runs", "2"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small, ms of an iteration by its tokens: 1: ")
    assert lines[2].split() == ["measured", "predicted", "predicted", "replayed", "run", "to", "run"]
    rows = [line.split() for line in lines[3:7]]
    assert [row[0] for row in rows] == ["ttft_s", "tpot_s", "latency_s", "tokens/s"]
    for row in rows:
        assert float(row[1]) > 0 and float(row[2]) > 0
        assert all(value.endswith("%") for value in row[3:]) and len(row) == 6
