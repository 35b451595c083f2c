"""Flash-Decoding's table: one new token before a long cache, as measured and by the roofline."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.hardware import GPUS

from ..plan import AttentionShape, Tiles
from .time import attention_time, best_splits

DECODING_TABLE = (
    (256, 256, 3058.6, 390.5, 63.4),
    (128, 512, 3151.4, 366.3, 67.7),
    (64, 1024, 3160.4, 364.8, 77.7),
    (32, 2048, 3158.3, 352.0, 58.5),
    (16, 4096, 3157.0, 401.7, 57.0),
    (8, 8192, 3173.1, 529.2, 56.4),
    (4, 16384, 3223.0, 582.7, 58.2),
    (2, 32768, 3224.1, 1156.1, 60.3),
    (1, 65536, 1335.6, 2300.6, 64.4),
    (1, 131072, 2664.0, 4592.2, 106.6),
)
"""Batch, keys, and microseconds of PyTorch eager, FlashAttention 2.0.9 and Flash-Decoding, as published: one
query, 16 query heads of dimension 128 on 2 key heads, FP16, an A100 of unnamed memory size."""

DECODING_TILES = Tiles(1, 128)


@dataclass(frozen=True)
class DecodingRow:
    """One row of the table, printed and predicted.

    Parameters
    ----------
    batch, keys : int
        Sequences, and keys of each.
    printed_version_2_us, printed_split_kv_us : float
        Microseconds as published.
    version_2_us, split_kv_us : float
        Microseconds by the roofline of the A100 of 40 GB.
    splits : int
        Parts of the keys with which split-KV is fastest.
    """

    batch: int
    keys: int
    printed_version_2_us: float
    version_2_us: float
    printed_split_kv_us: float
    split_kv_us: float
    splits: int


def decoding_table() -> tuple[DecodingRow, ...]:
    """Flash-Decoding's table of micro-benchmarks, predicted.

    Parameters
    ----------
    None
        The table is what it is.

    Returns
    -------
    tuple of DecodingRow
        In the order of the table.

    Notes
    -----
    Version 2 has 16 programs for each sequence, and each of the 16 query heads reads the keys of its key
    head anew. By :func:`~gpuedu.flash_attention.cost.attention_time` its slowness is that these programs
    leave multiprocessors idle until the batch has grown, and then the bytes read 8 times. The source names an
    A100 and not its memory. With the 1,555 GB/s of the 40 GB version, which is what is taken here, the
    prediction is within an eighth of what was printed in every row; with the 2,039 GB/s of the 80 GB version
    it would be below every row, by 15 % to a third. Split-KV reads each key once, for all heads that share
    it, on all multiprocessors; the roofline is a bound of what was printed.

    References
    ----------
    Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding for long-context inference", micro-benchmarks.

    Examples
    --------
    >>> row = decoding_table()[-2]
    >>> row.keys, row.printed_version_2_us, round(row.version_2_us)
    (65536, 2300.6, 2331)
    >>> row.printed_split_kv_us, round(row.split_kv_us)
    (64.4, 60)
    """
    gpu, rows = GPUS["A100-40GB"], []
    for batch, keys, _, printed_version_2, printed_split in DECODING_TABLE:
        decode = AttentionShape(1, keys, 128, heads=16, kv_heads=2, batch=batch)
        splits = best_splits(decode, DECODING_TILES, gpu)
        alone = attention_time("version_2", decode, DECODING_TILES, gpu)
        split = attention_time("split_kv", decode, DECODING_TILES, gpu, splits=splits)
        rows.append(
            DecodingRow(batch, keys, printed_version_2, 1e6 * alone, printed_split, 1e6 * split, splits)
        )
    return tuple(rows)
