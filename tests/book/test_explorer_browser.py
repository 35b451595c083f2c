"""Explorers in a real browser, on a site of toys that may break."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from toys import PHRASE
from toys import bars as BARS
from toys import line as LINE

import serve
from gpuedu.style import INK
from gpuedu_book.assets import python_megabytes

pytestmark = pytest.mark.browser

TOYS = Path(__file__).parent / "toy_site"
BOOT_MS = 40_000  # Python in a browser starts in 3 s; machines under test are busy


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    """The built site of toys."""
    folder = tmp_path_factory.mktemp("toys")
    build = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", TOYS, folder]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def site_url(toy_folder):
    """Its address: for these tests it is the site, and nothing else may be asked for."""
    with serve.server(toy_folder) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_port}/"
        host.shutdown()


@pytest.fixture
def bars(page, card):
    """The first toy on its page."""
    page.goto("index.html")
    return card(BARS)


# ---- what stands in the page ----


def test_page_embeds_what_the_package_computes(toy_folder, embedded):
    embedded((toy_folder / "index.html").read_text(), BARS, LINE)


def test_without_javascript_takeaway_and_table_stand_there(browser, site_url, card):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(site_url)
        bars = card(BARS, page, drawn=False)
        expect(bars.locator(".explorer-takeaway")).to_have_text(f"8 pieces of 1 ms: {PHRASE}.")
        expect(bars.locator("noscript p")).to_contain_text("need JavaScript")
        bars.locator("summary").click()
        expect(bars.locator("tbody tr")).to_have_count(8)
        for hidden in ("presets", "figure", "steps", "controls", "foot"):
            expect(bars.locator(f".explorer-{hidden}")).to_be_hidden()


def test_presets_switch_without_python(bars):
    bars.shows()
    expect(bars.preset("Few")).to_be_checked()
    bars.choose("Many")
    bars.shows(n=25)
    bars.choose(f"Line {PHRASE}")
    bars.shows(n=40, shape="line")
    expect(bars.number("n")).to_have_value("40")
    expect(bars.number("shape")).to_have_value("line")
    bars.state("ready")
    assert bars.page.workers == []


# ---- Python in the browser ----


@pytest.mark.parametrize("touch", ["hover", "focus", "tap"])
def test_first_touch_of_a_control_starts_one_worker(browser, site_url, card, touch):
    with browser.new_context(has_touch=True) as context:
        page = context.new_page()
        page.goto(site_url)
        bars, line = card(BARS, page), card(LINE, page)
        bars.locator(".explorer-takeaway").hover()
        assert page.workers == []
        getattr(bars.number("n"), touch)()
        expect(bars.root).to_have_attribute("data-state", "booting")
        expect(bars.status).to_contain_text(f"about {python_megabytes()} MB")
        expect(line.root).to_have_attribute("data-state", "ready")
        getattr(line.number("n"), touch)()
        bars.state("ready")
        line.enter("n", 5)
        line.shows(n=5)
        assert len(page.workers) == 1


def test_every_kind_of_control_shows_what_the_package_computes(bars):
    bars.enter("n", 9)
    bars.shows(n=9)
    expect(bars.preset("Few")).not_to_be_checked()
    bars.slider("n").press("ArrowRight")
    bars.shows(n=10)
    bars.slider("size").press("ArrowRight")
    size = float(bars.number("size").input_value())
    assert 1 < size < 1.2
    bars.shows(n=10, size=size)
    bars.slider("size").press("Home")
    bars.shows(n=10, size=0.001)
    bars.slider("size").press("End")
    bars.shows(n=10, size=1000)
    bars.slider("gain").press("ArrowLeft")
    bars.shows(n=10, size=1000, gain=-0.05)
    bars.number("shape").select_option("line")
    bars.shows(n=10, size=1000, gain=-0.05, shape="line")
    bars.number("extra").check()
    shown = bars.shows(n=10, size=1000, gain=-0.05, shape="line", extra=True)
    expect(bars.number("gain")).to_be_disabled()  # unused: changes nothing now
    bars.locator("summary").click()
    expect(bars.locator("tbody tr")).to_have_count(10)
    cells = bars.locator("tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    assert cells == shown["table"]["rows"]
    bars.number("n").fill("")
    bars.number("n").press("Enter")  # emptied: the value stays
    expect(bars.number("n")).to_have_value("10")


def test_newest_value_wins(bars):
    slider = bars.slider("n")
    for _ in range(20):
        slider.press("ArrowRight")
    slider.press("ArrowLeft")
    bars.shows(n=27)
    bars.state("ready")
    # A preset is shown at once, and no answer to an older question replaces it
    slider.press("ArrowRight")
    bars.choose("Few")
    bars.state("ready")
    bars.page.wait_for_timeout(300)
    bars.shows()


def test_wrong_value_is_explained_and_the_figure_stays(bars):
    bars.enter("n", 31)
    bars.state("error")
    expect(bars.alert).to_contain_text("n=31: bars must be at most 30")
    bars.shows()
    expect(bars.get_by_role("button", name="Try again")).to_be_hidden()
    bars.enter("n", 100)
    expect(bars.alert).to_contain_text("n=100: must be from 1 to 64")
    bars.enter("n", "")  # emptied: the last value that works comes back
    expect(bars.number("n")).to_have_value(str(BARS.defaults["n"]))
    bars.state("ready")
    bars.shows()
    bars.enter("n", 30)
    bars.shows(n=30)
    bars.state("ready")
    expect(bars.alert).to_be_empty()


@pytest.mark.parametrize("missing", ["pyodide.asm.wasm", "gpuedu-*.zip", "explorer_worker.mjs*"])
def test_python_that_does_not_start_says_why_and_starts_again(bars, troubles, missing):
    pattern = f"**/{missing}"
    bars.page.context.route(pattern, lambda route: route.abort())
    bars.enter("n", 9)
    bars.state("error")
    alert = bars.alert
    expect(alert).to_contain_text("Python did not start in this browser: ")
    assert len(alert.text_content().split("browser: ")[1]) > len(". The presets still work.") + 8
    bars.choose("Many")
    bars.shows(n=25)
    bars.enter("n", 9)
    bars.page.context.unroute(pattern)
    bars.press("Try again")
    bars.shows(n=9)
    bars.state("ready")
    expect(alert).to_be_empty()
    troubles.clear()


def test_bug_in_a_figure_says_so_and_python_starts_again(bars):
    bars.enter("n", 13)
    bars.state("error")
    expect(bars.alert).to_contain_text("Python stopped: RuntimeError: thirteen is a bug")
    bars.shows()
    bars.enter("n", 12)
    bars.press("Try again")
    bars.shows(n=12)
    bars.state("ready")


def test_from_a_file_presets_work_and_the_rest_says_what_to_do(page, card, toy_folder):
    page.goto((toy_folder / "index.html").as_uri())
    bars = card(BARS)
    bars.choose("Many")
    bars.shows(n=25)
    expect(bars.status).to_contain_text("python -m http.server")
    expect(bars.number("n")).to_be_disabled()
    page.goto((toy_folder / "index.html").as_uri() + "#toy-bars?preset=line")
    bars.shows(n=40, shape="line")
    page.goto((toy_folder / "index.html").as_uri() + "#toy-bars?n=9")
    expect(bars.alert).to_contain_text("python -m http.server")
    assert page.workers == []


# ---- steps ----


def test_steps_by_button_slider_and_key(bars):
    position = bars.locator(".explorer-position")
    expect(position).to_have_text("all 8 steps")
    bars.press("Previous step")
    bars.shows(step=7)
    expect(position).to_have_text("step 7 of 8")
    bars.slider("step").press("Home")
    bars.shows(step=0)
    bars.press("Previous step")
    bars.press("Next step")
    bars.shows(step=1)
    bars.slider("step").press("End")
    bars.shows()
    bars.slider("step").press("ArrowLeft")
    bars.enter("n", 20)  # the position stays, the way is longer
    bars.shows(n=20, step=7)
    expect(position).to_have_text("step 7 of 20")


def test_one_step_is_not_said_to_be_many(bars):
    bars.enter("n", 1)
    bars.shows(n=1)
    expect(bars.locator(".explorer-position")).to_have_text("the only step")


def test_play_runs_to_the_end_and_can_be_paused(bars):
    bars.press("Play")
    expect(bars.locator(".explorer-position")).to_have_text(re.compile("step [12] of 8"), timeout=BOOT_MS)
    bars.press("Pause")
    stopped = bars.locator(".explorer-position").text_content()
    bars.page.wait_for_timeout(1500)
    expect(bars.locator(".explorer-position")).to_have_text(stopped)
    bars.press("Play")
    expect(bars.locator(".explorer-position")).to_have_text("all 8 steps", timeout=15_000)
    expect(bars.get_by_role("button", name="Play", exact=True)).to_be_visible()
    bars.shows()


def test_play_is_calm_where_motion_is_not_wanted(bars):
    bars.page.emulate_media(reduced_motion="reduce")
    bars.press("Play")
    expect(bars.locator(".explorer-position")).to_have_text("step 0 of 8", timeout=BOOT_MS)
    bars.page.wait_for_timeout(1000)
    expect(bars.locator(".explorer-position")).to_have_text("step 0 of 8")


# ---- links ----


def test_view_is_linked_and_found_again(bars, site_url):
    bars.enter("n", 9)
    bars.shows(n=9)
    bars.slider("size").press("ArrowRight")
    bars.press("Previous step")
    size = float(bars.number("size").input_value())
    bars.shows(n=9, size=size, step=8)
    bars.state("ready")
    bars.page.wait_for_timeout(400)
    link = bars.page.evaluate("location.href")
    assert link == f"{site_url}index.html#toy-bars?n=9&size={size}&step=8"
    bars.page.goto("about:blank")
    bars.page.goto(link)
    bars.shows(n=9, size=size, step=8)
    expect(bars.number("n")).to_have_value("9")


def test_link_to_a_preset_needs_no_python(page, card, site_url):
    page.goto("elsewhere.html")
    page.get_by_role("link", name="many from afar").click()
    bars = card(BARS)
    bars.shows(n=25)
    expect(bars.root).to_be_in_viewport()
    # The same values without the preset's name, too
    page.goto("about:blank")
    page.goto("index.html#toy-bars?shape=line&n=40")
    bars.shows(n=40, shape="line")
    assert page.workers == []


def test_links_in_prose_lead_to_their_view_again_and_again(bars):
    page = bars.page
    page.set_viewport_size({"width": 1000, "height": 300})
    link = page.get_by_role("link", name="Many")
    for _ in range(2):
        page.evaluate("scrollTo(0, 0)")
        link.click()
        bars.shows(n=25)
        expect(bars.locator(".explorer-title")).to_be_in_viewport()
        expect(bars.root).to_be_focused()
    bars.choose("Few")
    page.get_by_role("link", name="nine pieces").click()
    bars.shows(n=9, size=20)
    page.get_by_role("link", name="the card itself").click()  # as it is
    bars.shows(n=9, size=20)
    link.click()
    bars.shows(n=25)


WRONG_LINKS = {
    "preset=none": "preset=none: must be one of few, many, line",
    "n=65": "n=65: must be from 1 to 64",
    "n=eight": "n='eight': must be a whole number",
    "n=": "n='': must be a whole number",
    "shape=round": "shape='round': must be one of bars, line",
    "extra=yes": "extra='yes': must be true or false",
    "size=0": "size=0: must be from 0.001 to 1000",
    "step=9": "step=9: must be from 0 to 8",
    "other=1": "toy-bars: ['other']: must be exactly",
    "preset=many&n=9&m=1": "toy-bars: ['m']: must be exactly",
}


def test_wrong_link_is_explained_not_adjusted(page, card):
    page.goto("index.html#toy-bars?n=0")
    bars = card(BARS)
    expect(bars.alert).to_contain_text("n=0: must be from 1 to 64", timeout=BOOT_MS)
    for query, says in WRONG_LINKS.items():
        page.goto(f"index.html#toy-bars?{query}")
        expect(bars.alert).to_contain_text(says)
        bars.state("error")
        bars.shows()
    bars.press("Reset")
    bars.state("ready")


def test_reset_and_copy_link(bars, site_url):
    bars.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    bars.enter("n", 9)
    bars.shows(n=9)
    bars.press("Copy link")
    expect(bars.status).to_have_text("Link copied.")
    assert bars.page.evaluate("navigator.clipboard.readText()") == f"{site_url}index.html#toy-bars?n=9"
    bars.press("Reset")
    bars.shows()
    expect(bars.preset("Few")).to_be_checked()
    bars.press("Copy link")
    assert bars.page.evaluate("navigator.clipboard.readText()") == f"{site_url}index.html#toy-bars"


# ---- for everybody ----


def test_keyboard_reaches_everything_in_order(bars):
    page = bars.page
    bars.preset("Few").focus()
    page.keyboard.press("ArrowRight")
    bars.shows(n=25)
    reached = []
    for _ in range(15):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")
        )
    steps = ["Previous step", "Play", "Next step", "Piece by piece"]
    numbers = [f"toy-bars-{name}" for name in ("shape", "n", "size", "gain", "extra")]
    assert [r for r in reached if r in steps + numbers] == steps + numbers


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page, card, theme):
    page.goto("index.html#toy-bars?preset=none")
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    bars = card(BARS)
    bars.locator("summary").click()
    bars.state("error")
    found = Axe().run(
        bars.page, context=".explorer", options={"resultTypes": ["violations"], "preload": False}
    )
    assert found.violations_count == 0, found.generate_report()


def test_figure_is_described(bars):
    figure = bars.get_by_role("img", name="Bars of growing height.")
    assert figure.get_attribute("aria-describedby") == bars.locator(".explorer-takeaway").get_attribute("id")
    assert bars.locator(".explorer-takeaway").get_attribute("aria-live") == "polite"


def ink(card):
    """The color that the figure's axis is written in."""
    return card.locator(".xtick text").first.evaluate("text => getComputedStyle(text).fill")


