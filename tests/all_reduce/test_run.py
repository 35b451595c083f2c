"""Plans on real arrays: in one process against numpy, in several against gloo; what goes wrong on purpose."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.all_reduce import plan as plans
from gpuedu.all_reduce.cost import bus_factor
from gpuedu.all_reduce.plan import Collective, Plan, Transfer
from gpuedu.all_reduce.run import (
    BitFlip,
    Death,
    Straggler,
    __main__,
    measure,
    run_distributed,
    run_local,
    table,
)
from gpuedu.all_reduce.run.distributed import carry_out
from gpuedu.distributed import RankFailed, launch

sys.path += map(str, Path(__file__).parents[:2])  # for new processes too, which get these paths
import all_reduce_jobs as jobs
import by_hand

# --- in one process ----------------------------------------------------------------------------------


@given(st.data())
def test_any_plan_of_any_size_gives_what_numpy_gives(data):
    plan = data.draw(st.sampled_from(jobs.all_plans(data.draw(st.integers(1, 9)))))
    length = data.draw(st.integers(0, 60))
    arrays = [array.numpy() for array in jobs.inputs(plan, length, torch.int64, length)]
    before = [array.copy() for array in arrays]
    results = run_local(plan, arrays)
    assert all(map(np.array_equal, arrays, before))
    for rank, result in enumerate(results):
        wanted = by_numpy(plan, arrays, rank, length)
        assert (result is None) == (wanted is None)
        assert wanted is None or (np.array_equal(result, wanted) and result.dtype == wanted.dtype)
        assert not any(np.shares_memory(result, other) for other in arrays if result is not None)


def by_numpy(plan: Plan, arrays: list[np.ndarray], rank: int, length: int) -> np.ndarray | None:
    n, at = plan.world_size, plan.bounds(length)
    match plan.collective:
        case Collective.ALL_REDUCE:
            return sum(arrays)
        case Collective.REDUCE:
            return sum(arrays) if rank == plan.root else None
        case Collective.BROADCAST:
            return arrays[plan.root]
        case Collective.ALL_GATHER:
            return np.concatenate(arrays)
        case Collective.REDUCE_SCATTER:
            return sum(arrays)[at[rank] : at[rank + 1]]
        case Collective.ALL_TO_ALL:
            whole = np.concatenate(arrays)
            return np.concatenate([whole[at[of * n + rank] : at[of * n + rank + 1]] for of in range(n)])


@pytest.mark.parametrize("kind", [np.float32, torch.float32, torch.bfloat16], ids=str)
def test_shapes_kinds_and_dtypes_are_kept(kind):
    torch_kind = isinstance(kind, torch.dtype)
    arrays = [torch.ones(2, 5, dtype=kind) if torch_kind else np.ones((2, 5), kind)] * 4
    for make in plans.ALL_REDUCES.values():
        for result in run_local(make(4), arrays):
            assert type(result) is type(arrays[0])
            assert tuple(result.shape) == (2, 5) and result.dtype == kind and (result == 4).all()


def test_nothing_is_shared_between_ranks_or_rounds():
    """Two ranks swap and add in one round: by reading what the round has written, one would count twice."""
    swap = Plan(
        "swap", Collective.ALL_REDUCE, 2, 1, ((Transfer(0, 1, 0, 1, True), Transfer(1, 0, 0, 1, True)),)
    )
    same = torch.tensor([1.0, 2.0])
    first, second = run_local(swap, [same, same])
    assert torch.equal(first, torch.tensor([2.0, 4.0])) and torch.equal(first, second)
    first.zero_()
    assert torch.equal(second, torch.tensor([2.0, 4.0])) and torch.equal(same, torch.tensor([1.0, 2.0]))


def test_tensors_that_are_no_block_of_memory_or_have_gradients_are_read_right():
    transposed = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    (result,) = {tuple(map(tuple, r.tolist())) for r in run_local(plans.ring(3), [transposed] * 3)}
    assert torch.equal(torch.tensor(result), 3 * transposed.detach())


ONE, LONG = np.ones(4), np.ones(5)


@pytest.mark.parametrize(
    ("plan", "arrays", "error", "message"),
    [
        (plans.ring(3), [ONE, ONE], ValueError, "2 arrays: ring has 3 ranks"),
        (plans.ring(2), [ONE, LONG], ValueError, r"shape \(5,\) on rank 1: must be \(4,\) as on rank 0"),
        (plans.ring(2), [ONE, ONE.astype(int)], TypeError, "dtype int64 on rank 1: must be float64"),
        (plans.ring(2), [ONE, torch.ones(4)], TypeError, "kind Tensor on rank 1: must be ndarray"),
        (plans.ring(2), [[1.0], [1.0]], TypeError, "list: must be a numpy array or a torch tensor"),
        (plans.ring(2), [ONE > 0] * 2, TypeError, "an array of bool: ring adds numbers"),
        (plans.ring(2), [ONE.astype(str)] * 2, TypeError, "must be of numbers"),
        (plans.ring(2), [torch.ones(4).to_sparse()] * 2, TypeError, "must be dense"),
        (plans.all_gather(2), [LONG, ONE], ValueError, "5 elements on rank 0: all_gather needs 4 there"),
        (
            Plan("half", Collective.ALL_REDUCE, 2, 1, ((Transfer(0, 1, 0, 1, True),),)),
            [ONE, ONE],
            ValueError,
            "half: at the end chunk 0 on rank 0 lacks the contribution of rank 1",
        ),
    ],
)
def test_bad_input_is_refused(plan, arrays, error, message):
    with pytest.raises(error, match=message):
        run_local(plan, arrays)


# --- in several processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_plan_of_every_collective_equals_gloo_and_is_the_same_on_all_ranks(n):
    checked = launch(n, jobs.check_everything, timeout_s=300)
    assert checked == [len(jobs.all_plans(n)) * len(jobs.CASES)] * n


def test_a_result_goes_where_it_is_told_to():
    def job():
        x = torch.arange(10.0).reshape(2, 5)
        out = torch.zeros(2, 5)
        result = run_distributed(plans.ring(2), x, out=out, pieces=2)
        fresh = run_distributed(plans.tree(2), x)
        return result is out and torch.equal(out, 2 * x) and torch.equal(fresh, 2 * x)

    assert launch(2, job, timeout_s=100) == [True, True]


@pytest.mark.parametrize(
    ("make_tensor", "options", "error", "message"),
    [
        (lambda r: torch.ones(4 + r), {}, ValueError, r"shape \(5,\) on rank 1, \(4,\) on rank 0: must be"),
        (lambda r: torch.ones(4).to([torch.float32, torch.int64][r]), {}, ValueError, "dtype torch.int64 on"),
        (lambda r: torch.ones(4) if r else [1.0], {}, TypeError, "rank 0: tensor=list: must be a torch"),
        (lambda r: torch.ones(4) > 0, {}, TypeError, "rank 0: an array of torch.bool: ring adds numbers"),
        (lambda r: torch.ones(4), {"pieces": 0}, ValueError, "rank 0: pieces=0: must be at least 1"),
        (lambda r: torch.ones(4), {"pieces": lambda r: 1 + r}, ValueError, "pieces 2 on rank 1, 1 on rank 0"),
        (lambda r: torch.ones(4), {"plan": plans.ring(3)}, ValueError, "3 ranks on 2 processes"),
        (
            lambda r: torch.ones(4),
            {"plan": lambda r: [plans.ring, plans.tree][r](2)},
            ValueError,
            "plan tree",
        ),
        (lambda r: torch.ones(4), {"plan": "ring"}, TypeError, "plan='ring': must be a Plan"),
        (
            lambda r: torch.ones(4),
            {"out": lambda r: torch.ones(4 + r)},
            ValueError,
            r"out of shape \(5,\) on",
        ),
        (lambda r: torch.ones(4), {"out": torch.ones(4).int()}, TypeError, "out of torch.int32"),
        (lambda r: torch.ones(4), {"faults": Death(0)}, TypeError, "must be a tuple of"),
        (lambda r: torch.ones(4), {"faults": (Death(2),)}, ValueError, "rank must be below 2"),
        (lambda r: torch.ones(4), {"faults": (BitFlip(0, 4),)}, ValueError, "element must be below 4"),
        (lambda r: torch.ones(4), {"faults": (BitFlip(0, 0, 32),)}, ValueError, "bit must be below 32"),
        (
            lambda r: torch.ones(3 + r),
            {"plan": plans.reduce_scatter(2)},
            ValueError,
            "shape .* must be the same",
        ),
        (
            lambda r: torch.ones(4 - r),
            {"plan": plans.all_gather(2)},
            ValueError,
            "4 elements on rank 0: all_gather needs 3 there, part 0 of 7",
        ),
    ],
)
def test_bad_input_is_an_error_on_all_ranks(make_tensor, options, error, message, on_two_processes):
    for told in on_two_processes(make_tensor, options, error):
        assert re.search(message, told), told


@pytest.fixture
def on_two_processes():
    return lambda *args: launch(2, jobs.refused, *args, timeout_s=100)


# --- faults ------------------------------------------------------------------------------------------


def test_a_straggler_is_waited_for_by_those_who_need_it_alone():
    """All wait for a rank in an all-reduce; to a broadcast's root, a late leaf is nothing."""

    def job(plan):
        dist.barrier()
        start = time.perf_counter()
        run_distributed(plan, torch.ones(8), faults=(Straggler(2, 0.5),))
        return time.perf_counter() - start

    assert min(launch(3, job, plans.ring(3), timeout_s=100)) >= 0.5
    leaf, root = Transfer(0, 2, 0, 1, False), Transfer(0, 1, 0, 1, False)
    away, near, late = launch(
        3, job, Plan("fan", Collective.BROADCAST, 3, 1, ((leaf,), (root,))), timeout_s=100
    )
    assert near < 0.4 and late >= 0.5 and away > near


