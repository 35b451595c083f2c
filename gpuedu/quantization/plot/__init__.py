"""Quantization as pictures."""

from gpuedu.quantization.plot.gptq_steps import gptq_steps
from gpuedu.quantization.plot.outliers import outliers
from gpuedu.quantization.plot.tradeoff import tradeoff

__all__ = ["gptq_steps", "outliers", "tradeoff"]
