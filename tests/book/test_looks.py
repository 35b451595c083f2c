"""The look holds: one color one meaning, the map is whole, lines have the right length, nothing overflows."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from gpuedu.style import COLORS, GRID, INK, PAPER, contrast
from gpuedu_book import benchmarks, chapter, cluster_map, palette
from gpuedu_book.techniques import TECHNIQUES

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
FILES = {chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]}
CHAPTERS = {technique.slug for technique in TECHNIQUES if technique.docname in FILES}
CHAPTER_PAGES = [f"{technique.docname}.html" for technique in TECHNIQUES if technique.slug in CHAPTERS]
PAGES = ["index.html", "claims.html", "notation.html", "performance.html", *CHAPTER_PAGES]
each_chapter = pytest.mark.parametrize("name", CHAPTER_PAGES)


# Colors


def test_palette_is_the_one_of_the_figures() -> None:
    css = palette.palette()
    light, dark = css.split('html[data-theme="dark"]')[:2]
    for name, color in COLORS.items():
        assert f"{palette.variable(name)}: {color};" in light
    for mode, rules in (("light", light), ("dark", dark)):
        for name, value in (("paper", PAPER), ("ink", INK), ("line", GRID)):
            assert f"--gpuedu-{name}: {value[mode]};" in rules
    assert palette.MEANINGS.keys() == COLORS.keys()


@pytest.mark.parametrize("name", ["gpuedu.css", "map.css"])
def test_styles_take_every_color_from_the_palette(name: str) -> None:
    css = re.sub(r"/\*.*?\*/", "", (STATIC / name).read_text(), flags=re.DOTALL)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[^{}]*;)|\b(?:rgba?|hsla?)\(", css) == []
    used = set(re.findall(r"var\((--c-[\w-]+)\)", css))
    assert used <= {palette.variable(name) for name in COLORS}


@pytest.mark.parametrize("name", ["favicon.svg", "logo.svg"])
def test_mark_of_the_book_is_in_its_colors(name: str) -> None:
    colors = set(re.findall(r"#[0-9a-f]{6}", (STATIC / name).read_text()))
    assert colors == {COLORS["forward"], COLORS["backward"], COLORS["weight_gradient"]}


# The map


def test_every_technique_has_its_own_spot() -> None:
    assert cluster_map.SPOTS.keys() == {t.slug for t in TECHNIQUES}
    for technique in TECHNIQUES:
        (x, y), (w, h) = cluster_map.SPOTS[technique.slug], cluster_map.SIZE[technique.level]
        r = cluster_map.RADIUS
        assert r <= x <= w - r and r <= y <= h - r, technique.slug
    for a, b in itertools.combinations(TECHNIQUES, 2):
        if a.level == b.level:
            assert math.dist(cluster_map.SPOTS[a.slug], cluster_map.SPOTS[b.slug]) > 2 * r, (a.slug, b.slug)


class MapReader(HTMLParser):
    """The techniques that the map's lists and drawings name, and those that are links."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []
        self.marked: list[str] = []
        self.links: dict[str, str] = {}
        self.current = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if slug := given.get("data-technique"):
            (self.listed if tag == "li" else self.marked).append(slug)
            self.current = slug if tag == "li" else ""
        elif tag == "a" and self.current:
            self.links[self.current] = given.get("href") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self.current = ""


def test_map_shows_every_technique_and_links_what_stands(site: Path) -> None:
    reader = MapReader()
    html = (site / "index.html").read_text()
    reader.feed(html)
    assert sorted(reader.listed) == sorted(reader.marked) == sorted(t.slug for t in TECHNIQUES)
    assert reader.links.keys() == CHAPTERS
    assert all((site / href).is_file() for href in reader.links.values())
    assert html.count("(in preparation)") == 2 * (len(TECHNIQUES) - len(CHAPTERS))  # on the map, in the list


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda t: t.slug)
def test_small_map_marks_the_spot(technique) -> None:
    x, y = cluster_map.SPOTS[technique.slug]
    drawn = cluster_map.small(technique)
    assert f'class="map-spot" cx="{x}" cy="{y}"' in drawn
    assert technique.place in drawn


# Numbers on the page


