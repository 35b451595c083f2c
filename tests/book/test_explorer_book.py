"""The explorers of the book's own pages, in a real browser with no way to any other machine."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from gpuedu.explorer import load

pytestmark = pytest.mark.browser

PIPELINE = load("gpuedu.pipeline_parallel.plot:explorer")
PAGE = "training/pipeline_parallel.html"


def test_book_embeds_what_the_package_computes(site, embedded):
    embedded((site / PAGE).read_text(), PIPELINE)


def test_presets_need_no_python(page, card):
    page.goto(PAGE)
    schedule = card(PIPELINE)
    schedule.shows()
    for preset in PIPELINE.presets:
        schedule.choose(preset.label)
        schedule.shows(**PIPELINE.values_of(preset))
    assert page.workers == []


def test_every_value_is_the_package_s(page, card):
    page.goto(PAGE)
    schedule = card(PIPELINE)
    schedule.enter("m", 12)
    schedule.shows(m=12)
    schedule.number("schedule").select_option("zb_h1")
    schedule.slider("p").press("ArrowRight")
    schedule.shows(schedule="zb_h1", m=12, p=PIPELINE.defaults["p"] + 1)
    assert len(page.workers) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_card(page, card, theme):
    page.emulate_media(color_scheme=theme)
    page.goto(PAGE)
    card(PIPELINE)
    found = Axe().run(page, context=".explorer", options={"resultTypes": ["violations"], "preload": False})
    assert found.violations_count == 0, found.generate_report()
