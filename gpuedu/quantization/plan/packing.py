"""How codes of a few bits lie in words of 32, in the orders of GPTQ's and AWQ's checkpoints."""

from __future__ import annotations

from typing import NamedTuple

from .checks import check_bits, check_choice

WORD = 32

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbors lies in nibble 0, 1, ..., 7 of a word of an AWQ checkpoint, from the low end.

The even ones come first, so that one mask and one shift of the word unpack two neighbors into the two
halves of a register.
"""

ORDERS = ("gptq", "awq")


class Piece(NamedTuple):
    """Bits of one code within one word: ``word |= ((code >> skip) & (2**width - 1)) << shift``."""

    item: int
    word: int
    shift: int
    skip: int
    width: int


def layout(bits: int, order: str = "gptq") -> tuple[Piece, ...]:
    """Where the codes of one run of words lie.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8. With 3, a run is 32 codes in 3 words, two of which are cut by the end of a word.
    order : str
        ``"gptq"``: one after the other from the low end, a stream of bits. ``"awq"``: 4 bits alone, in the
        order ``AWQ_ORDER``.

    Returns
    -------
    tuple of Piece
        By item; an item that crosses into the next word has two.

    Raises
    ------
    TypeError, ValueError
        For an unknown width or order, or AWQ's order with another width than 4.

    References
    ----------
    The packing code of AutoGPTQ (``qweight`` along the input dimension) and of llm-awq and AutoAWQ
    (along the output dimension).

    Examples
    --------
    >>> [piece.shift for piece in layout(4, "awq")]
    [0, 16, 4, 20, 8, 24, 12, 28]
    >>> [piece for piece in layout(3) if piece.item == 10]
    [Piece(item=10, word=0, shift=30, skip=0, width=2), Piece(item=10, word=1, shift=0, skip=2, width=1)]
    """
    check_bits(bits)
    check_choice("order", order, ORDERS)
    if order == "awq":
        if bits != 4:
            raise ValueError(f"bits={bits}: must be 4 in AWQ's order")
        return tuple(Piece(item, 0, 4 * AWQ_ORDER.index(item), 0, 4) for item in range(8))
    pieces = []
    for item in range(WORD if bits == 3 else WORD // bits):
        word, shift = divmod(item * bits, WORD)
        width = min(bits, WORD - shift)
        pieces.append(Piece(item, word, shift, 0, width))
        if width < bits:
            pieces.append(Piece(item, word + 1, 0, width, bits - width))
    return tuple(pieces)
