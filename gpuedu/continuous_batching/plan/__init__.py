"""Schedulers: state machines that decide, iteration by iteration, who computes.

They know neither clock nor tensor. ``gpuedu.serving`` prices what they decide, and the engine carries
it out.
"""

from .decision import POLICIES, PREEMPTIONS, Decision, Scheduler, SchedulerConfig
from .leaping import LeapingVLLMScheduler
from .orca import RESERVATIONS, OrcaScheduler, SlotReservations
from .sequence import Sequence
from .static import StaticBatching
from .vllm import VLLMScheduler
from .waiting import ByPriority, FirstComeFirstServed, ShortestPredicted, VirtualTokenCounter, waiting_queue

__all__ = [
    "POLICIES",
    "PREEMPTIONS",
    "RESERVATIONS",
    "ByPriority",
    "Decision",
    "FirstComeFirstServed",
    "LeapingVLLMScheduler",
    "OrcaScheduler",
    "Scheduler",
    "SchedulerConfig",
    "Sequence",
    "ShortestPredicted",
    "SlotReservations",
    "StaticBatching",
    "VLLMScheduler",
    "VirtualTokenCounter",
    "waiting_queue",
]
