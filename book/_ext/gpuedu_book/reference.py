"""The API reference: docstrings as they are meant."""

from __future__ import annotations

from sphinx.application import Sphinx


def keep_summary(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading a property's summary, "The depth: stages * chunks", as a type and a text."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon looks for a type in the first line only


def setup(app: Sphinx) -> None:
    """Come before napoleon, which listens to the same event."""
    app.connect("autodoc-process-docstring", keep_summary, priority=400)
