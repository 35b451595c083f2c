"""No request leaves the site: a policy on each page says so, and what would ask elsewhere is not loaded."""

from __future__ import annotations

from sphinx.application import Sphinx

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)


def add_policy(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The policy is the first element of the head, so that it holds for all that follows."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />\n'
    context["metatags"] = meta + context.get("metatags", "")


def setup(app: Sphinx) -> None:
    """Add the policy, and the settings of extensions that are left out."""
    # Jupyter Book always sets it, for sphinx_comments, which is not among this book's extensions
    app.add_config_value("comments_config", {}, "")
    app.connect("html-page-context", add_policy, priority=900)
