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
    ]
}


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.stem)
def test_a_check_never_stops_the_notebook(lab):
    """Every exercise has some wrong answers here; each gets a verdict."""
    setup, found = exercises(lab)
    for (_, check, _), answers in zip(found, WRONG[lab.stem], strict=True):
        for answer in answers:
            assert verdict(setup, answer, check).startswith("Not yet: ")
