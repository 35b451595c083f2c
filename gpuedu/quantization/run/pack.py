"""Integer codes packed into 32-bit words, as GPTQ's and AWQ's checkpoints hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from gpuedu.checks import check_count

from ..plan.checks import check_bits
from ..plan.packing import WORD, layout
from .integers import QuantizedMatrix, Scales

MASK = 2**WORD - 1


def pack(codes: torch.Tensor, bits: int, order: str = "gptq") -> torch.Tensor:
    """Pack whole numbers along the first axis into words.

    Parameters
    ----------
    codes : Tensor
        Whole numbers from 0 to ``2**bits - 1``, (n, ...); n a multiple of the numbers of one run of words:
        32 / bits, or 32 for 3 bits.
    bits : int
        2, 3, 4 or 8.
    order : str
        As of :func:`gpuedu.quantization.plan.layout`.

    Returns
    -------
    Tensor
        int32, (n * bits / 32, ...).

    Raises
    ------
    TypeError, ValueError
        For codes that are no whole numbers or out of range, a count that does not fill the words, or an
        unknown width or order.

    Examples
    --------
    >>> pack(torch.arange(8), bits=4).item() == 0x76543210
    True
    >>> pack(torch.arange(8), bits=4, order="awq").item() == 0x75316420
    True
    """
    pieces = layout(bits, order)
    run = 1 + max(piece.item for piece in pieces)
    if codes.is_floating_point() or codes.is_complex():
        raise TypeError(f"codes are {codes.dtype}: must be whole numbers")
    if codes.ndim == 0 or len(codes) == 0 or len(codes) % run:
        raise ValueError(f"codes of shape {tuple(codes.shape)}: must be a multiple of {run} of them")
    if int(codes.min()) < 0 or int(codes.max()) >= 2**bits:
        raise ValueError(f"codes from {codes.min()} to {codes.max()}: must be from 0 to {2**bits - 1}")
    runs = codes.long().unflatten(0, (-1, run))
    words = runs.new_zeros(len(runs), 1 + max(piece.word for piece in pieces), *codes.shape[1:])
    for piece in pieces:
        part = (runs[:, piece.item] >> piece.skip) & (2**piece.width - 1)
        words[:, piece.word] |= part << piece.shift
    return (words - ((words >> (WORD - 1)) << WORD)).flatten(0, 1).to(torch.int32)


def unpack(words: torch.Tensor, bits: int, order: str = "gptq") -> torch.Tensor:
    """The numbers that :func:`pack` packed.

    Parameters
    ----------
    words : Tensor
        int32, (words, ...); for 3 bits a multiple of 3.
    bits, order
        As of :func:`pack`.

    Returns
    -------
    Tensor
        uint8, (words * 32 / bits, ...).

    Raises
    ------
    TypeError, ValueError
        For words of another type, words that are no whole runs, or an unknown width or order.

    Examples
    --------
    >>> unpack(torch.tensor([0x76543210], dtype=torch.int32), bits=4).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    pieces = layout(bits, order)
    run = 1 + max(piece.word for piece in pieces)
    if words.dtype != torch.int32:
        raise TypeError(f"words are {words.dtype}: must be torch.int32")
    if words.ndim == 0 or len(words) % run:
        raise ValueError(f"words of shape {tuple(words.shape)}: must be a multiple of {run} of them")
    runs = words.unflatten(0, (-1, run))
    count = 1 + max(piece.item for piece in pieces)
    codes = torch.zeros(len(runs), count, *words.shape[1:], dtype=torch.uint8, device=words.device)
    for piece in pieces:
        part = (runs[:, piece.word] >> piece.shift) & (2**piece.width - 1)
        codes[:, piece.item] |= (part << piece.skip).to(torch.uint8)
    return codes.flatten(0, 1)


@dataclass(frozen=True)
class PackedGPTQ:
    """A matrix as GPTQ's checkpoints hold it: packed along the inputs, one group of codes after the other.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8.
    version : int
        1 (AutoGPTQ's ``gptq``): zeros are stored less 1, and kernels add it. 2 (``gptq_v2``): as they are.
    qweight : Tensor
        int32, (columns * bits / 32, rows): columns of the matrix are inputs, rows outputs.
    qzeros : Tensor
        int32, (groups, rows * bits / 32).
    scales : Tensor
        float16, (groups, rows).
    g_idx : Tensor
        int32, (columns,): the group of each input.
    """

    bits: int
    version: int
    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor


