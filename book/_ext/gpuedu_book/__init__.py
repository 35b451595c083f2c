"""The book's own Sphinx extension: everything on a page that Jupyter Book does not bring.

Each module does one job; this one sets up all that have a ``setup(app)``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    """Set up every module of this package that has a ``setup`` of its own."""
    for name in sorted(module.name for module in iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        if hasattr(module, "setup"):
            module.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
