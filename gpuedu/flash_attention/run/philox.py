"""Random numbers that are a function of a place: the backward draws the forward's dropout mask anew."""

from __future__ import annotations

import torch

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int], rounds: int = 10) -> tuple:
    """Philox 4x32: four random words for each counter.

    Parameters
    ----------
    counter : tuple of Tensor
        Four int64 tensors of the same shape, or shapes that broadcast, of 32-bit words.
    key : tuple of int
        Two 32-bit words: the seed.
    rounds : int
        10 is the standard.

    Returns
    -------
    tuple of Tensor
        Four int64 tensors with values from 0 to 2^32 - 1.

    References
    ----------
    Salmon, Moraes, Dror, Shaw. Parallel random numbers: as easy as 1, 2, 3. SC 2011.

    Examples
    --------
    The first known answer of its authors' test suite, counter and key 0:

    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> [f"{word.item():08x}" for word in philox((zero,) * 4, (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 64-bit products, modulo 2^64
        c0, c1, c2, c3 = (
            (second >> 32 & WORD) ^ c1 ^ k0,
            second & WORD,
            (first >> 32 & WORD) ^ c3 ^ k1,
            first & WORD,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def keep_mask(
    seed: int, sequence: int, heads: torch.Tensor, rows: range, columns: range, dropout_p: float
) -> torch.Tensor:
    """Which probabilities of a tile stay: the same for the same place, however the tiles are cut.

    Parameters
    ----------
    seed : int
        Below 2^64.
    sequence : int
        Of a packed batch.
    heads : Tensor
        Numbers of the heads, counted through the batch, of shape (h,).
    rows, columns : range
        Queries and keys of the tile.
    dropout_p : float
        Share that goes.

    Returns
    -------
    Tensor
        Bool, of shape (h, rows, columns); False with probability ``dropout_p``, rounded to 2^-32.

    Notes
    -----
    The counter is (key // 4, query, head, sequence); word key % 4 of the four decides.

    Examples
    --------
    >>> head = torch.tensor([3])
    >>> whole = keep_mask(7, 0, head, range(8), range(8), 0.5)
    >>> bool((keep_mask(7, 0, head, range(2, 5), range(3, 8), 0.5) == whole[:, 2:5, 3:8]).all())
    True
    """
    device = heads.device
    first, last = columns.start // 4, -(-columns.stop // 4)
    quads = torch.arange(first, last, device=device)
    shape = (len(heads), len(rows), len(quads))
    counter = (
        quads.expand(shape),
        torch.arange(rows.start, rows.stop, device=device)[:, None].expand(shape),
        heads[:, None, None].expand(shape),
        torch.full((1, 1, 1), sequence, device=device).expand(shape),
    )
    words = torch.stack(philox(counter, (seed & WORD, seed >> 32)), dim=-1).flatten(2)
    begin = columns.start - 4 * first
    return words[:, :, begin : begin + len(columns)] >= round(dropout_p * 2**32)