def test_reading_time_counts_prose_alone() -> None:
    prose = "word " * (3 * chapter.WORDS_PER_MINUTE)
    matter, code = "word " * 500, "x = 1\n" * 900
    page = f"---\nkernel: {matter}\n---\n{prose}\n```{{code-cell}} python3\n{code}```\n"
    assert chapter.reading_minutes(prose) == chapter.reading_minutes(page) == 3
    assert chapter.reading_minutes("A word.") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.04e-6, "2.0 µs"), (0.00168, "1.7 ms"), (0.0123, "12 ms"), (7.87, "7.9 s"), (81.2, "81 s")],
)
def test_durations_are_written_with_two_digits(seconds: float, text: str) -> None:
    assert benchmarks.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_performance_page_stands_without_results(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    (paragraph,) = benchmarks.Benchmarks.run(None)
    assert "Nothing has been measured" in paragraph.astext()


# In the browser


def choose(page: Page, mode: str) -> None:
    """Every page that is opened from now on is in ``mode``."""
    script = f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')"
    page.add_init_script(script)


@pytest.mark.browser
def test_nothing_overflows(page: Page, site: Path) -> None:
    for path in sorted(site.rglob("*.html")):
        name = str(path.relative_to(site))
        page.goto(name, wait_until="networkidle")
        for width in (400, 800, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width} px"


@pytest.mark.browser
def test_lines_have_65_to_75_characters(page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("training/pipeline_parallel.html")
    page.evaluate("document.fonts.ready")
    column = page.evaluate(
        """() => {
          const probe = document.createElement("span");
          probe.textContent = "the quick brown fox jumps over the lazy dog and ".repeat(20);
          probe.style.whiteSpace = "nowrap";
          const p = document.querySelector(".bd-article section > p");
          p.append(probe);
          const perCharacter = probe.getBoundingClientRect().width / probe.textContent.length;
          probe.remove();
          return p.getBoundingClientRect().width / perCharacter;
        }"""
    )
    assert 65 <= column <= 75


@pytest.mark.browser
def test_faces_are_the_book_s_own(page: Page) -> None:
    page.goto("training/pipeline_parallel.html")
    families = (
        "document.fonts.ready.then(all => [...all].filter(f => f.status == 'loaded').map(f => f.family))"
    )
    loaded = {family.strip('"') for family in page.evaluate(families)}
    assert {"Source Serif 4 Variable", "Source Sans 3 Variable", "JetBrains Mono Variable"} <= loaded


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_in_both_modes(page: Page, name: str, mode: str) -> None:
    choose(page, mode)
    page.goto(name)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb({}, {}, {})".format(*bytes.fromhex(PAPER[mode][1:]))
    rules = ["color-contrast", "link-in-text-block", "label", "list", "svg-img-alt", "heading-order"]
    found = Axe().run(page, context="article", options={"runOnly": rules, "resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.browser
def test_paper_is_light(page: Page) -> None:
    choose(page, "dark")
    page.goto("index.html")
    page.emulate_media(media="print")
    colors = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    wanted = ["rgb({}, {}, {})".format(*bytes.fromhex(c["light"][1:])) for c in (PAPER, INK)]
    assert colors == wanted


CHAPTER = "training/pipeline_parallel.html"


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_skip_link_can_be_read(page: Page, mode: str) -> None:
    choose(page, mode)
    page.goto("index.html")
    page.keyboard.press("Tab")
    link = page.locator(":focus")
    expect(link).to_have_text("Skip to main content")
    seen = link.evaluate("a => [a, a.parentElement].map(e => getComputedStyle(e))"
                         ".map((s, i) => i ? s.backgroundColor : s.color)")  # fmt: skip
    ink, paper = ("#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", color)[:3])) for color in seen)
    assert contrast(ink, paper) >= 4.5


@pytest.mark.browser
def test_header_hides_what_scrolls_under_it(page: Page) -> None:
    page.goto(CHAPTER)
    assert page.locator(".bd-header-article").evaluate("e => getComputedStyle(e).backgroundColor") == (
        "rgb({}, {}, {})".format(*bytes.fromhex(PAPER["light"][1:]))
    )


def boxes(page: Page, selector: str) -> list[dict]:
    """Where the elements are that one can see."""
    found = [element.bounding_box() for element in page.locator(selector).all()]
    return [box for box in found if box]


def overlap(a: dict, b: dict) -> bool:
    """By more than the line of a text is higher than its letters."""
    axes = (("x", "width"), ("y", "height"))
    return all(a[at] + 2 < b[at] + b[size] and b[at] + 2 < a[at] + a[size] for at, size in axes)


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1000, 1440])
def test_no_marker_of_the_map_covers_a_word(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("index.html", wait_until="networkidle")
    words = boxes(page, ".map .map-label")
    markers = boxes(page, ".map .map-marker circle")
    assert len(markers) == len(TECHNIQUES)
    assert not [(word, marker) for word in words for marker in markers if overlap(word, marker)]


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 800, 1200, 1280, 1440])
def test_map_in_a_chapter_head_can_be_seen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(CHAPTER)
    text, spot = boxes(page, ".chapter-head > *:not(.chapter-place)")[0], boxes(page, ".chapter-spot svg")[0]
    assert spot["width"] >= 160 and text["width"] >= 300


