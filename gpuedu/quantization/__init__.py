"""Quantization: weights, activations and caches in fewer bits, and what that does to a model."""