def test_messages_leave_by_dependency_not_round_by_round():
    """Rank 0 gets the straggler's chunk in the first round, and still passes others on to rank 3 before."""
    order = [(1, 0, 1), (2, 0, 2), (0, 3, 2), (0, 3, 0), (0, 3, 1), (3, 0, 3), (0, 1, 0), (0, 2, 0),
             (0, 1, 2), (0, 2, 3), (0, 2, 1), (0, 1, 3)]  # fmt: skip
    rounds = tuple((Transfer(src, dst, chunk, chunk + 1, False),) for src, dst, chunk in order)
    star = Plan("star", Collective.ALL_GATHER, 4, 4, rounds)

    def job():
        arrived = []
        dist.barrier()
        start = time.perf_counter()

        def look(version, data):
            arrived.append((int(data[0]), time.perf_counter() - start))

        result = carry_out(star, torch.full((2,), dist.get_rank()), 8, faults=(Straggler(1, 0.6),), look=look)
        assert torch.equal(result, torch.arange(4).repeat_interleave(2))
        return arrived

    for rank in (0, 3):
        arrived = launch(4, job, timeout_s=100)[rank]
        assert [chunk for chunk, _ in arrived][-1] == 1
        assert all((seconds > 0.4) == (chunk == 1) for chunk, seconds in arrived)


