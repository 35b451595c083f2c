"""Continuous batching: who computes in the next iteration, decided anew before each."""
