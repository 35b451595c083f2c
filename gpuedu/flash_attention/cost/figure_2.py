"""Figure 2 of the FlashAttention paper: what it prints, and what counting gives."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.hardware import GPUS

from ..plan import AttentionShape, Tiles, tiles_from_sram
from .time import attention_time
from .traffic import traffic
from .work import work

GPT2_MEDIUM = AttentionShape(1024, 1024, 64, heads=16, batch=64)
"""The shape of the paper's Figure 2: N = 1,024, d = 64, 16 heads, 64 sequences."""

SRAM_ELEMENTS = 192 * 1024 // 2
"""16-bit elements in the 192 KiB of one multiprocessor of an A100."""

PUBLISHED = {
    "standard": {"gflops": 66.6, "hbm_gb": 40.3, "runtime_ms": 41.7},
    "version_1": {"gflops": 75.2, "hbm_gb": 4.4, "runtime_ms": 7.3},
}
"""The table left in Figure 2: forward and backward on an A100, as arXiv version 2 and NeurIPS print it."""


@dataclass(frozen=True)
class Figure2Row:
    """One algorithm's row: forward and backward of the figure's shape.

    Parameters
    ----------
    gflops : float
        GFLOPs in matrix products.
    hbm_gb : float
        GB read and written, 16 bits an element.
    filled_gb : float
        GB filled with constants, which ``hbm_gb`` leaves out.
    roofline_ms : float
        Milliseconds by the roofline of the A100 of 40 GB, fills included.
    """

    gflops: float
    hbm_gb: float
    filled_gb: float
    roofline_ms: float


def figure_2(columns: int | None = None) -> dict[str, Figure2Row]:
    """The table left in Figure 2, counted.

    Parameters
    ----------
    columns : int, optional
        B_c of version 1, with B_r = min(B_c, d); by default what Algorithm 1 takes for
        ``SRAM_ELEMENTS``, 384. With other values, the curve in the middle of the figure.

    Returns
    -------
    dict
        :class:`Figure2Row` for ``standard`` and ``version_1``.

    Raises
    ------
    TypeError, ValueError
        If ``columns`` is no int of at least 1.

    Notes
    -----
    **FlashAttention's bytes come out, standard attention's do not.** Algorithms 1 and 4 move 4.06 GB by
    count, 8 % below the printed 4.4; with the fills that both begin with it is 4.6. Algorithms 0 and 3 move
    25.2 GB where the paper prints 40.3. The paper does not say what its baseline launches: PyTorch's also
    scales, masks and drops out, passes over the scores of 2.1 GB each way that Algorithms 0 and 3 do not
    have. The printed GFLOPs do not follow from the stated shape: 6 and 7 products of 2 N^2 d FLOPs for each
    of 1,024 heads are more than twelve times as many; their ratio, 1.13, is near 7 / 6.

    References
    ----------
    Dao et al. 2022, "FlashAttention", Figure 2 (left and middle).

    Examples
    --------
    >>> rows = figure_2()
    >>> {name: (round(row.gflops), round(row.hbm_gb, 2)) for name, row in rows.items()}
    {'standard': (825, 25.23), 'version_1': (962, 4.06)}
    >>> [round(figure_2(size)["version_1"].hbm_gb, 2) for size in (64, 128, 256, 512)]
    [18.19, 9.5, 5.15, 2.98]
    """
    if columns is None:
        tiles = tiles_from_sram("version_1", SRAM_ELEMENTS, GPT2_MEDIUM.head_dim)
    else:
        check_count("columns", columns)
        tiles = Tiles(min(columns, GPT2_MEDIUM.head_dim), columns)
    return {name: _row((name, f"{name}_backward"), tiles) for name in PUBLISHED}


def _row(names: tuple[str, str], tiles: Tiles) -> Figure2Row:
    a100 = GPUS["A100-40GB"]
    moved = [traffic(name, GPT2_MEDIUM, tiles) for name in names]
    return Figure2Row(
        gflops=sum(work(name, GPT2_MEDIUM, tiles).matmul_flops for name in names) / 1e9,
        hbm_gb=sum(t.nbytes(2, fills=False) for t in moved) / 1e9,
        filled_gb=sum(2 * t.total.filled for t in moved) / 1e9,
        roofline_ms=1e3 * sum(attention_time(name, GPT2_MEDIUM, tiles, a100) for name in names),
    )
