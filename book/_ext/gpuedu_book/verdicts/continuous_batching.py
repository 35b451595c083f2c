"""Numbers in the verdicts on continuous batching."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from gpuedu.continuous_batching.cost import Point, frontier_point, harmonic, static_occupancy, trial
from gpuedu.hardware import GPUS
from gpuedu.prefill_decode.cost import MEASURED
from gpuedu.serving.step_cost import RooflineStepCost
from gpuedu.serving.workload import TRAFFIC, Exponential, Fixed, Uniform
from gpuedu.transformer import MODELS

MEASURED_GAIN = Path(__file__).resolve().parents[4] / "measurements" / "batching_gain.json"
SLOTS = 8
LONG_PROMPT = 4000
PLACES, RATE = 32, 6.0
LOW, HIGH = 1.0, 40.0
CHAT, CODE = TRAFFIC["azure_conversation"], TRAFFIC["azure_code"]
H100 = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"], overhead_s=0.002)


@cache
def served(rate: float, budget: int = 2048) -> Point:
    """Llama 3 8B on one H100 with chat-like traffic, continuously batched in 32 places."""
    return frontier_point(
        "vllm",
        rate,
        prompt=CHAT.prompt,
        output=CHAT.output,
        step_cost=H100,
        max_num_seqs=PLACES,
        max_num_batched_tokens=budget,
        max_model_len=16_384,
        requests=400,
    )


def percent(share: float) -> str:
    """A share as a whole number of per cent."""
    return f"{100 * share:.0f}"


def c43() -> dict[str, object]:
    """Iterations that a newcomer waits for a place, in a static and in a continuous batch."""
    result = trial(Exponential(200), SLOTS)
    return {"slots": SLOTS, "occupied": percent(result.continuous_occupancy)}


def c44() -> dict[str, object]:
    """Slots in use at low and at high load, and what a long prompt does to the others' worst wait."""
    whole, chunked = (served(RATE, budget) for budget in (8_192, 512))
    return {
        "places": PLACES,
        "rate": f"{RATE:.0f}",
        "low": percent(served(LOW).slot_occupancy),
        "high": percent(served(HIGH).slot_occupancy),
        "low_rate": f"{LOW:.0f}",
        "high_rate": f"{HIGH:.0f}",
        "whole": f"{1e3 * whole.worst_gap_p90_s:.0f}",
        "chunked": f"{1e3 * chunked.worst_gap_p90_s:.0f}",
    }


def c45() -> dict[str, object]:
    """Slots in use of static batches by distribution, and of continuous ones by load."""
    return {
        "b": SLOTS,
        "twice": 2 * SLOTS,
        "exponential": percent(1 / harmonic(SLOTS)),
        "exponential_twice": percent(1 / harmonic(2 * SLOTS)),
        "uniform": percent(static_occupancy(Uniform(1, 4000), SLOTS)),
        "chat": percent(static_occupancy(CHAT.output, SLOTS)),
        "code": percent(static_occupancy(CODE.output, SLOTS)),
        "low": percent(served(LOW).slot_occupancy),
        "high": percent(served(HIGH).slot_occupancy),
    }


def c46() -> dict[str, object]:
    """Gains in throughput: derived, and with what a step costs."""
    real = trial(Exponential(200), 2 * SLOTS, batches=40, prompt=Fixed(LONG_PROMPT), step_cost=H100)
    run = next(r for r in json.loads(MEASURED_GAIN.read_text())["results"] if r["lengths"] == "exponential")
    return {
        "b": SLOTS,
        "twice": 2 * SLOTS,
        "exponential": f"{harmonic(SLOTS):.2f}",
        "uniform": f"{1 / static_occupancy(Uniform(1, 4000), SLOTS):.2f}",
        "chat": f"{1 / static_occupancy(CHAT.output, SLOTS):.1f}",
        "code": f"{1 / static_occupancy(CODE.output, SLOTS):.1f}",
        "derived": f"{real.derived_gain:.1f}",
        "real": f"{real.gain:.1f}",
        "prompt": f"{LONG_PROMPT:,}",
        "kept": f"{run['measured_gain']['kept']:.1f}",
        "dropped": f"{run['measured_gain']['dropped']:.1f}",
    }
