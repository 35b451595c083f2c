"""Order by order against ``torch.distributed.pipelining``, which builds its schedules from stubs of stages.

Identical, action for action: GPipe, interleaved 1F1B (one chunk too), ZB-H1 (torch: interleaved zero bubble
with one stage a rank), ZB-V and DualPipeV (whose overlapped pairs run forward first here). 1F1B is identical
but for torch's numbering on the last rank (trap 5).
"""

from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from gpuedu.pipeline_parallel.plan import (
    dualpipe_v,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    zb_h1,
    zb_v,
)


def torch_order(schedule_class, stages, microbatches, chunks=1):
    """Per rank, (letter, part, microbatch) of every computation in torch's schedule."""
    parts = stages * chunks
    local = [
        SimpleNamespace(
            stage_index=index, num_stages=parts, group_size=stages, group_rank=0, has_backward=True,
            is_first=index == 0, is_last=index == parts - 1, submod=None, device="cpu", group=None,
        )
        for index in range(chunks)
    ]  # fmt: skip
    if issubclass(schedule_class, torch_schedules.PipelineScheduleSingle):
        order = schedule_class(local[0], microbatches)._get_pipeline_order()
    else:
        order = schedule_class(local, microbatches).pipeline_order
    return [
        [
            (one.computation_type.value, one.stage_index, one.microbatch_index)
            for action in order[rank]
            if action is not None
            for one in (action.sub_actions or (action,))
            if one.computation_type.value in ("F", "I", "W", "B")
        ]
        for rank in range(stages)
    ]


def our_order(schedule):
    return [
        [(a.kind.value, schedule.part(a.stage, a.chunk), a.microbatch) for a in actions]
        for actions in schedule.actions
    ]


SIZES = [(1, 1), (1, 3), (2, 4), (3, 3), (3, 6), (4, 4), (4, 8), (4, 16), (8, 32)]


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 3), (3, 7)])
def test_gpipe(p, m):
    assert our_order(gpipe(p, m)) == torch_order(torch_schedules.ScheduleGPipe, p, m)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (3, 7)])
def test_trap_05_1f1b_but_for_the_last_rank(p, m):
    # torch 2.13's order for display numbers the last rank's forwards from 1; its real run does not use it.
    ours, theirs = our_order(one_f_one_b(p, m)), torch_order(torch_schedules.Schedule1F1B, p, m)
    assert ours[:-1] == theirs[:-1]
    assert theirs[-1] == [(kind, part, j + (kind == "F")) for kind, part, j in ours[-1]]
    assert ("F", p - 1, 0) not in theirs[-1] and ("F", p - 1, m) in theirs[-1]


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_interleaved_1f1b(p, m, chunks):
    theirs = torch_order(torch_schedules.ScheduleInterleaved1F1B, p, m, chunks)
    assert our_order(interleaved_1f1b(p, m, chunks)) == theirs


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 3), (4, 1), (4, 6)])
def test_zb_h1(p, m):
    assert our_order(zb_h1(p, m)) == torch_order(torch_schedules.ScheduleInterleavedZeroBubble, p, m)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 3), (4, 1), (4, 7), (5, 11)])
def test_zb_v(p, m):
    assert our_order(zb_v(p, m)) == torch_order(torch_schedules.ScheduleZBVZeroBubble, p, m, 2)


@pytest.mark.parametrize(
    ("p", "m"), [(1, 2), (1, 3), (2, 4), (3, 6), (3, 8), (4, 8), (4, 16), (5, 11), (8, 32)]
)
def test_dualpipe_v(p, m):
    assert our_order(dualpipe_v(p, m)) == torch_order(torch_schedules.ScheduleDualPipeV, p, m, 2)
