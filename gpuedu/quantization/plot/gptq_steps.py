"""GPTQ column by column: a row of weights, its grid, and the error that moves on to the right.

Its functions take every control by keyword; plans are memoized, so that a step through one costs nothing.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from random import Random

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Table
from gpuedu.quantization.plan import Log, gptq
from gpuedu.style import COLORS

COLUMNS = 16
STORED, PENDING, MOVED, ERROR = (
    COLORS[name] for name in ("memory_used", "waiting", "communication", "rejected")
)
METHODS = {"rtn": "Round to nearest", "gptq": "GPTQ", "act_order": "GPTQ, largest inputs first"}
BITS = {"2": "2 bits", "3": "3 bits", "4": "4 bits", "8": "8 bits"}
GROUPS = {"16": "The whole row", "8": "Groups of 8", "4": "Groups of 4"}
FACTORS = 3
"""Signals that the inputs share."""
LOUD = 4.0
"""How much larger than the others the inputs of the loud columns are."""


@lru_cache(maxsize=64)
def _weights(seed: int) -> tuple[float, ...]:
    chosen = Random(seed)
    return tuple(round(chosen.gauss(0, 1), 3) for _ in range(COLUMNS))


@lru_cache(maxsize=1)
def _directions() -> tuple[tuple[float, ...], ...]:
    """What each column's input has of the shared signals: a direction among FACTORS of them."""
    chosen = Random(5)
    drawn = [[chosen.gauss(0, 1) for _ in range(FACTORS)] for _ in range(COLUMNS)]
    return tuple(tuple(x / sqrt(sum(y * y for y in line)) for x in line) for line in drawn)


@lru_cache(maxsize=64)
def _hessian(shared: float, loud: int) -> tuple[tuple[float, ...], ...]:
    """Inputs of variance 1, a part of it from shared signals; the last ``loud`` are larger."""
    size = [LOUD if j >= COLUMNS - loud else 1.0 for j in range(COLUMNS)]
    along = _directions()

    def covariance(i: int, j: int) -> float:
        if i == j:
            return size[i] ** 2
        return size[i] * size[j] * shared * sum(a * b for a, b in zip(along[i], along[j], strict=True))

    return tuple(tuple(2 * covariance(i, j) for j in range(COLUMNS)) for i in range(COLUMNS))


@lru_cache(maxsize=64)
def _log(method: str, bits: str, group: str, shared: float, loud: int, row: int) -> Log:
    return gptq(
        [_weights(row)],
        _hessian(shared, loud),
        int(bits),
        group=int(group),
        act_order=method == "act_order",
        compensate=method != "rtn",
    )


@lru_cache(maxsize=64)
def _reach(log: Log) -> tuple[float, float]:
    """From below the lowest weight of any step, and grid value, to above the highest."""
    points = [w for step in range(COLUMNS + 1) for w in log.state(step)[0]]
    for decision in log.decisions:
        (scale,) = decision.scales
        points += [scale.value(scale.low), scale.value(scale.high)]
    low, high = min(points), max(points)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


@lru_cache(maxsize=64)
def _errors(log: Log) -> tuple[float, ...]:
    """Mean squared change of the output after each step."""
    return tuple(log.output_error(step) for step in range(COLUMNS + 1))


