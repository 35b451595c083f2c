"""The layer for few rows is a linear layer, whichever way it computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gpuedu.llama.few_rows import FEW_ROWS, LARGE, Linear

SIZES = [(8, 12), (320, 260), (260, 320)]


@pytest.mark.parametrize("in_features, out_features", SIZES)
@pytest.mark.parametrize("rows", [*range(20), FEW_ROWS, FEW_ROWS + 1])
def test_equals_torch(rows, in_features, out_features):
    layer = Linear(in_features, out_features, bias=False)
    x = torch.randn(rows, in_features, requires_grad=True)
    ours, theirs = layer(x), functional.linear(x, layer.weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for_ours = torch.autograd.grad(ours.square().sum(), (x, layer.weight))
    for_theirs = torch.autograd.grad(theirs.square().sum(), (x, layer.weight))
    torch.testing.assert_close(for_ours, for_theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", [(300,), (1, 300), (2, 1, 300), (1, 2, 3, 300)])
def test_any_number_of_leading_axes(shape):
    layer = Linear(300, 300, bias=False)
    assert layer.weight.numel() > LARGE
    assert layer(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("rows", (1, 2, 7, 8, 9, 16, 31, FEW_ROWS))
def test_few_rows_go_the_other_way_round(rows, monkeypatch):
    layer, x = Linear(300, 300, bias=False), torch.randn(rows, 300)

    def refuse(*_):
        raise AssertionError("few rows went to functional.linear")

    monkeypatch.setattr("gpuedu.llama.few_rows.functional.linear", refuse)
    assert layer(x).shape == (rows, 300)


def test_a_bias_is_refused():
    assert Linear(300, 300).bias is None
    with pytest.raises(ValueError, match="bias=True: must be False"):
        Linear(300, 300, bias=True)


def test_half_precision_goes_the_usual_way():
    layer = Linear(300, 300, bias=False).to(torch.bfloat16)
    x = torch.randn(2, 300).to(torch.bfloat16)
    assert torch.equal(layer(x), functional.linear(x, layer.weight))
