"""Measure attention on this machine: ``python -m gpuedu.flash_attention.run --help``."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from .attention import attention
from .measure import median_seconds, peak_extra_bytes

EPILOG = """\
On a CPU: standard, tiled and PyTorch's attention, time and memory as the length grows:
  python -m gpuedu.flash_attention.run --lengths 1024 2048 4096
On an NVIDIA GPU: the Triton kernels against PyTorch's FlashAttention; the result goes to measurements/:
  python -m gpuedu.flash_attention.run --device cuda --dtype bfloat16 --output measurements/attention.json
"""


def main() -> None:
    """Read the arguments, measure, print, and write where asked to."""
    parser = _parser()
    args = parser.parse_args()
    if args.device == "cuda":
        rows, machine = _on_gpu(parser, args), {"gpu": torch.cuda.get_device_name()}
    else:
        rows, machine = _on_cpu(args), {"cores": torch.get_num_threads(), "system": platform.machine()}
    if args.output:
        versions = {"torch": torch.__version__}
        if args.device == "cuda":
            versions["triton"] = metadata.version("triton")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "versions": versions, "rows": rows}
        args.output.write_text(json.dumps(report, indent=1) + "\n")
        print(args.output)


def _on_gpu(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[dict]:
    if not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    from .on_gpu import compare

    lengths = args.lengths or [1024, 2048, 4096, 8192, 16384]
    dtype = getattr(torch, args.dtype or "bfloat16")
    rows = []
    print("  d      N causal   forward: ours, SDPA (TFLOP/s), ratio   forward + backward")
    for row in compare(lengths, args.head_dims, dtype, args.repeats):
        rows.append(row)
        passes = "   ".join(
            f"{r['triton_tflops']:6.1f} {r['sdpa_tflops']:6.1f} {r['times_sdpa']:5.2f}"
            for r in (row["forward"], row["forward_backward"])
        )
        print(f"{row['head_dim']:3} {row['length']:6} {row['causal']!s:6} {passes}", flush=True)
    return rows


def _on_cpu(args: argparse.Namespace) -> list[dict]:
    dtype = getattr(torch, args.dtype or "float32")
    head_dim, rows = args.head_dims[0], []
    print("     N   standard      tiled       SDPA   memory: standard, tiled")
    for length in args.lengths or [512, 1024, 2048, 4096]:
        q, k, v = torch.randn(3, 1, args.heads, length, head_dim, dtype=dtype)
        ways = {
            "standard": lambda q=q, k=k, v=v: torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v,
            "tiled": lambda q=q, k=k, v=v: attention(q, k, v),
            "sdpa": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
        }
        seconds = {name: median_seconds(way, args.repeats) for name, way in ways.items()}
        extra = {name: peak_extra_bytes(ways[name]) for name in ("standard", "tiled")}
        rows.append({"length": length, "seconds": seconds, "peak_extra_bytes": extra})
        times = " ".join(f"{1e3 * s:7.1f} ms" for s in seconds.values())
        print(f"{length:6} {times}   {extra['standard'] / 1e6:8.1f} MB {extra['tiled'] / 1e6:6.1f} MB")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuedu.flash_attention.run",
        description="Measure attention: time, memory, and on a GPU throughput against PyTorch's own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    add("--lengths", nargs="+", type=_count, metavar="N", help="tokens of a sequence")
    add(
        "--head-dims", nargs="+", type=_count, default=[64, 128], metavar="D", help="on a CPU the first alone"
    )
    add("--heads", type=_count, default=8, metavar="H", help="on a CPU; default 8")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="default float32; on a GPU bfloat16")
    add("--repeats", type=_count, default=5, help="of which the median is shown; default 5")
    add("--output", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


if __name__ == "__main__":
    main()