def steps_figure(*, step: int | None, **values) -> dict:
    """The row after ``step`` columns, stored values and those that wait; below it the output's error."""
    log = _log(**values)
    done = COLUMNS if step is None else step
    low, high = _reach(log)
    worst = max(*_errors(log), *_errors(_log(**values | {"method": "rtn"})))
    columns = {"showgrid": False, "zeroline": False, "fixedrange": True, "range": [-0.7, COLUMNS - 0.3],
               "tickvals": list(range(0, COLUMNS, 3)), "tickangle": 0,
               "ticktext": [str(j + 1) for j in range(0, COLUMNS, 3)]}  # fmt: skip
    layout = {
        "height": 600, "bargap": 0.4,
        "xaxis": columns | {"anchor": "y3", "title": {"text": "column (input channel)"}},
        "yaxis": {"domain": [0.55, 1], "range": [low, high], "showgrid": False, "zeroline": False,
                  "fixedrange": True, "title": {"text": "weight"}},
        "yaxis3": {"domain": [0.35, 0.5], "fixedrange": True, "nticks": 4,
                   "title": {"text": "moved<br>to it"}},
        "xaxis2": {"anchor": "y2", "range": [-0.3, COLUMNS + 0.3], "showgrid": False, "fixedrange": True,
                   "dtick": 4, "title": {"text": "columns rounded"}},
        "yaxis2": {"domain": [0, 0.2], "range": [0, 1.35 * worst], "fixedrange": True, "nticks": 4,
                   "title": {"text": "error of<br>the output"}},
        "margin": {"l": 64, "r": 16, "t": 64, "b": 56},
        "legend": {"itemwidth": 30, "font": {"size": 13}, "traceorder": "normal"},
    }  # fmt: skip
    own = _curves(log, _log(**values | {"method": "rtn"}), done)
    return {"data": [*_grid(log, done), *_row(log, done), _moved(log, step), *own], "layout": layout}


def _grid(log: Log, done: int) -> list[dict]:
    """The values that each column rounded so far could have become; all in one path."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for decision in log.decisions[:done]:
        (scale,) = decision.scales
        values = scale.grid.values if scale.bits <= 4 else ()
        for value in values:
            xs += [decision.column - 0.42, decision.column + 0.42, None]
            ys += [value, value, None]
    return [{
        "type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "skip", "showlegend": False,
        "line": {"color": PENDING, "width": 0.75},
    }]  # fmt: skip


def _row(log: Log, done: int) -> list[dict]:
    """Weights as they were, as they wait and as they are stored, and the last one's rounding error."""
    state, first = log.state(done)[0], log.weights[0]
    rounded = [d.column for d in log.decisions[:done]]
    waiting = [j for j in range(COLUMNS) if j not in rounded]
    traces = [
        _marks("weight at first", list(range(COLUMNS)), first, "circle-open", PENDING, 9),
        _marks("waits, with errors of others", waiting, [state[j] for j in waiting], "circle", PENDING, 9),
        _marks("stored", rounded, [state[j] for j in rounded], "square", STORED, 11),
    ]
    if done:
        last = log.decisions[done - 1]
        traces.append({
            "type": "scatter", "mode": "lines", "name": "rounding error", "hoverinfo": "skip",
            "x": [last.column] * 2, "y": [last.before[0], last.after[0]],
            "line": {"color": ERROR, "width": 3},
        })  # fmt: skip
    return traces


def _moved(log: Log, step: int | None) -> dict:
    """What the last step added to each column; in the finished picture, what all steps did."""
    counted = log.decisions if step is None else log.decisions[max(0, step - 1) : step]
    name = "moved in this step" if step is not None else "moved in all"
    return {
        "type": "bar", "name": name, "yaxis": "y3", "x": list(range(COLUMNS)),
        "y": [sum(d.updates[0][j] for d in counted) for j in range(COLUMNS)],
        "marker": {"color": MOVED}, "text": [str(j + 1) for j in range(COLUMNS)], "textposition": "none",
        "hovertemplate": f"column %{{text}}: %{{y:.3f}}<extra>{name}</extra>",
    }  # fmt: skip


def _marks(name: str, columns: list[int], weights, symbol: str, color: str, size: int) -> dict:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": columns, "y": list(weights),
        "marker": {"symbol": symbol, "color": color, "size": size, "line": {"color": color, "width": 1.5}},
        "hovertemplate": f"column %{{text}}: %{{y:.3f}}<extra>{name}</extra>",
        "text": [str(j + 1) for j in columns], "visible": True if columns else "legendonly",
    }  # fmt: skip


