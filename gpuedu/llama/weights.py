"""From tensors by name to a model: nothing missing, nothing left over, every shape right."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .model import Llama, LlamaConfig

NAMED_IN_A_MESSAGE = 5


def with_weights(
    config: LlamaConfig,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Llama:
    """A model with the given weights.

    Parameters
    ----------
    config : LlamaConfig
        What the model is like.
    weights : mapping of str to Tensor
        Every parameter, by the names of :class:`Llama`. A tied head may be there or not.
    dtype : torch.dtype
        That the model gets.
    device : torch.device or str
        Where it gets to.

    Returns
    -------
    Llama
        In evaluation mode.

    Raises
    ------
    TypeError
        If ``dtype`` is not a floating-point one.
    ValueError
        If tensors are missing, unknown or of another shape; the message names them.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r}: must be a floating-point torch.dtype")
    with torch.device("meta"):
        model = Llama(config, seed=None)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.shape.tied_embeddings:
        del expected["lm_head.weight"]
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    _check(expected, weights)
    placed = {name: weights[name].to(device=device, dtype=dtype) for name in expected}
    model.load_state_dict(placed, strict=False, assign=True)
    if config.shape.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def _check(expected: Mapping[str, torch.Size], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise unless the names and shapes of ``weights`` are the expected ones."""
    for what, names in (
        ("missing", [name for name in expected if name not in weights]),
        ("unknown", [name for name in weights if name not in expected]),
        (
            "of another shape",
            [n for n, shape in expected.items() if n in weights and weights[n].shape != shape],
        ),
    ):
        if names:
            shown = [
                f"{name} {tuple(weights[name].shape)} for {tuple(expected[name])}"
                if what == "of another shape"
                else name
                for name in names[:NAMED_IN_A_MESSAGE]
            ]
            more = ", ..." if len(names) > len(shown) else ""
            raise ValueError(f"weights: {len(names)} tensors {what}: {', '.join(shown)}{more}")