@pytest.mark.parametrize(("dtype", "bit"), [(torch.int64, 20), (torch.int8, 3), (torch.float32, 30)])
def test_a_corrupted_contribution_is_found_and_its_rank_named(dtype, bit):
    first, *others = launch(3, jobs.flipped_everywhere, dtype, bit, timeout_s=200)
    assert all(other == first for other in others)  # all ranks are told the same
    for plan, culprit, element, findings in first:
        if culprit is None or not noticed(plan, culprit, element):
            assert findings == (), plan
        else:
            (finding,) = findings
            assert finding.rank == culprit, plan
            if dtype is torch.int64:
                assert finding.element == element, plan


def noticed(plan: Plan, culprit: int, element: int) -> bool:
    """Whether what the culprit hands in matters: in a broadcast only the root's does."""
    return plan.collective is not Collective.BROADCAST or culprit == plan.root


def test_what_a_float_checksum_cannot_tell_from_rounding_is_not_found():
    for _, _, _, findings in launch(2, jobs.flipped_everywhere, torch.float32, 0, timeout_s=200)[0]:
        assert findings == ()


def test_a_dead_rank_is_named():
    def job():
        run_distributed(plans.ring(3), torch.ones(6), faults=(Death(1, 2),))

    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
        launch(3, job, timeout_s=100)


