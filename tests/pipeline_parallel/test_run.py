"""Schedules on real tensors: gradients, memory, order and time, in one process and in several."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gpuedu.distributed import launch
from gpuedu.pipeline_parallel import plan
from gpuedu.pipeline_parallel.cost import peak_activations, timeline
from gpuedu.pipeline_parallel.run import (
    Transformer,
    __main__,
    backward_input,
    backward_weight,
    predict,
    run_local,
    table,
)

sys.path += map(str, Path(__file__).parents[:2])  # for new processes too, which get these paths
import by_hand
import pipeline_jobs as jobs

TOLERANCE = 0.06


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Leave the other core to the other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_gradients_of_every_schedule_in_one_process(p, m):
    for schedule in jobs.all_schedules(p, m):
        jobs.check(schedule, local=True)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 4))
def test_gradients_of_any_valid_schedule_in_one_process(seed, p):
    jobs.check(jobs.random_schedule(seed, p), local=True)


@pytest.fixture(scope="module")
def on_two_processes():
    """Per rank: schedules checked against the uncut model, worst difference from torch's runs, threads."""
    return launch(2, jobs.on_two, [4, 3], 10, timeout_s=200)


@pytest.fixture(scope="module")
def on_four_processes():
    """Number of schedules checked; runs of sleeping parts, the slow network being two sleeps slow."""
    return launch(4, jobs.on_four, [8, 5], 10, 0.015, 2, TOLERANCE, timeout_s=300)[0]


def test_gradients_of_every_schedule_over_gloo(on_two_processes, on_four_processes):
    two, four = on_two_processes[0][0], on_four_processes[0]
    for p, microbatches, checked in ((2, (4, 3), two), (4, (8, 5), four)):
        assert checked == 10 + sum(len(jobs.all_schedules(p, m)) for m in microbatches)


def test_gradients_equal_those_of_torch_pipelining(on_two_processes):
    assert max(error for _, error, _ in on_two_processes) < 1e-12


def test_inputs_that_require_a_gradient_receive_it():
    schedule = plan.zb_v(2, 4)
    parts = [nn.Linear(3, 3).double() for _ in range(4)]
    inputs, targets = torch.randn(2, 8, 3, dtype=torch.float64)
    inputs.requires_grad_()
    functional.mse_loss(nn.Sequential(*parts)(inputs), targets).backward()
    expected, inputs.grad = inputs.grad, None
    run_local(schedule, parts, inputs, targets, functional.mse_loss)
    torch.testing.assert_close(inputs.grad, expected, rtol=1e-12, atol=0)


def test_gradients_add_up_over_steps_and_parts_may_be_any_functions():
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    inputs, targets = torch.randn(2, 4, 3, dtype=torch.float64)
    parts = [lambda x: x @ weight, torch.tanh]
    for _ in range(2):
        run_local(plan.zb_h1(2, 2), parts, inputs, targets, functional.mse_loss)
    functional.mse_loss(torch.tanh(inputs @ weight), targets).backward(torch.tensor(-2.0))
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=1e-15)


# --- the split backward ------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """One Linear twice in a row, and a parameter of its own between."""

    def __init__(self):
        super().__init__()
        self.twice, self.once = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.twice(torch.tanh(self.once(torch.tanh(self.twice(x)))))


class Branches(nn.Module):
    """One weight, itself computed from another, on two branches that do not feed each other."""

    def __init__(self):
        super().__init__()
        self.scale, self.weight, self.unused = (nn.Parameter(torch.randn(8)) for _ in range(3))

    def forward(self, x):
        weight = self.weight * self.scale.exp()
        left, right = x.chunk(2, dim=1)
        return torch.cat([left * weight, torch.sin(right) * weight], dim=1) + self.weight


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1))

    def forward(self, x):
        return self.convolution(x).relu()


MODULES = {
    "block": lambda: jobs.Block(embedding=False, head=False),
    "with head": lambda: jobs.Block(embedding=False, head=True),
    "embedding first": lambda: jobs.Block(embedding=True, head=True),
    "transformer": lambda: Transformer(layers=2, hidden_size=8).part(plan.gpipe(1, 1), 0),
    "attention": Attention,
    "tied": Tied,
    "branches": Branches,
    "convolution": Convolution,
    "recurrent": lambda: nn.Sequential(nn.GRU(8, 8, batch_first=True), Pick()),
    "no parameters": nn.Tanh,
}


