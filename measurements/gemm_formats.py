"""How much faster GPUs multiply in few bits, as NVIDIA's collectors measured it: a small summary.

Run with ``python -m measurements.gemm_formats WHEEL``: the wheel of aiconfigurator-core 0.12, downloaded
from PyPI, whose tables are read with ``pyarrow`` (neither is needed by the book). It writes
``gemm_formats.json`` beside this file; ``gpuedu.quantization.cost.measured`` holds the same.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import zipfile
from collections import defaultdict
from pathlib import Path

PATH = Path(__file__).with_suffix(".json")
TABLES = {
    "A100": "a100_sxm/gemm/trtllm/1.0.0",
    "H100": "h100_sxm/gemm/trtllm/1.3.0rc20",
    "H200": "h200_sxm/gemm/trtllm/1.3.0rc20",
    "B200": "b200_sxm/gemm/trtllm/1.3.0rc20",
}
FORMATS = ("int4_wo", "int8_wo", "sq", "fp8", "nvfp4")
TOKENS = ((1, 32), (33, 511), (512, None))
WIDTHS = (4096, 16384)
FASTER = 1.05
METHOD = (
    "Latency of a matrix product in BF16 over that in the format, for all shapes that both tables have with "
    "both widths from 4,096 to 16,384; TensorRT-LLM kernels. int4_wo and int8_wo: weights alone; sq: INT8 "
    "weights and activations; rows of formats with quantized activations may include quantizing them."
)


def latencies(wheel: Path, table: str) -> dict[str, dict[tuple[int, int, int], float]]:
    """Milliseconds by dtype and (m, n, k)."""
    import pyarrow.parquet as parquet

    with zipfile.ZipFile(wheel) as archive:
        name = f"aiconfigurator_core/systems/data/{table}/gemm_perf.parquet"
        rows = parquet.read_table(io.BytesIO(archive.read(name))).to_pylist()
    found: dict[str, dict[tuple[int, int, int], float]] = defaultdict(dict)
    for row in rows:
        found[row["gemm_dtype"]][int(row["m"]), int(row["n"]), int(row["k"])] = float(row["latency"])
    return found


def summaries(wheel: Path):
    """One entry a GPU, format and range of tokens."""
    low, high = WIDTHS
    for gpu, table in TABLES.items():
        found = latencies(wheel, table)
        plain = found["bfloat16"]
        for name in FORMATS:
            for first, last in TOKENS:
                gains = [
                    plain[m, n, k] / seconds
                    for (m, n, k), seconds in found.get(name, {}).items()
                    if (m, n, k) in plain and first <= m <= (last or m)
                    and low <= n <= high and low <= k <= high
                ]  # fmt: skip
                if gains:
                    yield {
                        "gpu": gpu,
                        "format": name,
                        "tokens_from": first,
                        "tokens_to": last,
                        "shapes": len(gains),
                        "faster_share": round(sum(gain > FASTER for gain in gains) / len(gains), 3),
                        "median_gain": round(statistics.median(gains), 3),
                    }


def main() -> None:
    """Read the wheel, write the summary."""
    parser = argparse.ArgumentParser(prog="python -m measurements.gemm_formats")
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    report = {
        "source": "aiconfigurator-core 0.12 (NVIDIA, Apache-2.0)",
        "method": METHOD,
        "tables": TABLES,
        "results": list(summaries(wheel)),
    }
    PATH.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
