"""Formats of stored numbers: how many bits one takes when its share of scale and zero is counted."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.hardware import DTYPE_BYTES

from .checks import check_choice, check_number


@dataclass(frozen=True)
class Format:
    """How numbers are stored, and in which dtype they are multiplied.

    Parameters
    ----------
    label : str
        What a reader sees.
    bits : float
        Bits of one number, without its scale.
    group : int or None
        Numbers of a row that share a scale; None: the row (a channel of a weight, a token of an
        activation) has one.
    scale_bits, zero_bits : float
        Bits of a scale, and of a zero or a minimum where there is one.
    multiplied_as : str
        A dtype of :data:`gpuedu.hardware.DTYPE_BYTES`: what the tensor cores must know. A format of
        weights alone is expanded to 16 bits on the way and multiplied as ``"bf16"``.

    Raises
    ------
    TypeError, ValueError
        For a field out of its range.

    Examples
    --------
    >>> round(FORMATS["int4_g128"].bits_per_number(), 3)
    4.156
    >>> FORMATS["mxfp4"].bits_per_number(), FORMATS["int8"].bits_per_number(row=4096)
    (4.25, 8.00390625)
    """

    label: str
    bits: float
    group: int | None = None
    scale_bits: float = 0
    zero_bits: float = 0
    multiplied_as: str = "bf16"

    def __post_init__(self) -> None:
        check_number("bits", self.bits, 1, 64)
        check_number("scale_bits", self.scale_bits, 0, 64)
        check_number("zero_bits", self.zero_bits, 0, 64)
        check_choice("multiplied_as", self.multiplied_as, tuple(DTYPE_BYTES))
        if self.group is not None:
            check_count("group", self.group)

    def bits_per_number(self, row: int | None = None) -> float:
        """Bits of one number with its share of scale and zero.

        Parameters
        ----------
        row : int or None
            Numbers in a row; needed where a whole row shares one scale.

        Returns
        -------
        float
            ``bits + (scale_bits + zero_bits) / group``.

        Raises
        ------
        TypeError, ValueError
            If ``row`` is needed and missing, no int of at least 1, or not divided by the group.
        """
        overhead = self.scale_bits + self.zero_bits
        if overhead == 0:
            return self.bits
        if self.group is None:
            if row is None:
                raise ValueError(
                    f"row=None: must be the length of a row, which shares a scale in {self.label}"
                )
            check_count("row", row)
            return self.bits + overhead / row
        if row is not None:
            check_count("row", row)
            if row % self.group:
                raise ValueError(
                    f"row={row}: must be a multiple of the group of {self.group} of {self.label}"
                )
        return self.bits + overhead / self.group


def integer_format(bits: int, group: int | None = None, *, asymmetric: bool = True) -> Format:
    """Integer weights as GPTQ's and AWQ's checkpoints hold them: FP16 scales, zeros as wide as the codes.

    Parameters
    ----------
    bits : int
        Bits of a code.
    group : int or None
        Weights of a row that share a scale; None: the whole row.
    asymmetric : bool
        A zero is stored beside each scale.

    Returns
    -------
    Format
        Multiplied in 16 bits.

    Raises
    ------
    TypeError, ValueError
        If a count is no int of at least 1.

    Examples
    --------
    >>> [round(integer_format(4, group).bits_per_number(), 3) for group in (32, 64, 128)]
    [4.625, 4.312, 4.156]
    >>> integer_format(3, 64, asymmetric=False).label
    '3-bit, groups of 64, symmetric'
    """
    check_count("bits", bits)
    where = "per channel" if group is None else f"groups of {group}"
    label = f"{bits}-bit, {where}" + ("" if asymmetric else ", symmetric")
    return Format(label, bits, group, scale_bits=16, zero_bits=bits if asymmetric else 0)


FORMATS = {
    "fp32": Format("FP32", 32, multiplied_as="fp32"),
    "bf16": Format("BF16", 16),
    "int8": Format("INT8 W8A8, per channel", 8, scale_bits=16, multiplied_as="int8"),
    "fp8": Format("FP8 W8A8, per channel", 8, scale_bits=32, multiplied_as="fp8"),
    "int8_weights": integer_format(8, asymmetric=False),
    "int4": integer_format(4),
    "int4_g128": integer_format(4, 128),
    "int4_g64": integer_format(4, 64),
    "int4_g32": integer_format(4, 32),
    "int3": integer_format(3),
    "int3_g128": integer_format(3, 128),
    "int3_g64": integer_format(3, 64),
    "int2_g64": integer_format(2, 64),
    "int2_g32": integer_format(2, 32),
    "q4_1": Format("GGUF Q4_1", 4, 32, scale_bits=16, zero_bits=16),
    "q8_0": Format("GGUF Q8_0", 8, 32, scale_bits=16),
    "nf4": Format("NF4, FP32 scales", 4, 64, scale_bits=32),
    "nf4_double": Format("NF4, double quantization", 4, 64, scale_bits=8 + 32 / 256),
    "mxfp4": Format("MXFP4 W4A4", 4, 32, scale_bits=8, multiplied_as="fp4"),
    "nvfp4": Format("NVFP4 W4A4", 4, 16, scale_bits=8, multiplied_as="fp4"),
}
"""Formats of weights by name, the last two with activations in the same. Left out: the one FP32 scale that
NVFP4 has for a whole tensor, and the 32 bits a layer of NF4's second level of scales has beside its first."""