SHARED = {  # the weights whose gradient comes with the input's, being used more than once
    "tied": {"twice.weight", "twice.bias"},
    "branches": {"scale", "weight"},
    "recurrent": {"0.weight_hh_l0", "0.bias_hh_l0"},
}


class Pick(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def forward(name: str):
    """A module, an input that it fits, its output and the gradient of that, in float64."""
    torch.manual_seed(0)
    module = MODULES[name]().double()
    shape = (2, 4, 8) if name in ("convolution", "branches") else (2, jobs.TOKENS, jobs.WIDTH)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    if name == "embedding first":
        x = torch.randint(jobs.VOCABULARY, shape[:2])
    output = module(x)
    return module, x, output, torch.randn_like(output)


@pytest.mark.parametrize("name", MODULES)
def test_weight_gradients_after_input_gradients_are_those_of_one_backward(name):
    module, x, output, gradient = forward(name)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    expected = torch.autograd.grad(output, wanted, gradient, retain_graph=True, allow_unused=True)
    leaf = x if x.requires_grad else None
    input_gradient, work = backward_input(get_gradient_edge(output), gradient, leaf)
    early = {n for n, parameter in module.named_parameters() if parameter.grad is not None}
    assert early == SHARED.get(name, set())
    backward_weight(work)
    actual = [p.grad for p in module.parameters()]
    if leaf is not None:
        actual.insert(0, input_gradient)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


class Counting(TorchDispatchMode):
    """Counts the operators that run, and which gradients the fused backward ones compute."""

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ("native_layer_norm_backward", "convolution_backward"):
            for which, computed in zip(("input", "weight", "bias"), args[-1], strict=True):
                self.count[f"{name}: {which}"] += computed
        else:
            self.count[name] += 1
        return operator(*args, **(kwargs or {}))


def heavy(count: Counter[str]) -> dict[str, int]:
    """The operators that cost something: no views, no additions of gradients."""
    light = {
        "t",
        "view",
        "_unsafe_view",
        "transpose",
        "detach",
        "add",
        "add_",
        "expand",
        "unsqueeze",
        "select",
    }
    return {name: n for name, n in count.items() if n and name not in light}


@pytest.mark.parametrize("name", ["block", "with head", "transformer", "attention", "convolution", "tied"])
def test_no_operator_runs_in_both_halves(name):
    _, x, output, gradient = forward(name)
    with Counting() as whole:
        output.backward(gradient, retain_graph=True)
    with Counting() as first:
        _, work = backward_input(get_gradient_edge(output), gradient, x)
    with Counting() as second:
        backward_weight(work)
    assert heavy(first.count + second.count) == heavy(whole.count)
    assert second.count["mm"] + second.count["convolution_backward: weight"] > 0
    assert first.count["native_layer_norm_backward: weight"] == 0
    assert second.count["native_layer_norm_backward: input"] == 0


def test_each_linear_takes_one_matmul_in_each_half():
    part = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    x = torch.randn(2, 8, requires_grad=True)
    output = part(x)
    with Counting() as first:
        _, work = backward_input(get_gradient_edge(output), torch.ones_like(output), x)
    with Counting() as second:
        backward_weight(work)
    assert (first.count["mm"], second.count["mm"]) == (5, 5)


def test_an_output_that_does_not_depend_on_the_input_is_refused():
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on its input"):
        backward_input(get_gradient_edge(weight * 2), torch.ones(2), torch.ones(2, requires_grad=True))


# --- memory ------------------------------------------------------------------------------------------


class Ledger:
    """How many tensors autograd holds for a rank, now and at most."""

    def __init__(self):
        self.now = self.peak = 0

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(lambda tensor: Saved(self, tensor), lambda saved: saved.tensor)


class Saved:
    def __init__(self, ledger, tensor):
        self.ledger, self.tensor = ledger, tensor
        ledger.now += 1
        ledger.peak = max(ledger.peak, ledger.now)

    def __del__(self):
        self.ledger.now -= 1


class Audited(nn.Module):
    def __init__(self, inner, ledger):
        super().__init__()
        self.inner, self.ledger = inner, ledger

    def forward(self, x):
        with self.ledger.hooks():
            return self.inner(x)


@pytest.mark.parametrize("schedule", jobs.all_schedules(3, 6), ids=lambda s: f"{s.name}-{s.chunks}")
def test_activations_are_freed_when_the_weight_gradient_is_done(schedule):
    ledgers = [Ledger() for _ in range(schedule.stages)]
    parts = [
        Audited(jobs.Block(embedding=False, head=False), ledgers[schedule.home(part)[0]])
        for part in range(schedule.depth)
    ]
    one = Ledger()
    held = Audited(parts[0].inner, one)(torch.randn(1, jobs.TOKENS, jobs.WIDTH, requires_grad=True))
    inputs, targets = torch.randn(2, 6, jobs.TOKENS, jobs.WIDTH)
    run_local(schedule, parts, inputs.requires_grad_(), targets, functional.mse_loss)
    assert [ledger.now for ledger in ledgers] == [0] * schedule.stages
    assert held is not None and one.now > 5
    expected = [peak * schedule.chunks * one.now for peak in peak_activations(schedule)]
    assert [ledger.peak for ledger in ledgers] == expected


# --- bad input ---------------------------------------------------------------------------------------


def linear_parts(count):
    return [nn.Linear(3, 3) for _ in range(count)]


X, Y = torch.zeros(2, 8, 3)
W = torch.ones(2, 3, requires_grad=True) * 1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parts": linear_parts(3)}, ValueError, "3 parts: gpipe needs .* 2"),
        ({"schedule": plan.gpipe(2, 3)}, ValueError, r"inputs of shape \(8, 3\).* 3 microbatches"),
        ({"targets": Y[0]}, ValueError, r"targets of shape \(3,\).* 4 microbatches"),
        ({"inputs": None}, TypeError, "inputs=None"),
        ({"targets": None}, TypeError, "targets=None"),
        ({"loss_fn": torch.sub}, ValueError, r"loss_fn returned shape \(2, 3\)"),
        ({"parts": [torch.Tensor.long] * 2}, TypeError, "a part returned a tensor of torch.int64"),
        ({"inputs": X + X.clone().requires_grad_()}, ValueError, "inputs: must be a leaf"),
        (
            {"parts": [nn.Linear(3, 3), lambda x: torch.ones(2, 3)]},
            ValueError,
            "does not depend on its input",
        ),
        ({"parts": [nn.Linear(3, 3), lambda x: W]}, ValueError, "does not depend on its input"),
        ({"parts": [torch.Tensor.aminmax] * 2}, TypeError, "a part returned aminmax"),
    ],
)
def test_bad_input_is_refused(changed, error, message):
    good = {"schedule": plan.gpipe(2, 4), "parts": linear_parts(2), "inputs": X, "targets": Y}
    with pytest.raises(error, match=message):
        run_local(**good | {"loss_fn": functional.mse_loss} | changed)


