"""Measure pipeline schedules on real processes: ``python -m gpuedu.pipeline_parallel.run --help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from gpuedu.distributed import launch, process_group

from ..plan import SCHEDULES, Schedule, zb_auto
from .measure import measure, table
from .workloads import Sleep, Transformer

EPILOG = """\
On one machine the processes are started here:
  python -m gpuedu.pipeline_parallel.run --schedule one_f_one_b zb_h1 --stages 4 --workload sleep
On several nodes torchrun starts them, one a stage; the same command on every node:
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      -m gpuedu.pipeline_parallel.run --device cuda --layers 32 --hidden-size 4096
"""


def main() -> None:
    """Read the arguments, run the schedules, print predicted and measured."""
    parser = _parser()
    args = parser.parse_args()
    stages = args.stages or int(os.environ.get("WORLD_SIZE", 2))
    delay_s = args.transfer_delay / 1e3
    try:
        workload = _workload(args)
        schedules = [_schedule(name, stages, args) for name in args.schedule]
        for schedule in schedules:
            workload.check(schedule)
    except ValueError as error:
        parser.error(str(error))
    job = schedules, workload, args.steps, delay_s, args.device
    if "RANK" in os.environ:
        with process_group(args.device, args.timeout) as rank:
            runs = measure(*job)
        first = rank == 0
    else:
        runs = launch(stages, measure, *job, device=args.device, timeout_s=args.timeout)[0]
        first = True
    if first:
        print("\n\n".join(table(run, delay_s) for run in runs))


def _workload(args: argparse.Namespace) -> Transformer | Sleep:
    if args.workload == "sleep":
        return Sleep(*(time_ms / 1e3 for time_ms in args.sleep))
    return Transformer(args.layers, args.hidden_size, args.microbatch_size, args.sequence_length, args.dtype)


def _schedule(name: str, stages: int, args: argparse.Namespace) -> Schedule:
    if name == "zb_auto":
        times = args.sleep if args.workload == "sleep" else (1, 1, 1)
        transfer = args.transfer_delay if args.workload == "sleep" else 0
        return zb_auto(stages, args.microbatches, args.memory_limit or stages, *times, transfer)
    if name == "interleaved_1f1b":
        return SCHEDULES[name](stages, args.microbatches, args.chunks)
    return SCHEDULES[name](stages, args.microbatches)


def _at_least(least: int, number: type) -> Callable[[str], int | float]:
    """A reader of arguments that are finite numbers of at least ``least``."""

    def read(text: str) -> int | float:
        if not least <= (value := number(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    read.__name__ = number.__name__  # in argparse's own message
    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuedu.pipeline_parallel.run",
        description="Run pipeline schedules on real processes, one a stage, and print the bubble that the "
        "cost model predicts from the measured times of the single actions, beside the measured one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    count, not_negative = _at_least(1, int), _at_least(0, float)
    names = [*SCHEDULES, "zb_auto"]
    add(
        "--schedule",
        nargs="+",
        choices=names,
        default=["one_f_one_b"],
        metavar="NAME",
        help=f"one or more of {', '.join(names)}; default one_f_one_b",
    )
    add("--stages", type=count, metavar="P", help="processes; default 2, under torchrun all of them")
    add("--microbatches", type=count, default=8, metavar="M", help="default 8")
    add("--chunks", type=count, default=2, metavar="V", help="of interleaved_1f1b, a rank; default 2")
    add(
        "--memory-limit",
        type=_at_least(1, float),
        metavar="N",
        help="of zb_auto, in microbatches; default as 1F1B",
    )
    add(
        "--workload",
        choices=["transformer", "sleep"],
        default="transformer",
        help="transformer blocks, or parts that sleep, of which any number run on two cores",
    )
    add(
        "--sleep",
        nargs=3,
        type=not_negative,
        default=[20.0, 20.0, 20.0],
        metavar=("F", "I", "W"),
        help="ms a stage sleeps in a forward, input and weight gradient; default 20 20 20",
    )
    add("--layers", type=count, default=8, help="transformer blocks in all; default 8")
    add("--hidden-size", type=count, default=256, help="default 256")
    add("--microbatch-size", type=count, default=1, help="sequences; default 1")
    add("--sequence-length", type=count, default=128, help="tokens; default 128")
    add("--dtype", default="float32", help="of weights and activations; default float32")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    add("--steps", type=count, default=3, help="measured steps, of which the fastest is shown; default 3")
    add(
        "--transfer-delay",
        type=not_negative,
        default=0.0,
        metavar="MS",
        help="ms that every message between ranks arrives later; default 0",
    )
    add("--timeout", type=count, default=600, metavar="S", help="s; default 600")
    return parser  # fmt: skip


if __name__ == "__main__":
    main()
