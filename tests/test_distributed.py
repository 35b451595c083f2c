"""Processes that run together: what they can run, and how they end when one fails, dies or stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock

import nbclient
import nbformat
import pytest
import torch
import torch.distributed as dist

from gpuedu.distributed import PeerLost, RankFailed, launch, process_group, talking_to

sys.path.append(str(Path(__file__).parent))
import by_hand

NOTEBOOK = """
from dataclasses import dataclass
import torch.distributed as dist
from gpuedu.distributed import launch

OFFSET = 40

@dataclass
class Answer:
    value: int

def cell(question):
    return Answer(OFFSET + question.value + dist.get_rank())

answers = launch(2, cell, Answer(1), timeout_s=100)
print(answers, all(type(answer) is Answer for answer in answers))
"""
PRINTED = "[Answer(value=41), Answer(value=42)] True"


def test_a_notebook_runs_functions_of_its_cells():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output["text"].strip() == PRINTED


def test_a_script_runs_its_own_functions_and_is_not_run_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(NOTEBOOK)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip(), run.stderr) == (PRINTED, "")


def test_a_closure_runs_with_one_thread_and_changes_its_own_copy():
    seen = []
    weights = torch.ones(3)

    def closure(base):
        seen.append(base)
        weights.mul_(2)
        total = weights * (dist.get_rank() + 1)
        dist.all_reduce(total)
        return base + dist.get_rank(), total, torch.get_num_threads()

    results = launch(2, closure, 10, timeout_s=100)
    assert [(value, threads) for value, _, threads in results] == [(10, 1), (11, 1)]
    assert all(torch.equal(total, torch.full((3,), 6.0)) for _, total, _ in results)
    assert not seen and torch.equal(weights, torch.ones(3))
    assert sys.modules["__main__"].__spec__ or sys.modules["__main__"].__file__  # as it was


def test_the_traceback_of_the_rank_that_failed_first_is_shown():
    def leaking_reactor():
        if dist.get_rank() == 1:
            raise ArithmeticError("the reactor of rank 1 is leaking")
        dist.barrier()

    with pytest.raises(RankFailed) as failure:
        launch(3, leaking_reactor, timeout_s=100)
    message = str(failure.value)
    assert message.startswith("rank 1 failed: ArithmeticError: the reactor of rank 1 is leaking")
    assert "in leaking_reactor" in message


def test_a_module_that_new_processes_lack_is_named(monkeypatch):
    orphan = type(sys)("orphan")
    exec("def fn(): pass", orphan.__dict__)
    monkeypatch.setitem(sys.modules, "orphan", orphan)
    with pytest.raises(RankFailed, match="ModuleNotFoundError: No module named 'orphan'"):
        launch(1, orphan.fn, timeout_s=100)


@pytest.mark.parametrize(
    ("blow", "message"),
    [
        (signal.SIGKILL, "rank 1 was killed by SIGKILL"),
        (signal.SIGSTOP, "rank 1 died: no sign of life"),
    ],
    ids=["killed", "frozen"],
)
def test_launch_names_the_rank_that_died(blow, message):
    def struck():
        if dist.get_rank() == 1:
            os.kill(os.getpid(), blow)
        with talking_to():
            dist.barrier()

    before = time.monotonic()
    with pytest.raises(RankFailed, match=message):
        launch(2, struck, timeout_s=60)
    assert time.monotonic() - before < 15  # to start and to notice


AT_WORK = """
import torch, torch.distributed as dist
from gpuedu.distributed import process_group, talking_to
with process_group() as rank:
    left, right = ((rank + step) % dist.get_world_size() for step in (-1, 1))
    while True:  # each rank talks to its neighbors alone
        sent, received = dist.isend(torch.zeros(1), right), dist.irecv(torch.zeros(1), left)
        with talking_to(right):
            sent.wait()
        with talking_to(left):
            received.wait()
"""


def test_a_frozen_rank_ends_the_others_within_10_s_and_is_named():
    with by_hand.ranks(2, ["-c", AT_WORK]) as processes:
        processes[0].send_signal(signal.SIGSTOP)
        dead_since = time.monotonic()
        assert "rank 1 ended: rank 0 died: no sign of life" in by_hand.last_words(processes[1])
        assert time.monotonic() - dead_since < 10


def test_processes_that_take_too_long_are_ended():
    before = time.monotonic()
    with pytest.raises(TimeoutError, match="1 processes were not done after timeout_s=4"):
        launch(1, lambda: time.sleep(60), timeout_s=4)
    assert time.monotonic() - before < 9


def test_an_interrupt_ends_them_too(monkeypatch):
    """As if somebody pressed Ctrl-C, or the notebook's stop button, while the processes run."""
    from torch.multiprocessing.spawn import ProcessContext

    started = []

    def interrupted(self, *_):
        started.extend(self.processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessContext, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(2, lambda: time.sleep(60), timeout_s=100)
    assert [process.is_alive() for process in started] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, len, "x"), {}, ValueError, "world_size=0: must be at least 1"),
        ((2.0, len, "x"), {}, TypeError, "world_size=2.0: must be an int"),
        ((2, "len"), {}, TypeError, "fn='len': must be a function"),
        ((2, len, Lock()), {}, TypeError, "fn=len or its arguments cannot be copied"),
        ((2, len, "x"), {"device": "tpu"}, ValueError, "device='tpu': must be 'cpu' or 'cuda'"),
        ((2, len, "x"), {"timeout_s": 0}, ValueError, "timeout_s=0: must be above 0 s"),
        ((2, len, "x"), {"timeout_s": float("nan")}, ValueError, "timeout_s=nan: must be"),
    ],
)
def test_bad_input_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        launch(*arguments, **options)


def test_process_group_refuses_an_unknown_device():
    with pytest.raises(ValueError, match="device='tpu'"), process_group("tpu"):
        raise AssertionError("not reached")


def test_what_torch_raises_of_a_lost_peer_names_it():
    with pytest.raises(PeerLost, match="lost rank 3: connection closed") as lost, talking_to(3):
        raise RuntimeError("connection closed\nand much more")
    assert lost.value.peer == 3