def test_a_schedule_that_cannot_run_is_refused():
    backward_first = ((plan.Action(0, plan.FULL_BACKWARD, 0), plan.Action(0, plan.FORWARD, 0)),)
    schedule = plan.Schedule("mine", 1, 1, 1, plan.Placement.LOOP, backward_first)
    with pytest.raises(ValueError, match="mine: rank 0 runs the full backward of microbatch 0 before"):
        run_local(schedule, linear_parts(1), X, Y, functional.mse_loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "5"], "layers=5: must be a multiple"),
        (["--hidden-size", "100"], "hidden_size=100"),
        (["--dtype", "float33"], "dtype='float33'"),
        (["--dtype", "int64"], "dtype='int64'"),
        (["--microbatches", "0"], "argument --microbatches: 0: must be at least 1"),
        (["--schedule", "interleaved_1f1b", "--microbatches", "3"], "microbatches=3"),
        (["--workload", "sleep", "--sleep", "1", "-1", "1"], "argument --sleep: -1: must be at least 0"),
        (["--schedule", "one_b_one_f"], "invalid choice: 'one_b_one_f'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--steps", "0"], "argument --steps: 0: must be"),
        (["--transfer-delay", "-1"], "argument --transfer-delay: -1: must be"),
        (["--timeout", "0"], "argument --timeout: 0: must be"),
    ],
)
def test_bad_arguments_of_the_command_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# --- processes ---------------------------------------------------------------------------------------