def _curves(log: Log, rounded: Log, done: int) -> list[dict]:
    """The error of the output over steps, of this method and of plain rounding."""
    own, plain = _errors(log), _errors(rounded)
    place = {"type": "scatter", "xaxis": "x2", "yaxis": "y2", "showlegend": False}
    steps = list(range(COLUMNS + 1))
    return [
        place | {"mode": "lines", "x": steps, "y": list(plain),
                 "line": {"color": PENDING, "width": 1.5, "dash": "dash"},
                 "hovertemplate": "%{x} columns rounded to nearest: %{y:.3f}<extra></extra>"},
        place | {"mode": "lines+markers", "x": steps[: done + 1], "y": list(own[: done + 1]),
                 "line": {"color": ERROR, "width": 2.5}, "marker": {"color": ERROR, "size": 5},
                 "hovertemplate": "after %{x} columns: %{y:.3f}<extra></extra>"},
        place | {"mode": "text", "x": [COLUMNS], "y": [plain[-1]], "text": ["to nearest"],
                 "hoverinfo": "skip", "textposition": "top left",
                 "textfont": {"color": PENDING, "size": 12}},
    ]  # fmt: skip


def steps_count(**_) -> int:
    """A step a column."""
    return COLUMNS


def steps_takeaway(*, step: int | None, **values) -> str:
    """One sentence: the output's error against plain rounding, and how far the weights went."""
    log, plain = _log(**values), _log(**values | {"method": "rtn"})
    own, rounded = log.output_error(), plain.output_error()
    distance = _distance(log) / _distance(plain)
    if values["method"] == "rtn":
        text = f"Rounded to nearest, the row's output is off by **{rounded:.3g}** (mean square)"
    elif values["shared"] == 0:
        text = "Where inputs have nothing in common, no column can make up for another: GPTQ **is** rounding"
    else:
        text = (
            f"{METHODS[values['method']]}: the output's error is **{own / rounded:.2f} times** that of "
            f"rounding, though the weights end **{distance:.2g} times** as far from where they were"
        )
    if step is not None and step < COLUMNS:
        text += f". After {step} of {COLUMNS} columns it is {log.output_error(step):.3g}"
    return text + "."


def _distance(log: Log) -> float:
    """Mean squared distance of the stored weights from the first ones."""
    return sum((a - b) ** 2 for a, b in zip(log.values[0], log.weights[0], strict=True)) / COLUMNS


def steps_table(*, step: int | None, **values) -> Table:
    """Every decision up to the step."""
    log = _log(**values)
    rows = tuple(
        (
            k + 1,
            d.column + 1,
            log.weights[0][d.column],
            round(d.before[0], 4),
            d.codes[0],
            round(d.after[0], 4),
            round(log.output_error(k + 1), 4),
        )
        for k, d in enumerate(log.decisions[:step])
    )
    columns = ("step", "column", "at first", "when rounded", "code", "stored", "output error")
    return Table(columns, rows)


gptq_steps = Explorer(
    id="gptq-steps",
    title="GPTQ, column by column",
    controls=(
        Choice("method", "Method", METHODS, "gptq"),
        Choice("bits", "Bits", BITS, "3"),
        Choice("group", "Scales", GROUPS, "16", help="columns that share a scale"),
        Real("shared", "Shared", 0, 0.95, 0.8, 0.05, help="part of the inputs' variance that is common"),
        Integer("loud", "Loud columns", 0, 4, 0, help="at the right end, with inputs 4 times as large"),
        Integer("row", "Row", 1, 50, 8, help="another row of random weights"),
        Step("step", "Step through", help="one column rounded"),
    ),
    presets=(
        Preset("rtn", "To nearest", {"method": "rtn"}),
        Preset("gptq", "GPTQ"),
        Preset("two_bits", "Two bits", {"bits": "2"}),
        Preset("uncorrelated", "Nothing in common", {"shared": 0.0}),
        Preset("loud", "Loud inputs last", {"loud": 3}),
        Preset("act_order", "Loud inputs first", {"loud": 3, "method": "act_order"}),
    ),
    figure=steps_figure,
    takeaway=steps_takeaway,
    table=steps_table,
    steps=steps_count,
)  # fmt: skip
