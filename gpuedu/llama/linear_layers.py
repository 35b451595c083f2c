"""The linear layers of a model by name: what a quantization goes through and replaces."""

from __future__ import annotations

from torch import nn

from .model import Llama

IN_ORDER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linear layers of a decoder layer, in order of execution."""


def linear_layers(model: Llama) -> dict[str, nn.Module]:
    """The seven linear layers of each decoder layer, or what stands in their place.

    Parameters
    ----------
    model : Llama
        Any.

    Returns
    -------
    dict
        Modules in order of execution, by names such as ``"layers.0.self_attn.q_proj"``. The output head
        is not among them: it is the embedding in small models.

    Examples
    --------
    >>> from gpuedu.tinylm import load
    >>> list(linear_layers(load("draft")[0]))[:2]
    ['layers.0.self_attn.q_proj', 'layers.0.self_attn.k_proj']
    """
    return {
        f"layers.{index}.{name}": layer.get_submodule(name)
        for index, layer in enumerate(model.layers)
        for name in IN_ORDER
    }


def replace_linear(model: Llama, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of a linear layer.

    Parameters
    ----------
    model : Llama
        Changed in place.
    name : str
        A key of :func:`linear_layers`.
    module : Module
        Maps (..., in_features) to (..., out_features) as the linear layer does.

    Raises
    ------
    ValueError
        If there is no such linear layer.
    """
    if name not in linear_layers(model):
        raise ValueError(f"name={name!r}: must be a linear layer, such as 'layers.0.mlp.up_proj'")
    model.set_submodule(name, module)