def test_launch_returns_what_each_rank_returned_with_one_thread_each(on_two_processes):
    assert [threads for _, _, threads in on_two_processes] == [1, 1]


COMMAND = ["-m", "gpuedu.pipeline_parallel.run"]


def test_a_killed_rank_ends_the_others_within_10_s_and_is_named():
    working = ["--workload", "sleep", "--microbatches", "200", "--steps", "100"]
    with by_hand.ranks(4, [*COMMAND, *working]) as processes:
        processes[2].kill()
        dead_since = time.monotonic()
        for rank in (0, 1, 3):
            assert f"rank {rank} ended: rank 2 died: " in by_hand.last_words(processes[rank])
        assert time.monotonic() - dead_since < 10


def test_the_command_under_torchrun_prints_predicted_and_measured():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--schedule", "gpipe", "zb_auto", "--layers", "2", "--hidden-size", "16", "--steps", "1"]
    command = [*torchrun, *COMMAND, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("makespan (ms)") == 2
    assert "gpipe: p = 2, m = 8, v = 1" in run.stdout and "zb_auto: p = 2" in run.stdout


def test_the_package_itself_does_not_import_torch():
    code = "import sys, gpuedu.pipeline_parallel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- time --------------------------------------------------------------------------------------------


def nominal(slept, schedule):
    """The timeline if everybody slept exactly as told, and messages took no time of their own."""
    forward, backward_input, backward_weight = vars(slept.sleep).values()
    return timeline(
        schedule,
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        transfer=slept.delay_s,
    )


def test_measured_makespan_is_the_predicted_one(on_four_processes):
    names = [slept.run.timeline.schedule.name for slept in on_four_processes[1]]
    assert names == [*plan.SCHEDULES, "zb_auto", "one_f_one_b", "zb_v"]
    for slept in on_four_processes[1]:
        measured, predicted = slept.run.timeline, predict(slept.run, slept.delay_s)
        text = table(slept.run, slept.delay_s)
        # Nobody sleeps shorter than told, and every action waits for what it needs
        assert measured.makespan >= nominal(slept, measured.schedule).makespan, text
        assert measured.makespan <= (1 + TOLERANCE) * predicted.makespan, text
        assert predicted.busy == pytest.approx(measured.busy, rel=1e-6), text


def test_a_transfer_delays_as_predicted_and_keeps_nobody_busy(on_four_processes):
    slow = [slept for slept in on_four_processes[1] if slept.delay_s]
    for slept in slow:  # its measured makespan is held against the prediction above
        measured = slept.run.timeline
        assert measured.makespan > 1.2 * predict(slept.run, 0.0).makespan
        busy = nominal(slept, measured.schedule).busy
        assert all(m < 1.5 * n for m, n in zip(measured.busy, busy, strict=True))


def test_no_action_starts_before_what_it_needs_has_arrived(on_four_processes):
    for run, _, delay_s in on_four_processes[1]:
        schedule = run.timeline.schedule
        ends = {}
        for span in run.timeline.spans:
            stage, kind, j, chunk = span.action
            what = "activation" if kind is plan.FORWARD else "gradient"
            if kind is not plan.BACKWARD_WEIGHT:
                ends[what, schedule.part(stage, chunk), j] = span.end
        for span in run.timeline.spans:
            stage, kind, j, chunk = span.action
            before = schedule.part(stage, chunk) + (-1 if kind is plan.FORWARD else 1)
            if kind is not plan.BACKWARD_WEIGHT and before in range(schedule.depth):
                what = "activation" if kind is plan.FORWARD else "gradient"
                lag = 0 if schedule.home(before)[0] == stage else delay_s
                assert span.start >= ends[what, before, j] + lag


def test_the_table_shows_both(on_four_processes):
    run = next(
        slept.run for slept in on_four_processes[1] if slept.run.timeline.schedule.name == "one_f_one_b"
    )
    text = table(run)
    assert f"{1e3 * run.timeline.makespan:.1f}" in text and f"{1e3 * predict(run).makespan:.1f}" in text
    assert [line.split()[-1] for line in text.splitlines()[-4:]] == ["4", "3", "2", "1"]
