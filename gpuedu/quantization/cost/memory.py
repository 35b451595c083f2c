"""What a model's weights take in a format, scales and zeros counted."""

from __future__ import annotations

from gpuedu.checks import check_amount
from gpuedu.transformer import Transformer

from ..plan import Format
from .shapes import linear_shapes


def linear_bytes(model: Transformer, format: Format) -> float:
    """Bytes of the matrices inside the layers, in ``format``.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Any.
    format : Format
        Of these matrices; a group must divide their columns.

    Returns
    -------
    float
        Bytes, with scales and zeros.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, or the group does not divide a matrix's columns.

    Notes
    -----
    A matrix of R rows and C columns takes ``R C bits / 8`` and ``R (C / group) (scale_bits + zero_bits) / 8``
    bytes; a group of None is a row, C columns.

    Examples
    --------
    >>> from gpuedu.quantization.plan import FORMATS
    >>> from gpuedu.transformer import MODELS
    >>> llama = MODELS["llama-2-7b"]
    >>> round(linear_bytes(llama, FORMATS["bf16"]) / linear_bytes(llama, FORMATS["int4_g128"]), 2)
    3.85
    """
    if not isinstance(format, Format):
        raise TypeError(f"format={format!r}: must be a Format")
    bits = sum(m.weights * format.bits_per_number(m.columns) for m in linear_shapes(model))
    return bits / 8


def weight_bytes(model: Transformer, format: Format, *, rest_bytes: float = 2) -> float:
    """Bytes of all parameters: the matrices inside the layers in ``format``, the rest as they are.

    Parameters
    ----------
    model : gpuedu.transformer.Transformer
        Any.
    format : Format
        Of the matrices inside the layers.
    rest_bytes : float
        Bytes of each other parameter: embeddings, output head, norms, biases, routers.

    Returns
    -------
    float
        Bytes.

    Raises
    ------
    TypeError, ValueError
        As :func:`linear_bytes`, and if ``rest_bytes`` is not above 0.

    Notes
    -----
    In a small model the rest weighs: of SmolLM2-135M's parameters a fifth are its embedding.

    Examples
    --------
    >>> from gpuedu.quantization.plan import FORMATS
    >>> from gpuedu.transformer import MODELS
    >>> small, large = MODELS["smollm2-135m"], MODELS["llama-2-70b"]
    >>> four, sixteen = FORMATS["int4_g64"], FORMATS["bf16"]
    >>> [round(weight_bytes(m, sixteen) / weight_bytes(m, four), 2) for m in (small, large)]
    [2.36, 3.64]
    """
    check_amount("rest_bytes", rest_bytes, positive=True)
    rest = model.parameters() - sum(m.weights for m in linear_shapes(model))
    return linear_bytes(model, format) + rest * rest_bytes
