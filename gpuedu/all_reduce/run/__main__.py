"""Measure collectives on real processes: ``python -m gpuedu.all_reduce.run --help``."""

from __future__ import annotations

import argparse
import os
import re

import torch

from gpuedu.distributed import RankFailed, launch, process_group

from .. import plan as plans
from ..plan import ALL_REDUCES, Plan
from .faults import Death, Fault, Straggler
from .measure import Measurement, measure, table

OTHERS = ("hierarchical", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
EPILOG = """\
On one machine the processes are started here:
  python -m gpuedu.all_reduce.run --plan ring tree --processes 4 --sizes 64K 1M 64M
On several nodes torchrun starts them; the same command on every node:
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      -m gpuedu.all_reduce.run --plan ring hierarchical --device cuda --sizes 1M 64M 1G
A straggler, and a rank that dies on its way:
  python -m gpuedu.all_reduce.run --processes 4 --straggler 2 200
  python -m gpuedu.all_reduce.run --processes 4 --death 2 5
Sizes are those of the whole array, in nccl-tests' sense; algbw and busbw are in GB/s of 10^9 bytes. The
backend's time is that of its own collective, in turns with the plan.
"""


def main() -> None:
    """Read the arguments, run the plans, print what they took."""
    parser = _parser()
    args = parser.parse_args()
    under_torchrun = "RANK" in os.environ
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun else args.processes
    try:
        job = _job(args, processes)
    except ValueError as error:
        parser.error(str(error))
    if under_torchrun:
        with process_group(args.device, args.timeout) as rank:
            results = _on_this_rank(*job)
    else:
        rank = 0
        try:
            results = launch(processes, _on_this_rank, *job, device=args.device, timeout_s=args.timeout)[0]
        except RankFailed as error:
            parser.exit(1, f"{error}\n")
    if rank == 0:
        print(table(results))
    if not all(result.correct for result in results):
        raise SystemExit(1)


def _on_this_rank(todo, sizes, pieces, repeats, dtype, device, faults) -> list[Measurement]:
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    options = {"pieces": pieces, "repeats": repeats, "dtype": dtype, "device": device, "faults": faults}
    return measure(todo, sizes, **options)


def _job(args: argparse.Namespace, processes: int) -> tuple:
    """The arguments of :func:`_on_this_rank`; ValueError if they do not fit."""
    dtype = getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype is torch.bool or dtype.is_complex:
        raise ValueError(f"dtype={args.dtype!r}: must be a torch dtype of real numbers, such as 'float32'")
    for size in args.sizes:
        if size % dtype.itemsize:
            raise ValueError(f"size {size}: must be a multiple of {dtype.itemsize} bytes, as {args.dtype} is")
    faults: list[Fault] = []
    if args.straggler:
        faults.append(Straggler(int(args.straggler[0]), args.straggler[1] / 1e3))
    if args.death:
        faults.append(Death(*args.death))
    for fault in faults:
        if fault.rank >= processes:
            raise ValueError(f"{fault}: rank must be below {processes}")
    todo = [_plan(name, processes, args.gpus_per_node) for name in args.plan]
    return todo, args.sizes, args.pieces, args.repeats, dtype, args.device, tuple(faults)


def _plan(name: str, processes: int, gpus_per_node: int | None) -> Plan:
    if name != "hierarchical":
        return getattr(plans, name)(processes)
    per_node = gpus_per_node or int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes % per_node:
        raise ValueError(f"gpus_per_node={per_node}: must divide the {processes} processes")
    return plans.hierarchical(processes // per_node, per_node)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text}: must be bytes, such as 4096, 64K, 16M or 1G")
    return int(match[1]) * UNITS[match[2]]


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuedu.all_reduce.run",
        description="Run collectives as plans on real processes, check what they compute, and print how "
        "long they took and the algorithm and bus bandwidth, by nccl-tests' definitions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = [*ALL_REDUCES, *OTHERS]
    add(
        "--plan",
        nargs="+",
        choices=names,
        default=["ring"],
        metavar="NAME",
        help=f"one or more of {', '.join(names)}; default ring",
    )
    add("--processes", type=_count, default=2, metavar="N", help="default 2; under torchrun all of them")
    add("--gpus-per-node", type=_count, metavar="N", help="of hierarchical; default those of this machine")
    add(
        "--sizes", nargs="+", type=_size, default=[2**16, 2**20, 2**24], metavar="BYTES",
        help="of the whole array; K, M and G are powers of 1024; default 64K 1M 16M",
    )  # fmt: skip
    add("--pieces", type=_count, default=1, metavar="K", help="of each chunk; default 1")
    add("--repeats", type=_count, default=5, help="of which the median is shown; default 5")
    add("--dtype", default="float32", help="default float32")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    add("--straggler", nargs=2, type=float, metavar=("RANK", "MS"), help="this rank begins so much later")
    add("--death", nargs=2, type=int, metavar=("RANK", "MESSAGES"), help="killed when it has received them")
    add("--timeout", type=_count, default=600, metavar="S", help="s; default 600")
    return parser


if __name__ == "__main__":
    main()
