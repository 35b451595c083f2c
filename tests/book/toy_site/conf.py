"""A site of two explorers, built with the book's own extension: what the browser tests are free to break."""

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "book/_ext"), str(HERE)]

project = "toy"
extensions = ["myst_parser", "gpuedu_book.assets", "gpuedu_book.privacy", "gpuedu_book.explorers"]
html_theme = "basic"
html_static_path = [str(ROOT / "book/_static")]
html_favicon = str(ROOT / "book/_static/favicon.svg")
myst_enable_extensions = ["colon_fence"]
nitpicky = True


def add_toys(app, exception):
    """The worker imports the toys from the same archive as the package."""
    (archive,) = (Path(app.outdir) / "_static").glob("gpuedu-*.zip")
    with zipfile.ZipFile(archive, "a") as target:
        target.write(HERE / "toys.py", "toys.py")


def setup(app):
    """Connect."""
    app.connect("build-finished", add_toys)
