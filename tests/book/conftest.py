"""An explorer's card in the browser, held against what the package computes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gpuedu.explorer import Explorer

sys.path.append(str(Path(__file__).parent / "toy_site"))
BOOT_MS = 40_000  # Python in a browser starts in 3 s; machines under test are busy


class Card:
    """One explorer on a page."""

    def __init__(self, page: Page, explorer):
        self.page, self.explorer = page, explorer
        self.root = page.locator(f"#{explorer.id}")
        self.status = self.root.locator(".explorer-status")
        self.alert = self.root.get_by_role("alert")

    def __getattr__(self, name):
        """Whatever a locator can do."""
        return getattr(self.root, name)

    def state(self, state):
        expect(self.root).to_have_attribute("data-state", state, timeout=BOOT_MS)

    def shows(self, **values):
        """The card shows what the package computes for these values: figure, takeaway, steps, table."""
        values = self.explorer.defaults | values
        shown = json.loads(self.explorer.show_json(values))
        expect(self.root).to_have_attribute("data-values", as_javascript(values), timeout=BOOT_MS)
        expect(self.locator(".explorer-takeaway")).to_have_text(shown["takeaway"].replace("**", ""))
        read = "figure => JSON.parse(JSON.stringify({data: figure.data, layout: figure.layout}))"
        assert contains(self.locator(".explorer-figure").evaluate(read), shown["figure"])
        return shown

    def enter(self, name, value):
        """Write a value into a control's number field, as a reader does."""
        field = self.number(name)
        field.fill(str(value))
        field.press("Enter")

    def number(self, name):
        return self.locator(f"#{self.explorer.id}-{name}")

    def slider(self, name):
        return self.locator(f'[data-control="{name}"] input[type=range]')

    def preset(self, label):
        return self.get_by_role("radio", name=label)

    def choose(self, label):
        exactly = re.compile(rf"^\s*{re.escape(label)}\s*$")  # one label may begin like another
        self.locator(".explorer-preset", has_text=exactly).click()

    def press(self, button):
        self.get_by_role("button", name=button, exact=True).click()


def as_javascript(values):
    """JSON as JavaScript writes it: without ``.0``."""
    whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    return json.dumps(whole, separators=(",", ":"))


def contains(whole, part):
    """Whether ``part`` is in ``whole``, which Plotly may have added to."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(contains, whole, part))
    return nearly_equal(whole, part)


@pytest.fixture
def card(page: Page):
    """Find an explorer's card on the page, once it is drawn."""

    def find(explorer: Explorer, page: Page = page, drawn: bool = True) -> Card:
        found = Card(page, explorer)
        if drawn:
            expect(found.root).to_have_attribute("data-values", re.compile("{"))
        return found

    return find


def payloads(html: str) -> list[dict]:
    """The data of every card in a page's HTML."""
    found = re.findall(r'<script type="application/json" class="explorer-payload">(.*?)</script>', html)
    return [json.loads(text) for text in found]


def nearly_equal(embedded, computed) -> bool:
    """Equal, but for floats, of which the page keeps six digits."""
    if isinstance(computed, dict):
        return embedded.keys() == computed.keys() and all(
            nearly_equal(embedded[k], computed[k]) for k in computed
        )
    if isinstance(computed, list):
        return len(embedded) == len(computed) and all(map(nearly_equal, embedded, computed))
    if isinstance(computed, float):
        return embedded == pytest.approx(computed, rel=5e-6)
    return embedded == computed


@pytest.fixture
def embedded():
    """Check that a page's HTML holds what the package computes for every preset of these explorers."""

    def check(html: str, *explorers: Explorer) -> None:
        for payload, explorer in zip(payloads(html), explorers, strict=True):
            computed = {
                p.name: json.loads(explorer.show_json(explorer.values_of(p))) for p in explorer.presets
            }
            assert nearly_equal(payload["presets"], computed)
            assert [c["name"] for c in payload["controls"]] == [c.name for c in explorer.controls]

    return check