@dataclass(frozen=True)
class PackedAWQ:
    """A 4-bit matrix as AWQ's checkpoints hold it: packed along the outputs, in AWQ's order.

    Parameters
    ----------
    qweight : Tensor
        int32, (columns, rows / 8).
    qzeros : Tensor
        int32, (groups, rows / 8).
    scales : Tensor
        float16, (groups, rows).
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor

    @property
    def bits(self) -> int:
        """4: there is no other."""
        return 4

    @property
    def g_idx(self) -> torch.Tensor:
        """The group of each input: neighbors share one."""
        columns, groups = len(self.qweight), len(self.scales)
        return torch.arange(columns, device=self.qweight.device) // (columns // groups)


Packed = PackedGPTQ | PackedAWQ


def packed_bytes(packed: Packed) -> int:
    """Bytes of all tensors of a packed matrix; of ``g_idx`` none, where groups are neighbors.

    Parameters
    ----------
    packed : PackedGPTQ or PackedAWQ
        Any.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(64, 128), bits=4, group=128)
    >>> 8 * packed_bytes(pack_gptq(matrix)) / (64 * 128)
    4.15625
    """
    tensors = {f.name: getattr(packed, f.name) for f in fields(packed)}
    index = tensors.pop("g_idx", None)
    total = sum(t.numel() * t.element_size() for t in tensors.values() if isinstance(t, torch.Tensor))
    if index is not None and (index.diff() < 0).any():
        total += index.numel() * index.element_size()
    return total


def pack_gptq(matrix: QuantizedMatrix, version: int = 1) -> PackedGPTQ:
    """Pack a matrix the way of GPTQ's checkpoints.

    Parameters
    ----------
    matrix : QuantizedMatrix
        Rows and columns must fill whole words. Its scales are stored in FP16.
    version : int
        1 or 2; see :class:`PackedGPTQ`.

    Returns
    -------
    PackedGPTQ
        Zeros of 0 are stored, in version 1, as all bits set: -1, which wraps around on the way back.

    Raises
    ------
    TypeError, ValueError
        For another version, a matrix with an input scale (its norm must take it first), scales that FP16 does
        not have, or rows and columns that do not fill words.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(64, 96), bits=3, group=32)
    >>> packed = pack_gptq(matrix)
    >>> packed.qweight.shape, packed.qzeros.shape
    (torch.Size([9, 64]), torch.Size([3, 6]))
    >>> bool((unpack_gptq(packed).codes == matrix.codes).all())
    True
    """
    check_version(version)
    scales, zeros = _stored_scales(matrix)
    if version == 1:
        zeros = (zeros - 1) % 2**matrix.bits
    qweight = pack(matrix.codes.T.contiguous(), matrix.bits)
    qzeros = pack(zeros.contiguous(), matrix.bits).T.contiguous()
    return PackedGPTQ(matrix.bits, version, qweight, qzeros, scales, matrix.group_index.to(torch.int32))


def unpack_gptq(packed: PackedGPTQ, dtype: torch.dtype = torch.float32) -> QuantizedMatrix:
    """The matrix that a GPTQ checkpoint holds.

    Parameters
    ----------
    packed : PackedGPTQ
        As :func:`pack_gptq` makes it, or from a file.
    dtype : torch.dtype
        Of the scales, and so of the weights.

    Returns
    -------
    QuantizedMatrix
        (rows, columns).

    Raises
    ------
    TypeError, ValueError
        If the words do not fit the bits.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(32, 64), bits=4, scale_dtype=torch.float16)
    >>> bool((unpack_gptq(pack_gptq(matrix)).dequantize() == matrix.dequantize()).all())
    True
    """
    check_version(packed.version)
    check_bits(packed.bits)
    codes = unpack(packed.qweight, packed.bits).T
    zeros = unpack(packed.qzeros.T.contiguous(), packed.bits)
    if packed.version == 1:
        zeros = (zeros.int() + 1) % 2**packed.bits
    scales = Scales(packed.bits, packed.scales.T.to(dtype), zeros.to(dtype))
    return QuantizedMatrix(codes, scales, packed.g_idx.long())


def pack_awq(matrix: QuantizedMatrix) -> PackedAWQ:
    """Pack a 4-bit matrix the way of AWQ's checkpoints.

    Parameters
    ----------
    matrix : QuantizedMatrix
        4 bits, groups of neighbors, a multiple of 8 rows. Its scales are stored in FP16.

    Returns
    -------
    PackedAWQ
        A search scale is not in it: the norm before the layer has taken it.

    Raises
    ------
    ValueError
        For another width, groups that are no neighbors, a matrix with an input scale, scales that FP16 does
        not have, or rows that do not fill words.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(16, 64), bits=4, group=32)
    >>> packed = pack_awq(matrix)
    >>> packed.qweight.shape, bool((unpack_awq(packed).codes == matrix.codes).all())
    (torch.Size([64, 2]), True)
    """
    scales, zeros = _stored_scales(matrix)
    if (matrix.group_index.diff() < 0).any():
        raise ValueError("matrix: its groups must be neighbors, AWQ's checkpoints have no g_idx")
    qweight = pack(matrix.codes.contiguous(), matrix.bits, "awq").T.contiguous()
    qzeros = pack(zeros.contiguous(), matrix.bits, "awq").T.contiguous()
    return PackedAWQ(qweight, qzeros, scales)


def unpack_awq(packed: PackedAWQ, dtype: torch.dtype = torch.float32) -> QuantizedMatrix:
    """The matrix that an AWQ checkpoint holds.

    Parameters
    ----------
    packed : PackedAWQ
        As :func:`pack_awq` makes it, or from a file.
    dtype : torch.dtype
        Of the scales, and so of the weights.

    Returns
    -------
    QuantizedMatrix
        (rows, columns).

    Raises
    ------
    TypeError
        If the words are no 32-bit integers.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(8, 64), bits=4, group=32, scale_dtype=torch.float16)
    >>> bool((unpack_awq(pack_awq(matrix)).dequantize() == matrix.dequantize()).all())
    True
    """
    codes = unpack(packed.qweight.T.contiguous(), 4, "awq")
    zeros = unpack(packed.qzeros.T.contiguous(), 4, "awq")
    scales = Scales(4, packed.scales.T.to(dtype), zeros.to(dtype))
    return QuantizedMatrix(codes, scales, packed.g_idx)


def check_version(version: int) -> None:
    """Raise unless ``version`` is 1 or 2."""
    check_count("version", version)
    if version > 2:
        raise ValueError(f"version={version}: must be 1 or 2")


def _stored_scales(matrix: QuantizedMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales in FP16, (groups, rows), and zeros as whole numbers, (rows, groups)."""
    if matrix.input_scale is not None:
        raise ValueError("matrix has an input scale: must be folded into the layer before, and dropped")
    scales = matrix.scales.scale.to(torch.float16)
    if not (torch.isfinite(scales) & (scales > 0)).all():
        raise ValueError("matrix: its scales must be finite and above 0 in float16")
    return scales.T.contiguous(), matrix.scales.zero.long()
