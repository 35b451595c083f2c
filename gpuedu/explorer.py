"""The declaration of an explorer: controls, presets and the pure functions they feed.

One object, three faces: ipywidgets in a notebook (``gpuedu.explorer_widgets``), native HTML on a
page of the book (``book/_ext``), a data table for those who see neither. This module knows none of
them. It is on the page: standard library only.

>>> def bubble(p, m):
...     return (p - 1) / (m + p - 1)
>>> idle = Explorer(
...     id="idle-share",
...     title="How much of a pipeline idles",
...     controls=(Integer("p", "Stages", 1, 64, 8), Integer("m", "Microbatches", 1, 256, 32)),
...     presets=(Preset("usual", "Usual"), Preset("starved", "Starved", {"m": 1})),
...     figure=lambda p, m: {"data": [{"type": "bar", "x": ["idle"], "y": [bubble(p, m)]}], "layout": {}},
...     takeaway=lambda p, m: f"**{bubble(p, m):.0%}** of the cluster idles.",
...     table=lambda p, m: Table(("stages", "idle share"), ((p, bubble(p, m)),)),
... )
>>> idle.show(idle.defaults)["takeaway"]
'**18%** of the cluster idles.'
>>> idle.show({"p": 8, "m": 0})
Traceback (most recent call last):
    ...
ValueError: m=0: must be from 1 to 256
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One of a few named options: ``options`` maps a value (in links) to its label (on the page)."""

    name: str
    label: str
    options: Mapping[str, str]
    default: str
    help: str = ""

    def check(self, value: Any) -> str:
        """Return ``value``; ValueError if it is not one of the options."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"{self.name}={value!r}: must be one of {', '.join(self.options)}")
        return value


@dataclass(frozen=True)
class Integer:
    """A whole number from ``low`` to ``high``, both included."""

    name: str
    label: str
    low: int
    high: int
    default: int
    unit: str = ""
    help: str = ""

    def check(self, value: Any) -> int:
        """Return ``value`` as int; ValueError outside the range or where it is not whole."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            raise ValueError(f"{self.name}={value!r}: must be a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.name}={value}: must be from {self.low} to {self.high}")
        return int(value)


@dataclass(frozen=True)
class Real:
    """A number from ``low`` to ``high``; on a ``"linear"`` or ``"log"`` scale, moved by ``step``.

    ``step`` is in the units of the value on a linear scale, a factor minus one on a log scale.
    """

    name: str
    label: str
    low: float
    high: float
    default: float
    step: float
    scale: str = "linear"
    unit: str = ""
    help: str = ""

    def check(self, value: Any) -> float:
        """Return ``value`` as float; ValueError outside the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.name}={value!r}: must be a number")
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.name}={value}: must be from {self.low} to {self.high}")
        return float(value)


@dataclass(frozen=True)
class Switch:
    """On or off."""

    name: str
    label: str
    default: bool = False
    help: str = ""

    def check(self, value: Any) -> bool:
        """Return ``value``; ValueError if it is not a bool."""
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}={value!r}: must be true or false")
        return value


@dataclass(frozen=True)
class Step:
    """A position in a sequence of events, with step and play buttons.

    Its value is an int from 0 to the explorer's ``steps(**values)``; None (the default) shows the
    finished picture, however many steps that took.
    """

    name: str
    label: str
    default: None = None
    help: str = ""

    def check(self, value: Any) -> int | None:
        """Return ``value``; ValueError if it is neither None nor a whole number >= 0."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{self.name}={value!r}: must be a whole number >= 0 or None")
        return value


Control = Choice | Integer | Real | Switch | Step


@dataclass(frozen=True)
class Preset:
    """A named set of values that tells one step of the story; what it leaves out is the default."""

    name: str
    label: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The data behind a figure, for readers who cannot see it; floats are shown with 6 digits."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Explorer:
    """Controls, presets and what they show.

    ``figure``, ``takeaway``, ``table`` and ``steps`` are pure functions of all control values, passed
    by keyword. ``figure`` returns a Plotly figure as a plain dict without a template (the face that
    shows it adds the light or the dark one); ``takeaway`` one sentence, its number between ``**``;
    ``steps`` how many steps the ``Step`` control has. Any of them may raise ValueError: its message is
    shown to the reader, and the last good figure stays. ``unused`` names the controls that change
    nothing under the current values: a face disables them, so that no control ever moves without effect.

    Raises
    ------
    ValueError
        For a declaration that contradicts itself: names that are not unique, a preset or a default
        that its control does not allow, ``steps`` without a ``Step`` control or the reverse.
    """

    id: str
    title: str
    controls: tuple[Control, ...]
    presets: tuple[Preset, ...]
    figure: Callable[..., dict]
    takeaway: Callable[..., str]
    table: Callable[..., Table]
    steps: Callable[..., int] | None = None
    unused: Callable[..., tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        # A link may say ?preset=..., so no control can have that name.
        controls, presets = ["preset", *(c.name for c in self.controls)], [p.name for p in self.presets]
        for names in (controls, presets):
            if len(set(names)) < len(names):
                raise ValueError(f"{self.id}: {names}: must be unique")
        stepped = sum(isinstance(c, Step) for c in self.controls)
        if stepped != (self.steps is not None):
            raise ValueError(f"{self.id}: {stepped} Step controls: must be one with steps, none without")
        for preset in self.presets:
            self.values_of(preset)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The value of every control before anything is touched: the first preset's."""
        return self.values_of(self.presets[0])

    def values_of(self, preset: Preset) -> dict[str, Any]:
        """Every control's value under ``preset``."""
        return self.checked({c.name: c.default for c in self.controls} | dict(preset.values))

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` validated control by control.

        Raises
        ------
        ValueError
            For a name that is missing or unknown, or a value that its control does not allow.
        """
        names = [c.name for c in self.controls]
        if wrong := set(values) ^ set(names):
            raise ValueError(f"{self.id}: {sorted(wrong)}: must be exactly {names}")
        return {c.name: c.check(values[c.name]) for c in self.controls}

    def show(self, values: Mapping[str, Any], *, table: bool = True) -> dict[str, Any]:
        """Everything that a face shows for ``values``: figure, takeaway, steps, unused controls, table.

        Without ``table``, that is None: a large one takes as long as the figure.
        """
        values = self.checked(values)
        steps = self.steps(**values) if self.steps else None
        for c in self.controls:
            if isinstance(c, Step) and values[c.name] is not None and values[c.name] > steps:
                raise ValueError(f"{c.name}={values[c.name]}: must be from 0 to {steps}")
        return {
            "values": values,
            "figure": self.figure(**values),
            "takeaway": self.takeaway(**values),
            "steps": steps,
            "unused": list(self.unused(**values)) if self.unused else [],
            "table": _written(self.table(**values)) if table else None,
        }

    def show_json(self, values: Mapping[str, Any], *, table: bool = True) -> str:
        """:meth:`show` as JSON, for a page; ValueError for numbers that JSON does not have."""
        return json.dumps(self.show(values, table=table), separators=(",", ":"), allow_nan=False)


def _written(table: Table) -> dict[str, Any]:
    """``table`` as text."""
    return {"columns": table.columns, "rows": [[_cell(cell) for cell in row] for row in table.rows]}


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def load(reference: str) -> Explorer:
    """The explorer at ``"package.module:attribute"``."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def answer(reference: str, values: str, table: bool) -> str:
    """What the page's worker calls, JSON in and out: what to show, or why these values cannot be."""
    try:
        return load(reference).show_json(json.loads(values), table=table)
    except ValueError as error:
        return json.dumps({"error": str(error)})