@pytest.mark.browser
def test_legend_is_clear_of_the_lanes(page: Page) -> None:
    """On a page that has just come, after a preset that names more kinds, and at another width."""
    above = """figure => {
      const bottom = figure.querySelector("g.legend .bg").getBoundingClientRect().bottom;
      return figure.querySelector(".nsewdrag[data-subplot=xy]").getBoundingClientRect().top - bottom;
    }"""
    figure = page.locator(".explorer-figure")
    for width in (540, 620, 700, 800, 1200, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto("about:blank")
        page.goto(CHAPTER)
        expect(page.locator(".explorer")).to_have_attribute("data-values", re.compile("{"))
        assert 480 <= figure.evaluate("e => e.clientWidth") <= 820
        gaps = [figure.evaluate(above)]
        page.locator(".explorer-preset", has_text="Zero-bubble").click()
        gaps.append(figure.evaluate(above))
        page.set_viewport_size({"width": 1440, "height": 900})
        expect(figure.locator(".main-svg").first).to_have_attribute("width", re.compile("8.."))
        gaps.append(figure.evaluate(above))
        assert all(0 < gap < 20 for gap in gaps), f"{width} px: {gaps}"
        assert boxes(page, "g.legend .bg")[0]["x"] < figure.bounding_box()["x"] + 80


@pytest.mark.browser
@each_chapter
@pytest.mark.parametrize("width", [1200, 1280, 1440])
def test_program_text_of_85_columns_fits(page: Page, width: int, name: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(name)
    cut = page.locator("div.highlight pre").evaluate_all(
        """all => all.filter(pre => pre.scrollWidth > pre.clientWidth).map(pre => pre.textContent)"""
    )
    assert all(max(map(len, text.splitlines())) > 85 for text in cut)


@pytest.mark.browser
@each_chapter
def test_narrow_page_keeps_titles_tables_and_output_whole(page: Page, name: str) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(name, wait_until="networkidle")
    titles = page.locator(".solution .admonition-title").evaluate_all(
        """all => all.map(title => {
          const words = document.createRange();
          words.selectNodeContents(title);
          words.setEndBefore(title.querySelector("button"));
          const left = title.querySelector("button").getBoundingClientRect().left;
          return Math.max(...[...words.getClientRects()].map(r => r.width && r.right)) - left;
        })"""
    )
    assert titles and max(titles) <= 0
    assert page.locator("div.cell_output pre").evaluate_all(
        "all => all.every(pre => pre.scrollWidth <= pre.clientWidth)"
    )


@pytest.mark.browser
def test_paper_shows_answers_and_whole_lines(page: Page) -> None:
    page.goto(CHAPTER)
    reveals = page.locator(".predict-reveal")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert reveals.evaluate_all("all => all.every(reveal => reveal.open)")
    assert not boxes(page, "#jb-print-toc, .bd-sidebar-secondary, .predict-guess")
    code = page.locator("div.highlight pre, div.highlight, [class*=highlight-]:has(> div.highlight)")
    styles = code.evaluate_all("all => all.map(getComputedStyle).map(s => s.breakInside)")
    assert set(styles) == {"auto"}
    spaces = page.locator("div.highlight pre").evaluate_all(
        "all => all.map(pre => getComputedStyle(pre).whiteSpace)"
    )
    assert set(spaces) == {"pre-wrap"}
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not reveals.evaluate_all("all => all.some(reveal => reveal.open)")


@pytest.mark.browser
def test_reader_predicts_then_sees(page: Page) -> None:
    page.goto(CHAPTER)
    box = page.locator(".predict").first
    answer = float(box.locator(".predict-answer").text_content())
    reveal = box.locator("details")
    field = box.get_by_role("spinbutton")
    expect(reveal).not_to_have_attribute("open", "")

    box.get_by_role("button").click()  # nothing is committed yet
    expect(field).to_be_focused()
    missing = box.locator(".predict-missing")
    expect(missing).to_have_text("Enter a number first.")
    expect(reveal).not_to_have_attribute("open", "")

    verdicts = {
        3 * answer: "3 times too high",
        answer / 4: "4 times too low",
        1.4 * answer: f"too high by {0.4 * answer:.1f} percentage points.",
        answer: "right",
    }
    for guess, verdict in verdicts.items():
        field.fill(f"{guess}")
        field.press("Enter")
        expect(reveal).to_have_attribute("open", "")
        expect(box.locator(".predict-verdict")).to_contain_text(verdict)
        expect(missing).to_be_empty()


@pytest.mark.browser
def test_answer_is_there_without_javascript(browser, site_url: str) -> None:
    with browser.new_context(java_script_enabled=False, base_url=site_url) as context:
        page = context.new_page()
        page.goto(CHAPTER)
        box = page.locator(".predict").first
        expect(box.locator(".predict-guess")).to_be_hidden()
        box.locator("summary").click()
        expect(box.locator("details > p").last).to_be_visible()
