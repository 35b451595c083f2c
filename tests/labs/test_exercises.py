"""Every lab's exercises: its stubs do not pass, its solutions do, and no check stops the notebook.

In a lab, cells tagged ``setup`` hold what exercises need, ``exercise`` the stub, ``check`` what prints
the verdict; the solution is the Python block of the closed Markdown cell after the check.
"""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest

LABS = sorted(Path(__file__).parents[2].joinpath("labs").glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s+```python\n(.*?)```", re.DOTALL)


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def exercises(lab):
    """(stub, check, solution) of every exercise, and the code that all of them need before."""
    cells = nbformat.read(lab, 4).cells
    setup = "\n".join(cell.source for cell in cells if tagged(cell, "setup"))
    found = []
    for position, cell in enumerate(cells):
        if tagged(cell, "exercise"):
            rest = cells[position:]
            check = next(c.source for c in rest if tagged(c, "check"))
            solution = next(m for c in rest if c.cell_type == "markdown" and (m := SOLUTION.search(c.source)))
            found.append((cell.source, check, solution[1]))
    return setup, found


def verdict(*sources):
    """What the last of ``sources`` prints when they run one after the other."""
    namespace = {}
    for source in sources[:-1]:
        exec(source, namespace)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(sources[-1], namespace)
    return printed.getvalue()


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.stem)
def test_stubs_fail_and_solutions_pass(lab):
    setup, found = exercises(lab)
    assert len(found) >= 3
    for stub, check, solution in found:
        assert verdict(setup, stub, check).startswith("Not yet: ")
        assert verdict(setup, solution, check).startswith("Passed: ")