COMMAND = ["-m", "gpuedu.all_reduce.run"]


AT_WORK = """
import torch
from gpuedu.all_reduce.plan import double_binary_tree
from gpuedu.all_reduce.run import run_distributed
from gpuedu.distributed import process_group
with process_group():
    while True:
        run_distributed(double_binary_tree(4), torch.ones(2**16), pieces=3)
"""


def test_a_killed_rank_ends_the_others_within_10_s_and_is_named_by_all():
    with by_hand.ranks(4, ["-c", AT_WORK]) as processes:
        processes[2].kill()
        dead_since = time.monotonic()
        for rank in (0, 1, 3):
            assert f"rank {rank} ended: rank 2 died: " in by_hand.last_words(processes[rank])
        assert time.monotonic() - dead_since < 10


# --- measured ----------------------------------------------------------------------------------------


def test_every_plan_is_measured_beside_the_backend_and_checked():
    todo = jobs.all_plans(3)
    options = {"pieces": 2, "repeats": 2, "dtype": torch.int32}
    measured = launch(3, lambda: measure(todo, [52, 4096], **options), timeout_s=200)
    assert measured[0] == measured[1] == measured[2]
    assert [(m.plan, m.nbytes) for m in measured[0]] == [(plan, size) for plan in todo for size in (52, 4096)]
    for m in measured[0]:
        assert m.correct and len(m.seconds) == len(m.backend_seconds) == 2
        assert m.algorithm_bandwidth == pytest.approx(m.nbytes / m.time_s)
        assert m.bus_bandwidth == pytest.approx(m.algorithm_bandwidth * bus_factor(m.plan.collective, 3))
    lines = table(measured[0]).splitlines()
    assert len(lines) == 1 + 2 * len(todo) and all(line.endswith(" ok") for line in lines[1:])


def test_a_wrong_result_is_called_wrong():
    def job():
        return measure([plans.ring(2)], [64], repeats=1, faults=(BitFlip(1, 3, 20),))

    ((first,), (second,)) = launch(2, job, timeout_s=100)
    assert not first.correct and not second.correct
    assert table([first]).endswith("WRONG")


def test_the_command_under_torchrun_prints_a_line_for_each_plan_and_size():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--plan", "ring", "hierarchical", "--sizes", "4K", "100", "--repeats", "1", "--pieces", "2"]
    run = subprocess.run([*torchrun, *COMMAND, *arguments], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()[1:]]
    assert [line[1] for line in lines] == ["4096", "100"] * 2 and {line[-1] for line in lines} == {"ok"}


def test_the_command_ends_in_one_line_if_a_rank_dies(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--processes", "3", "--sizes", "6K", "--death", "1", "3"])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "rank 1 was killed by SIGKILL\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "star"], "invalid choice: 'star'"),
        (["--processes", "0"], "argument --processes: 0: must be at least 1"),
        (["--sizes", "1T"], "argument --sizes: 1T: must be bytes"),
        (["--sizes", "0"], "argument --sizes: 0: must be bytes"),
        (["--sizes", "6"], "size 6: must be a multiple of 4"),
        (["--dtype", "float33"], "dtype='float33': must be a torch dtype"),
        (["--dtype", "bool"], "dtype='bool': must be a torch dtype"),
        (["--pieces", "0"], "argument --pieces: 0: must be"),
        (["--plan", "hierarchical", "--gpus-per-node", "3"], "gpus_per_node=3: must divide the 2 processes"),
        (["--death", "2", "0"], "rank must be below 2"),
        (["--straggler", "0", "-1"], "delay_s=-0.001: must be finite and not negative"),
    ],
)
def test_bad_arguments_of_the_command_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
