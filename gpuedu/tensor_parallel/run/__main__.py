"""Measure tensor parallelism on real processes: ``python -m gpuedu.tensor_parallel.run --help``."""

from __future__ import annotations

import argparse
import os

from gpuedu.distributed import launch, process_group
from gpuedu.transformer import Transformer

from ..plan import Sharding, shard
from .measure import float_dtype, measure, table

EPILOG = """\
On one machine the processes are started here:
  python -m gpuedu.tensor_parallel.run --ranks 4 --sequence-parallel
On several GPUs or nodes torchrun starts them, one a GPU; the same command on every node:
  torchrun --nnodes 1 --nproc-per-node 8 \\
      -m gpuedu.tensor_parallel.run --device cuda --dtype bfloat16 --hidden-size 4096 --heads 32 --kv-heads 8
"""


def main() -> None:
    """Read the arguments, train a few steps, print what was counted, planned and measured."""
    parser = _parser()
    args = parser.parse_args()
    try:
        sharding = _sharding(args)
    except ValueError as error:
        parser.error(str(error))
    job = sharding, args.steps, args.device, args.dtype
    if "RANK" in os.environ:
        with process_group(args.device, args.timeout) as rank:
            measurement = measure(*job)
        first = rank == 0
    else:
        ranks = sharding.tensor_parallel
        measurement = launch(ranks, measure, *job, device=args.device, timeout_s=args.timeout)[0]
        first = True
    if first:
        print(table(measurement, sharding))


def _sharding(args: argparse.Namespace) -> Sharding:
    model = Transformer(
        layers=args.layers,
        hidden_size=args.hidden_size,
        attention_heads=args.heads,
        kv_heads=args.kv_heads or args.heads,
        head_dim=max(1, args.hidden_size // args.heads),
        ffn_hidden_size=4 * args.hidden_size,
        gated_ffn=True,
        vocab_size=args.vocab_size,
        tied_embeddings=False,
        biases="none",
        norm="rmsnorm",
    )
    return shard(
        model,
        args.ranks or int(os.environ.get("WORLD_SIZE", 2)),
        batch=args.batch_size,
        sequence=args.sequence_length,
        sequence_parallel=args.sequence_parallel,
        dropout=False,
        itemsize=float_dtype(args.dtype).itemsize,
    )


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuedu.tensor_parallel.run",
        description="Train a small Llama cut over real processes, and print its collectives and bytes, "
        "counted and planned, and what share of a step they took.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", type=_count, metavar="T", help="processes; default 2, under torchrun all of them")
    add("--sequence-parallel", action="store_true", help="cut norms and residual stream by tokens")
    add("--layers", type=_count, default=2, help="transformer blocks; default 2")
    add("--hidden-size", type=_count, default=128, help="default 128")
    add("--heads", type=_count, default=8, help="of queries; default 8")
    add("--kv-heads", type=_count, help="default as many as of queries")
    add("--vocab-size", type=_count, default=1024, help="default 1024")
    add("--batch-size", type=_count, default=2, help="sequences; default 2")
    add("--sequence-length", type=_count, default=64, help="tokens; default 64")
    add("--dtype", default="float32", help="of weights and activations; default float32")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    add("--steps", type=_count, default=5, help="measured steps, of which the median is shown; default 5")
    add("--timeout", type=_count, default=600, metavar="S", help="s; default 600")
    return parser


if __name__ == "__main__":
    main()
