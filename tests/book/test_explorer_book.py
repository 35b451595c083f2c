"""The explorers of the book's own pages, in a real browser with no way to any other machine."""

import re
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

from gpuedu.explorer import Choice, Control, Explorer, Integer, Real, Step, Switch, load

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]


def explorers_of_pages() -> dict[str, list[Explorer]]:
    """The explorers of each page in the table of contents that has some, in the page's order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    found = {}
    for name in names:
        text = (ROOT / "book" / f"{name}.md").read_text()
        references = re.findall(r"^`{3,}\{explorer\} (\S+)$", text, re.MULTILINE)
        if references:
            found[f"{name}.html"] = [load(reference) for reference in references]
    return found


PAGES = explorers_of_pages()
EXPLORERS = [(page, explorer) for page, explorers in PAGES.items() for explorer in explorers]
each_page = pytest.mark.parametrize("name", PAGES)
each_explorer = pytest.mark.parametrize(
    ("name", "explorer"), EXPLORERS, ids=[explorer.id for _, explorer in EXPLORERS]
)


@each_page
def test_book_embeds_what_the_package_computes(name, site, embedded):
    embedded((site / name).read_text(), *PAGES[name])


@each_explorer
def test_presets_need_no_python(name, explorer, page, card):
    page.goto(name)
    shown = card(explorer)
    shown.shows()
    for preset in explorer.presets:
        shown.choose(preset.label)
        shown.shows(**explorer.values_of(preset))
    assert page.workers == []


def allowed(explorer: Explorer, values: dict) -> bool:
    """Whether the explorer shows these values."""
    try:
        explorer.show(values)
    except ValueError:
        return False
    return True


def where_used(explorer: Explorer, control: Control) -> dict:
    """Values under which a control changes something: a preset's, or with one choice made otherwise."""
    choices = [c for c in explorer.controls if isinstance(c, Choice)]
    views = [explorer.values_of(preset) for preset in explorer.presets]
    views += [explorer.defaults | {c.name: option} for c in choices for option in c.options]
    return next(
        values
        for values in views
        if allowed(explorer, values) and control.name not in explorer.show(values)["unused"]
    )


def other_values(explorer: Explorer, control: Control, values: dict) -> list:
    """What else a control can be: its ends, its options; the step before the last."""
    match control:
        case Choice(options=options):
            candidates = list(options)
        case Integer(low=low, high=high) | Real(low=low, high=high):
            candidates = [low, high]
        case Switch():
            candidates = [False, True]
        case Step():
            candidates = [explorer.steps(**values) - 1]
    others = [value for value in candidates if value != values[control.name]]
    return [value for value in others if allowed(explorer, values | {control.name: value})]


def query(values: dict) -> str:
    """Values as a link writes them."""
    written = {name: str(v).lower() if isinstance(v, bool) else v for name, v in values.items()}
    return "&".join(f"{name}={value}" for name, value in written.items() if value is not None)


def move(shown, control: Control, value) -> None:
    """Set a control as a reader does."""
    match control:
        case Choice():
            shown.number(control.name).select_option(value)
        case Integer() | Real():
            shown.enter(control.name, value)
        case Switch():
            shown.number(control.name).set_checked(value)
        case Step():
            shown.press("Next step" if value is None else "Previous step")


@each_explorer
def test_every_value_is_the_package_s(name, explorer, page, card):
    """Every control is moved, by itself, to whatever else it can be, and back."""
    page.goto(name)
    shown, before = card(explorer), explorer.defaults
    for control in explorer.controls:
        values = where_used(explorer, control)
        if values != before:
            page.goto(f"{name}#{explorer.id}?{query(values)}")
            shown.shows(**values)
        for value in other_values(explorer, control, values):
            move(shown, control, value)
            shown.shows(**values | {control.name: value})
            move(shown, control, values[control.name])
            shown.shows(**values)
        before = values
    assert len(page.workers) == 1


@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_cards(name, page, card, theme):
    page.emulate_media(color_scheme=theme)
    page.goto(name)
    for explorer in PAGES[name]:
        card(explorer)
    found = Axe().run(page, context=".explorer", options={"resultTypes": ["violations"], "preload": False})
    assert found.violations_count == 0, found.generate_report()
