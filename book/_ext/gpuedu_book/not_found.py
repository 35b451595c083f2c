"""``404.html``: what a host serves for an address that the book does not have, at any depth.

Its own addresses are relative, so it needs to know where the site begins: at the path of
``html_baseurl`` if it is served from there, else at the root of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from sphinx.application import Sphinx

BODY = """\
<section class="not-found">
<h1>This page is a bubble</h1>
<p>Nothing is scheduled at this address. The book may have moved the page, or the link was mistyped.</p>
<p><a href="index.html">The map of the book</a> shows every chapter;
<a href="search.html">the search</a> knows every word.</p>
</section>
"""
BASE = """\
<script>
  const path = location.pathname.startsWith("{path}") ? "{path}" : "/";
  if (location.protocol !== "file:") document.write(`<base href="${{path}}">`);
</script>
<noscript><base href="{path}"></noscript>
"""


def page(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    """The page, for Sphinx to write with the book's frame."""
    yield "404", {"title": "Page not found", "body": BODY}, "page.html"


def add_base(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Relative addresses of this one page begin where the site does."""
    if pagename == "404":
        path = urlsplit(app.config.html_baseurl).path or "/"
        context["metatags"] = BASE.format(path=path) + context.get("metatags", "")


def setup(app: Sphinx) -> dict:
    """Register the page; the content policy, added later, still comes first."""
    app.connect("html-collect-pages", page)
    app.connect("html-page-context", add_base, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