WRONG = {
    "all_reduce": [
        [
            "my_chunks, my_rounds = 5, None",
            "my_chunks, my_rounds = 0, []",
            "my_chunks, my_rounds = 'five', []",
            "my_chunks, my_rounds = 1, [[1]]",
            "my_chunks, my_rounds = 1, [[plan.Transfer(0, 5, 0, 1, True)]]",
            "my_chunks, my_rounds = 1, plan.tree(5).rounds",
            "my_chunks, my_rounds = 1, plan.recursive_doubling(5).rounds",
        ],
        [
            "busbw = None",
            "busbw = lambda *given: 'fast'",
            "busbw = lambda *given: float('nan')",
            "busbw = lambda kind, n, size, s: (1 + (kind == 'all_reduce')) * (n - 1) / n * size / s",
        ],
        [
            "checksum = is_wrong = None",
            "checksum, is_wrong = (lambda x: 0), (lambda total, announced: True)",
            "checksum, is_wrong = (lambda x: 0), (lambda total, announced: False)",
            "checksum, is_wrong = (lambda x: x.sum()), (lambda total, sums: total.sum() != sum(sums))",
        ],
    ],
    "continuous_batching": [
        [
            "my_occupancy = None",
            "my_occupancy = lambda lengths: None",
            "my_occupancy = lambda lengths: 1 / 0",
            "my_occupancy = lambda lengths: sum(\n"
            "    sum(lengths[i : i + 8]) / 8 / max(lengths[i : i + 8]) for i in range(0, len(lengths), 8)\n"
            ") / -(-len(lengths) // 8)",
        ],
        [
            "my_order = None",
            "my_order = lambda lengths: None",
            "my_order = lambda lengths: [0] * len(lengths)",
            "my_order = lambda lengths: list(range(1, len(lengths) + 1))",
        ],
        [
            "my_budget = None",
            "my_budget = 'large'",
            "my_budget = 0",
            "my_budget = 16",
            "my_budget = 2048",
        ],
    ],
    "flash_attention": [
        [
            "fold = None",
            "fold = lambda m, l, o, s, v: None",
            "fold = lambda m, l, o, s, v: (m, l, o)",
            "fold = lambda m, l, o, s, v: (m.float(), l.float(), o.float())",
            "fold = lambda m, l, o, s, v: (m, l.expand(3), o)",
            "def fold(m, l, o, s, v):\n"
            "    new = torch.maximum(m, s.max())\n"
            "    p = torch.exp(s - new)\n"
            "    return new, l * torch.exp(m - new) + p.sum(), o + p @ v",
        ],
        [
            "tile_backward = None",
            "tile_backward = lambda q, k, v, do, lse, D: (q, k)",
            "tile_backward = lambda q, k, v, do, lse, D: (q, k, v)",
        ],
        [
            "my_tile = None",
            "my_tile = 64",
            "my_tile = (0, 64)",
            "my_tile = ('a', 'b')",
            "my_tile = (256, 256)",
            "my_tile = (32, 256)",
        ],
    ],
    "paged_attention": [
        [
            "my_names = None",
            "my_names = lambda tokens, size: None",
            "my_names = lambda tokens, size: [[0]] * (len(tokens) // size)",
            "my_names = lambda tokens, size: [0] * (len(tokens) // size)",
            "my_names = lambda tokens, size: [object() for _ in range(len(tokens) // size)]",
            "def my_names(tokens, size):\n"
            "    return [hash(tuple(tokens[i : i + size])) for i in range(0, len(tokens) - size + 1, size)]",
        ],
        [
            "my_order = None",
            "my_order = lambda table: None",
            "my_order = lambda table: table[:-1]",
            "my_order = lambda table: table[1:] + table[:1]",
        ],
        [
            "my_write = None",
            "my_write = lambda table, i, references, free: None",
            "my_write = lambda table, i, references, free: (1, 2)",
            "def my_write(table, i, references, free):\n"
            "    if references[table[i]] > 1:\n"
            "        table[i] = free[0]\n"
            "        return 1, free.pop(0)",
        ],
    ],
    "pipeline_parallel": [
        [
            "my_schedule = ['F0 X1']",
            "my_schedule = None",
            "my_schedule = ['B0 F0']",
            "my_schedule = [1, 2, 3]",
        ],
        ["backward_input = backward_weight = lambda a, b: 1 / 0", "backward_input = backward_weight = None"],
        [
            "my_warm_up = [0, 4, 0, 9]",
            "my_warm_up = ['a'] * 4",
            "my_warm_up = [9, 9, 9, 9]",
            "my_warm_up = None",
        ],
    ],
    "quantization": [
        [
            "my_round = None",
            "my_round = lambda row, bits: None",
            "my_round = lambda row, bits: row[:5]",
            "my_round = lambda row, bits: row.sign()",
            "my_round = lambda row, bits: round_to_nearest(row[None], bits).dequantize()[0].double()",
            "def my_round(row, bits):\n"
            "    scale = (row.max() - row.min()) / (2**bits - 1)\n"
            "    return ((row - row.min()) / scale).round() * scale + row.min()",
        ],
        [
            "pass_on = None",
            "pass_on = lambda w, i, rounded, u: None",
            "pass_on = lambda w, i, rounded, u: w",
            "def pass_on(w, i, rounded, u):\n    w = w.float()\n    w[:, i] = rounded\n    return w",
            "def pass_on(w, i, rounded, u):\n"
            "    w -= ((w[:, i] - rounded) / u[i, i] ** 2)[:, None] * u[i]\n"
            "    w[:, i] = rounded\n"
            "    return w",
            "def pass_on(w, i, rounded, u):\n"
            "    w[:, i + 1 :] -= (w[:, i] - rounded)[:, None] * u[i, i + 1 :]\n"
            "    w[:, i] = rounded\n"
            "    return w",
        ],
        [
            "my_plan = None",
            "my_plan = [3, 3, 3]",
            "my_plan = [3, 3, 3, 5]",
            "my_plan = ['3', 3, 3, 3]",
            "my_plan = [3.0, 3, 3, 3]",
            "my_plan = [8, 8, 8, 8]",
            "my_plan = [4, 4, 3, 2]",
        ],
    ],
    "tensor_parallel": [
        [
            "row_parallel = None",
            "row_parallel = lambda x, w, b, group: None",
            "row_parallel = lambda x, w, b, group: x @ w",
            "row_parallel = lambda x, w, b, group: torch.zeros(5)",
            "row_parallel = lambda x, w, b, group: run.reduce_from(x @ w.T + b, group)",
            "row_parallel = lambda x, w, b, group: run.reduce_from(x @ w.T, group).detach() + b",
            "row_parallel = lambda x, w, b, group: run.reduce_from(run.copy_to(x, group) @ w.T, group) + b",
            "row_parallel = lambda x, w, b, group: x @ w.T + b if group.rank else run.reduce_from(x, group)",
        ],
        [
            "my_cut = None",
            "my_cut = {'qkv': 'columns'}",
            "my_cut = {'qkv': 'columns', 'out': 'rows', 'up': 'columns', 'down': ['rows']}",
            "my_cut = dict.fromkeys(('qkv', 'out', 'up', 'down'), 'whole')",
            "my_cut = dict.fromkeys(('qkv', 'out', 'up', 'down'), 'columns')",
            "my_cut = dict.fromkeys(('qkv', 'out', 'up', 'down'), 'rows')",
        ],
        [
            "kv_head = copies = None",
            "kv_head = copies = lambda rank, ranks, kv_heads: 1 / 0",
            "kv_head = lambda rank, ranks, kv_heads: rank // (ranks // kv_heads)\n"
            "copies = lambda rank, ranks, kv_heads: [rank]",
            "kv_head = lambda rank, ranks, kv_heads: rank // (ranks // kv_heads)\n"
            "copies = lambda rank, ranks, kv_heads: None",
        ],
    ],
}


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.stem)
def test_a_check_never_stops_the_notebook(lab):
    """Every exercise has some wrong answers here; each gets a verdict."""
    setup, found = exercises(lab)
    for (_, check, _), answers in zip(found, WRONG[lab.stem], strict=True):
        for answer in answers:
            assert verdict(setup, answer, check).startswith("Not yet: ")
