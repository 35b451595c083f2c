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
    "flash_attention": [
        [
            "fold = None",
            "fold = lambda m, l, o, s, v: None",
            "fold = lambda m, l, o, s, v: (m, l, o)",
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
