"""How fast the simulator is: requests a second, growth, memory; and a queue beside simpy.

Run with ``python -m benchmarks.serving``. The traffic has the lengths of Azure's conversation trace; eight
replicas batch continuously, with 2,048 tokens and 256 sequences an iteration.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from itertools import product

import simpy

from benchmarks._harness import row, sample, write
from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig
from gpuedu.hardware import GPUS
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.prefill_decode.cost import MEASURED
from gpuedu.serving.simulator import LeastOutstanding, Replica, SimulationLog, simulate
from gpuedu.serving.step_cost import ConstantStepCost, RooflineStepCost
from gpuedu.serving.workload import (
    TRAFFIC,
    AllAtOnce,
    Exponential,
    Fixed,
    Poisson,
    Request,
    make_requests,
)
from gpuedu.transformer import MODELS

REPLICAS = 8
ARRIVALS = {"5.5/s": Poisson(5.5), "40/s": Poisson(40.0), "all at once": AllAtOnce()}
STEP_COST = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"], overhead_s=0.002)
SERVERS, LOAD, STEP_S = 8, 0.8, 0.001


def workload(count: int, arrivals: str) -> list[Request]:
    """Requests with the lengths of Azure's conversation trace."""
    traffic = TRAFFIC["azure_conversation"]
    return make_requests(count, ARRIVALS[arrivals], traffic.prompt, traffic.output)


def serve(requests: list[Request], blocks: int) -> SimulationLog:
    """Eight replicas with paged KV caches."""
    replicas = [
        Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(blocks)), STEP_COST)
        for _ in range(REPLICAS)
    ]
    return simulate(requests, replicas, router=LeastOutstanding())


def growth() -> list[dict]:
    """Seconds for 20,000 requests and for twice as many."""
    benchmarks = []
    for blocks, arrivals in product((8000, 3000), ARRIVALS):
        rows = []
        for count in (20_000, 40_000):
            requests = workload(count, arrivals)
            seconds = sample(lambda requests=requests, blocks=blocks: serve(requests, blocks), 5)
            size = {"requests": count, "arrivals": arrivals, "blocks": blocks, "replicas": REPLICAS}
            rows.append(row(size, {"gpuedu": seconds}))
        benchmarks.append({
            "name": f"requests {arrivals}, {blocks:,} blocks a replica",
            "target_s": {"requests": 20_000, "seconds": 2.0},
            "target_growth": 2.2,
            "rows": rows,
        })  # fmt: skip
    return benchmarks


def million() -> dict:
    """Peak memory of a million requests, in a process of its own."""
    code = "from benchmarks.serving import serve, workload; serve(workload(1_000_000, '40/s'), 8000)"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    size = {"requests": 1_000_000, "arrivals": "40/s", "blocks": 8000, "replicas": REPLICAS}
    rows = [row(size, {"gpuedu": [seconds]}) | {"peak_bytes": peak}]
    return {"name": "a million requests", "target_bytes": 2e9, "rows": rows}


def queue(requests: list[Request], policy: str) -> SimulationLog:
    """M/M/c: iterations of equal length, a place for each server.

    With ``"fcfs"`` the scheduler promises once that only places run out, and the simulator asks the router
    for each customer; with ``"priority"`` (all have the same) the scheduler decides at each event. The logs
    are equal.
    """
    config = SchedulerConfig(max_num_seqs=SERVERS, max_num_batched_tokens=8 * SERVERS, policy=policy)
    replica = Replica(LeapingVLLMScheduler(config, BlockCounter(10**9)), ConstantStepCost(STEP_S))
    return simulate(requests, [replica])


def queue_with_simpy(requests: list[Request]) -> list[tuple[float, float, float]]:
    """The same queue, customers and records, as simpy's documentation writes it."""
    environment = simpy.Environment()
    servers = simpy.Resource(environment, SERVERS)
    records = []

    def customer(service_s: float):
        came = environment.now
        with servers.request() as place:
            yield place
            began = environment.now
            yield environment.timeout(service_s)
        records.append((came, began, environment.now))

    def source():
        for request in requests:
            yield environment.timeout(request.arrival_s - environment.now)
            environment.process(customer(request.output_tokens * STEP_S))

    environment.process(source())
    environment.run()
    return records


def queues() -> dict:
    """M/M/c: the same customers through gpuedu and through simpy."""
    rows = []
    for count in (50_000, 100_000):
        rate = SERVERS * LOAD / (1000 * STEP_S)
        requests = make_requests(count, Poisson(rate), Fixed(1), Exponential(1000))
        ours, theirs = queue(requests, "fcfs"), queue_with_simpy(requests)
        assert ours.requests == queue(requests, "priority").requests
        waited = sum(ours.requests.start_s) - sum(ours.requests.arrival_s)
        simpy_waited = sum(began - came for came, began, _ in theirs)
        assert abs(waited - simpy_waited) < 0.02 * simpy_waited + count * STEP_S
        samples = {
            "gpuedu, scheduler asked once": sample(lambda requests=requests: queue(requests, "fcfs"), 5),
            "gpuedu, asked at each event": sample(lambda requests=requests: queue(requests, "priority"), 5),
            "simpy": sample(lambda requests=requests: queue_with_simpy(requests), 5),
        }
        rows.append(
            row({"system": f"M/M/{SERVERS}", "requests": count, "utilization": f"{LOAD:.0%}"}, samples)
        )
    return {
        "name": f"an M/M/{SERVERS} queue",
        "target_ratio": {"of": "simpy", "at_most": 0.2, "size": {}},
        "rows": rows,
    }


def main() -> None:
    """Measure and write the result."""
    print(write("serving", ["simpy"], [*growth(), queues(), million()]))


if __name__ == "__main__":
    main()
