"""Quantization as pictures."""

from gpuedu.quantization.plot.gptq_steps import gptq_steps
from gpuedu.quantization.plot.outliers import outliers

__all__ = ["gptq_steps", "outliers"]