def rgb(color):
    """``#rrggbb`` as a browser writes it."""
    return "rgb({}, {}, {})".format(*(int(color[i : i + 2], 16) for i in (1, 3, 5)))


def test_figure_follows_light_and_dark(bars):
    for theme in ("dark", "light"):
        bars.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        expect(bars.locator(".xtick text").first).to_have_css("fill", rgb(INK[theme]))
    bars.page.evaluate("delete document.documentElement.dataset.theme")
    bars.page.emulate_media(color_scheme="dark")
    expect(bars.locator(".xtick text").first).to_have_css("fill", rgb(INK["dark"]))


def test_paper_shows_figure_takeaway_and_caption(bars):
    page = bars.page
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert ink(bars) == rgb(INK["light"])
    for part in (".explorer-figure", ".explorer-takeaway", "figcaption"):
        expect(bars.locator(part)).to_be_visible()
    for part in ("presets", "steps", "controls", "foot", "data"):
        expect(bars.locator(f".explorer-{part}")).to_be_hidden()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert ink(bars) == rgb(INK["dark"])


@pytest.mark.parametrize("width", [400, 800, 1440])
def test_card_fits(bars, width):
    bars.page.set_viewport_size({"width": width, "height": 800})
    bars.page.wait_for_timeout(200)
    card_box, figure_box = bars.bounding_box(), bars.locator(".main-svg").first.bounding_box()
    assert card_box["x"] >= 0 and card_box["x"] + card_box["width"] <= width
    assert figure_box["width"] <= card_box["width"]
    assert figure_box["height"] == 300
    assert bars.root.evaluate("card => card.scrollWidth <= card.clientWidth")
