"""Tensor parallelism: the matrices of each layer cut over ranks that compute it together."""
