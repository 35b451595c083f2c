"""The Triton kernels under Triton's CPU interpreter, which runs in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed: it is there for Linux on x86-64 (pip install 'gpuedu[triton]')",
)


@pytest.fixture(scope="module")
def interpreted():
    job = Path(__file__).with_name("triton_jobs.py")
    done = subprocess.run(
        [sys.executable, str(job)], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_error_is_near_that_of_a_reference_in_the_same_dtype(interpreted, dtype):
    """At most twice as large for O, three times for gradients, whose dS is rounded once more."""
    cases = [case for case in interpreted["cases"] if case["dtype"] == f"torch.{dtype}"]
    assert len(cases) == 3 * 2 * 4
    floor = {"float32": 2e-6, "float16": 5e-4, "bfloat16": 4e-3}[dtype]  # half a unit in the last place of 1
    wrong = [
        c for c in cases
        if not c["kernel"] <= max((2 if c["name"].startswith("O") else 3) * c["reference"], floor)
    ]  # fmt: skip
    assert not wrong


def test_float32_is_right_to_a_few_millionths(interpreted):
    assert max(c["kernel"] for c in interpreted["cases"] if c["dtype"] == "torch.float32") < 5e-6


def test_strides_lse_blind_rows_and_nothing_at_all(interpreted):
    others = interpreted["others"]
    assert others["out"] < 2e-6 and others["lse"] < 2e-6
    assert others["blind rows"] == 0 and others["blind lse"]
    assert others["empty"] == [1, 2, 0, 16]


@pytest.mark.parametrize(
    "shape, dtype, error, message",
    [
        ((1, 2, 4, 24), torch.float16, ValueError, "head_dim=24: must be one of 16, 32, 64, 128, 256"),
        ((1, 2, 4, 64), torch.float64, TypeError, "q has dtype torch.float64: must be one of"),
        ((1, 2, 4, 64), torch.float16, ValueError, "q is on cpu: must be on a GPU, or TRITON_INTERPRET=1"),
        ((2, 4, 64), torch.float16, ValueError, "must be .batch, heads, tokens, d."),
    ],
)
def test_bad_input_says_why(shape, dtype, error, message):
    from gpuedu.flash_attention.run.triton_kernel import triton_attention

    tensor = torch.zeros(shape, dtype=dtype)
    with pytest.raises(error, match=message):
        triton_attention(tensor, tensor, tensor)


@pytest.mark.parametrize("scale", [0.0, -0.25, float("nan"), float("inf")])
def test_a_scale_that_is_none_says_why(scale):
    """As :func:`attention` does, before a kernel makes NaN of it."""
    from gpuedu.flash_attention.run.triton_kernel import triton_attention

    tensor = torch.zeros(1, 2, 4, 64)
    with pytest.raises(ValueError, match=f"scale={scale}: must be finite and above 0"):
        triton_attention(tensor, tensor, tensor, scale=scale)
    with pytest.raises(TypeError, match="scale='1': must be a number"):
        triton_attention(tensor, tensor, tensor, scale="1")
