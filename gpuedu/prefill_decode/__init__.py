"""Prefill and decode: the same model, bound by arithmetic in one and by memory in the other."""
