"""What a serving cluster is asked to do: arrivals, lengths, published traffic, traces."""

from .arrivals import AllAtOnce, ClosedLoop, Deterministic, Gamma, Poisson
from .generate import Arrivals, make_requests, offered_load
from .lengths import Exponential, Fixed, Lengths, LogNormal, Quantiles, Uniform, draw, mean
from .published import TRAFFIC, Traffic
from .request import HASHED_TOKENS, Request
from .traces import read_azure, read_burstgpt, read_mooncake

__all__ = [
    "HASHED_TOKENS",
    "TRAFFIC",
    "AllAtOnce",
    "Arrivals",
    "ClosedLoop",
    "Deterministic",
    "Exponential",
    "Fixed",
    "Gamma",
    "Lengths",
    "LogNormal",
    "Poisson",
    "Quantiles",
    "Request",
    "Traffic",
    "Uniform",
    "draw",
    "make_requests",
    "mean",
    "offered_load",
    "read_azure",
    "read_burstgpt",
    "read_mooncake",
]
