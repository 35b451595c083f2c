"""Hypothesis profiles, and the fixtures of the browser tests: the built site, served, in Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

import serve

ROOT = Path(__file__).resolve().parents[1]
CI = bool(os.environ.get("CI"))

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if CI else "local")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No other machine has an address: what a page would load from elsewhere fails
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def missing(what: str) -> None:
    """Skip the test for want of ``what``; where CI is set, that is an error."""
    (pytest.fail if CI else pytest.skip)(what)


@pytest.fixture(scope="session")
def site() -> Path:
    """Folder of the built site."""
    if not (serve.SITE / "index.html").is_file():
        missing("the book is not built: run `make html`")
    return serve.SITE


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    """Address of the built site, served on this machine; it ends in a slash."""
    with serve.server(site) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_port}/"
        host.shutdown()


def installed_chromium() -> str | None:
    """Path of the machine's own Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def install_chromium() -> bool:
    """Have Playwright download its Chromium."""
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    try:
        return subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, from PATH or from Playwright, with no way to any other machine."""
    path = installed_chromium()
    with sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists() and not install_chromium():
            missing("no browser: install Chromium, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def troubles() -> list[str]:
    """What went wrong on ``page``: console errors, page errors, requests that failed or left the site.

    A test that provokes trouble looks at the list and clears it: what is left in it fails the test.
    """
    return []


def aborted(request: Request) -> bool:
    """Whether the browser itself gave up a picture or script because the page was left."""
    return request.failure == "net::ERR_ABORTED"


@pytest.fixture
def page(browser: Browser, site_url: str, troubles: list[str]) -> Iterator[Page]:
    """An empty page; relative addresses are the site's. Any trouble on it fails the test."""
    context = browser.new_context(base_url=site_url)
    page = context.new_page()
    local = (site_url, "data:", "blob:", "file:", "about:")
    context.on("request", lambda r: r.url.startswith(local) or troubles.append(f"foreign request: {r.url}"))
    context.on("requestfailed", lambda r: aborted(r) or troubles.append(f"failed: {r.url} {r.failure}"))
    context.on("response", lambda r: r.status < 400 or troubles.append(f"status {r.status}: {r.url}"))
    page.on("console", lambda m: m.type == "error" and troubles.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: troubles.append(f"page error: {e}"))
    yield page
    context.close()
    assert not troubles, "\n".join(troubles)
