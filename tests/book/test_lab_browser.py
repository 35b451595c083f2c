"""The lab in a real JupyterLab: it runs, and its explorer follows its controls."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from gpuedu.explorer import Choice, Integer, Real, Step, Switch, load

pytestmark = pytest.mark.browser

LAB = Path(__file__).parents[2] / "labs" / "pipeline_parallel.ipynb"
PIPELINE = load("gpuedu.pipeline_parallel.plot:explorer")
START_S = 60
RUN_MS = 300_000
SETTINGS = {
    # All cells are drawn, in view or not, and nobody asks whether there is news
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(server, url):
    """Return when the server at ``url`` answers; fail if it ends or takes too long."""
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        assert server.poll() is None, "JupyterLab has ended"
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab does not answer within {START_S} s")


@pytest.fixture
def lab_url(tmp_path):
    """Address of a copy of the lab in a JupyterLab of its own, which writes nowhere else."""
    work, settings = tmp_path / "work", tmp_path / "settings"
    work.mkdir()
    notebook = json.loads(LAB.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    (work / LAB.name).write_text(json.dumps(notebook))
    for name, values in SETTINGS.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    token, port = secrets.token_hex(16), free_port()
    own = {"JUPYTERLAB_SETTINGS_DIR": settings, "JUPYTERLAB_WORKSPACES_DIR": tmp_path / "workspaces"}
    own |= {"JUPYTER_RUNTIME_DIR": tmp_path / "runtime", "JUPYTER_CONFIG_DIR": tmp_path / "config"}
    options = [
        "--no-browser",
        "--expose-app-in-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--port-retries=0",
    ]
    options += [f"--ServerApp.root_dir={work}", f"--IdentityProvider.token={token}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | {name: str(path) for name, path in own.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_it_answers(server, f"http://127.0.0.1:{port}/api?token={token}")
            yield f"http://127.0.0.1:{port}/lab/tree/{LAB.name}?token={token}"
        finally:
            server.terminate()
            server.wait(timeout=30)


class Widgets:
    """The explorer's widgets in a notebook."""

    def __init__(self, page):
        presets = page.locator(".widget-button", has_text=PIPELINE.presets[0].label)
        self.root = (
            page.locator(".widget-vbox").filter(has=presets).filter(has=page.locator(".js-plotly-plot")).first
        )

    def row(self, control):
        """The widget of one control."""
        return (
            self.root.locator(".jupyter-widgets").filter(has=self.root.page.get_by_text(control.label)).last
        )

    def read(self, control):
        """A control's value, as it is written on the page."""
        row = self.row(control)
        match control:
            case Choice():
                labels = {label: value for value, label in control.options.items()}
                return labels[row.locator("select").evaluate("s => s.selectedOptions[0].textContent")]
            case Switch():
                return row.locator("input").is_checked()
            case Step():
                return None  # no test moves it: the finished picture
        text = row.locator(".widget-readout").text_content()
        return {Integer: int, Real: float}[type(control)](text.replace(",", ""))

    def values(self):
        """All of them."""
        return {c.name: self.read(c) for c in PIPELINE.controls}


def drawn_bars(figure):
    """How many bars a figure has."""
    return sum(len(trace["y"]) for trace in figure["data"] if trace["type"] == "bar")


# JupyterLab's menu drops what is asked before the kernel is connected, so the application itself is asked
READY = "window.jupyterapp?.shell.currentWidget?.sessionContext"
RUN_ALL = """
() => {
  const { commands, shell } = window.jupyterapp;
  const { context, sessionContext } = shell.currentWidget;
  context.ready
    .then(() => sessionContext.ready)
    .then(() => sessionContext.session.kernel.info)
    .then(() => commands.execute("notebook:run-all-cells"))
    .then(() => (window.outcome = "ran"), (error) => (window.outcome = `${error}`));
}
"""


def test_lab_runs_and_its_explorer_follows_a_control(browser, lab_url):
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(lab_url)
    page.wait_for_function(READY, timeout=RUN_MS)
    page.evaluate(RUN_ALL)
    page.wait_for_function("window.outcome", timeout=RUN_MS)
    assert page.evaluate("window.outcome") == "ran"
    kernel = page.locator(".jp-Notebook-ExecutionIndicator")

    widgets = Widgets(page)
    expect(widgets.root).to_be_visible(timeout=RUN_MS)
    expect(kernel).to_have_attribute("data-status", "idle", timeout=RUN_MS)
    expect(
        page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    ).to_have_count(0)

    first = widgets.root.locator(".widget-button", has_text=PIPELINE.presets[0].label)
    expect(first).to_have_class(re.compile("mod-primary"))  # the browser's sliders say what Python said
    microbatches = next(c for c in PIPELINE.controls if c.name == "m")
    before = widgets.values()
    widgets.row(microbatches).locator(".noUi-handle").press("ArrowRight")
    after = before | {"m": before["m"] + 1}
    takeaway = PIPELINE.show(after)["takeaway"].replace("**", "")
    expect(widgets.root.get_by_text(takeaway)).to_be_visible(timeout=30_000)
    assert widgets.values() == after
    drawn, redrawn = (drawn_bars(PIPELINE.show(values)["figure"]) for values in (before, after))
    assert drawn != redrawn
    expect(widgets.root.locator(".js-plotly-plot .bars .point")).to_have_count(redrawn)
    page.context.close()
