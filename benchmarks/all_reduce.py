"""How fast a plan is priced and run, against what one would write or find instead.

Run with ``python -m benchmarks.all_reduce``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import networkx as nx

from benchmarks._harness import row, sample, write
from gpuedu.all_reduce.cost import collective_time, plan_time, simulate
from gpuedu.all_reduce.plan import Plan, double_binary_tree, ring
from gpuedu.all_reduce.run import measure
from gpuedu.distributed import launch
from gpuedu.hardware import GPUS, LINKS, Cluster

LINK = LINKS["InfiniBand-NDR"]
BYTES = 2**28


def cluster(plan: Plan) -> Cluster:
    """A node for each rank: one kind of link."""
    return Cluster(GPUS["H100-SXM"], 1, plan.world_size, LINKS["NVLink4"], LINK)


def ours(make: Callable[[int], Plan], n: int) -> float:
    """Build the explicit plan and price it round by round."""
    plan = make(n)
    return plan_time(plan, BYTES, cluster(plan))


def with_networkx(make: Callable[[int], Plan], n: int) -> float:
    """Build the plan; its price as the longest path of a graph, by a well-kept library."""
    plan = make(n)
    at = plan.byte_bounds(BYTES)
    graph = nx.DiGraph()
    for number, transfers in enumerate(plan.rounds):
        for t in transfers:  # a round is a node that all of its messages lead to
            message = (number, t.src, t.dst)
            graph.add_edge(number, message, time=LINK.transfer_time(at[t.stop] - at[t.start]))
            graph.add_edge(message, number + 1, time=0)
    return nx.dag_longest_path_length(graph, weight="time")


def explicit_plans_as_they_grow(make: Callable[[int], Plan], sizes: tuple[int, ...], most: int) -> list[dict]:
    rows = []
    for n in sizes:
        rivals = {"gpuedu": ours} | ({"networkx": with_networkx} if n <= most else {})
        price = ours(make, n)
        assert all(abs(rival(make, n) / price - 1) < 1e-9 for rival in rivals.values())
        samples = {
            name: sample(partial(rival, make, n), repeats=5 if rival is ours else 3)
            for name, rival in rivals.items()
        }
        size = {"ranks": n, "transfers": sum(map(len, make(n).rounds))}
        rows.append(row(size, samples))
        print(make.__name__, size, {name: f"{1e3 * s:.0f} ms" for name, s in rows[-1]["median_s"].items()})
    return rows


def explicit_ring() -> dict:
    rows = explicit_plans_as_they_grow(ring, (32, 64, 128, 256, 512), most=256)
    return {"name": "build and price a ring", "target_s": {"ranks": 256, "seconds": 1.0}, "rows": rows}


def explicit_double_tree() -> dict:
    rows = explicit_plans_as_they_grow(double_binary_tree, (128, 256, 512, 1024, 2048), most=2048)
    target = {"ranks": 1024, "seconds": 1.0}
    return {"name": "build and price a double binary tree", "target_s": target, "rows": rows}


def ring_by_formula() -> dict:
    """The same price by symmetry, whatever n."""
    rows = []
    for n in (64, 1024, 2**20):
        samples = {"gpuedu": sample(partial(collective_time, "ring", n, BYTES, LINK))}
        rows.append(row({"ranks": n}, samples))
        print("formula", n, f"{1e6 * rows[-1]['median_s']['gpuedu']:.1f} us")
    for each in rows:
        del each["times_ours"]  # there is no rival
    return {"name": "price a ring by its formula", "rows": rows}


def tree_in_pieces() -> dict:
    """The event simulation, pieces doubled."""
    plan = double_binary_tree(256)
    rows = []
    for pieces in (4, 8, 16, 32):
        samples = {"gpuedu": sample(partial(simulate, plan, BYTES, cluster(plan), pieces=pieces), repeats=3)}
        size = {"ranks": 256, "pieces": pieces, "messages": pieces * sum(map(len, plan.rounds))}
        rows.append(row(size, samples))
        print(size, f"{1e3 * rows[-1]['median_s']['gpuedu']:.0f} ms")
    for each in rows:
        del each["times_ours"]  # there is no rival
    return {"name": "simulate a double binary tree in pieces", "rows": rows}


# --- run ---------------------------------------------------------------------------------------------

PROCESSES, PIECES, MESSAGES = 4, 4, (2**20, 2**22, 2**24, 2**26)


def ring_against_gloo() -> dict:
    """The ring plan over gloo's point-to-point messages, and gloo's own all-reduce, taking turns."""
    rows = []
    for pieces in (1, PIECES):  # in pieces, a rank adds one while it receives the next
        measured = launch(PROCESSES, partial(measure, [ring(PROCESSES)], MESSAGES, pieces=pieces, repeats=15))
        for m in measured[0]:
            assert m.correct
            size = {"processes": PROCESSES, "bytes": m.nbytes, "dtype": m.dtype, "pieces": pieces}
            samples = {"gpuedu": list(m.seconds), "gloo": list(m.backend_seconds)}
            rows.append(row(size, samples))
            print(size, f"{1e3 * m.time_s:.1f} ms, {m.time_s / m.backend_time_s:.2f} times gloo's")
    target = {"of": "gloo", "at_most": 1.1, "size": {"bytes": 2**26, "pieces": PIECES}}
    return {"name": "ring over gloo", "target_ratio": target, "rows": rows}


def pricing() -> list[dict]:
    """Everything measured here that no process is started for."""
    return [explicit_ring(), explicit_double_tree(), ring_by_formula(), tree_in_pieces()]


def main() -> None:
    benchmarks = [*pricing(), ring_against_gloo()]
    print(write("all_reduce", ["networkx", "torch"], benchmarks).name)


if __name__ == "__main__":
    main()
