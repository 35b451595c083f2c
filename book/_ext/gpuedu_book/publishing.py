"""What each page says about itself: edition, version, commit, and where to report an error in it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlencode

from sphinx.application import Sphinx

import gpuedu

TEMPLATES = Path(__file__).parent / "templates"


def report_url(repository: str, pagename: str, version: str, commit: str) -> str:
    """Address of a new issue that already names the page and what it was built from."""
    edition = f"gpuedu {version}" + (f", commit {commit}" if commit else "")
    body = f"Page: {pagename}\nBuilt from: {edition}\n\nWhat is wrong, and how do you know?\n"
    return f"{repository}/issues/new?{urlencode({'title': f'Error in {pagename}: ', 'body': body})}"


def configure(app: Sphinx, config) -> None:
    """The book's version is the package's."""
    config.version = config.release = gpuedu.__version__
    config.templates_path.insert(0, str(TEMPLATES))
    config.html_context["commit"] = os.environ.get("GPUEDU_COMMIT", "")  # from book/build.py
    config.html_context["repository"] = config.html_theme_options["repository_url"]


def add_report_url(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Give the page's template the address for an error report."""
    context["report_url"] = report_url(context["repository"], pagename, gpuedu.__version__, context["commit"])


def setup(app: Sphinx) -> None:
    """Add the book's templates and what they show."""
    app.connect("config-inited", configure)
    app.connect("html-page-context", add_report_url)
