"""The report as a person uses it, in a real browser: the dial, filters, tables, light and dark.

Screenshots are left in build/screenshots.
"""

from __future__ import annotations

import re
from pathlib import Path

import frames
import pytest
import report_case
from plotly.subplots import make_subplots

from refusal_dial.report.page import report_page
from refusal_dial.report.reading import read_run
from refusal_dial.report.steering import alpha_curves
from refusal_dial.report.theme import found_browser, styled, write_figures

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
ALPHAS = (-2.0, 0.0, 2.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scores():
    return frames.scores(frames.dial, alphas=ALPHAS)


@pytest.fixture(scope="module")
def paths(tmp_path_factory, scores):
    """Pages of one run, of two, and of one whose model spoke."""
    here = tmp_path_factory.mktemp("pages")
    source = report_case.prompts_file(here)
    one = report_case.leave_run(here / "one", scores, source, layer=[20])
    weaker = scores.assign(score=scores["score"] - 0.5)
    two = report_case.leave_run(here / "two", weaker, source, layer=[20])
    completed = report_case.leave_with_completions(here / "completions", scores, source)
    pages = {"one": [one], "two": [one, two], "completions": [completed]}
    for name, folders in pages.items():
        (here / f"{name}.html").write_text(report_page([read_run(folder) for folder in folders]))
    curves = alpha_curves(read_run(one).summary, "Refusal along the dial<br><sup>made</sup>")
    figures = write_figures({"curves": curves, "panels": panels()}, here)
    return {name: here / f"{name}.html" for name in pages} | {p.stem: p for p in figures}


def panels():
    """A map with a long title beside a curve of something else, a colour bar and a legend."""
    long = "EDGE prompts scored highest against lowest (trivial towards the last layers)"
    figure = make_subplots(rows=2, cols=2, subplot_titles=(long, "coherence", "p", ""))
    figure.add_heatmap(z=[[0.0, 1.0]], coloraxis="coloraxis", row=1, col=1)
    for name, row, col in (("one", 1, 2), ("two", 2, 1)):
        figure.add_scatter(x=[0, 1], y=[0, 1], name=name, row=row, col=col)
    figure.update_yaxes(title_text="head", row=1, col=1)
    figure.update_yaxes(title_text="p", row=2, col=1)
    figure.update_layout(coloraxis={"colorbar": {"title": {"text": "share"}}})
    return styled(figure, "Who writes it<br><sup>made</sup>", height=700, width=1000)


@pytest.fixture(scope="module")
def browser():
    found = found_browser()
    if found is None:
        pytest.skip("no Chrome or Chromium is installed: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        # In a container root has no sandbox; the page is our own.
        options = {"executable_path": str(found), "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, paths):
    """Opens a page; afterwards nothing was fetched, nothing failed, and no text ran."""
    opened = []

    def open_page(name: str, width: int = 1280, scheme: str = "light", height: int = 900):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        tab, faults = context.new_page(), []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda line: line.type == "error" and faults.append(line.text))
        tab.on("request", lambda r: re.match("file:|data:|blob:", r.url) or faults.append(r.url))
        tab.goto(paths[name].as_uri())
        tab.locator("html[data-ready]").wait_for()
        opened.append((context, tab, faults))
        return tab

    yield open_page
    for context, tab, faults in opened:
        assert tab.evaluate("window.hit") is None
        assert faults == []
        context.close()


def row(tab, who):
    return tab.locator("#prompts > li").filter(has_text=f"holdout · {who}")


def shot(tab, name):
    """The window as it looks with the dial at its top."""
    tab.evaluate("document.getElementById('dial').scrollIntoView()")
    tab.screenshot(path=str(SHOTS / name))


def turn(tab, to):
    """By keyboard, from wherever the slider is."""
    tab.locator("#alpha").focus()
    tab.keyboard.press("Home")
    for _ in range(ALPHAS.index(to)):
        tab.keyboard.press("ArrowRight")


def score(scores, alpha, who, direction="learned", seed=-1):
    part = scores[(scores["direction"] == direction) & (scores["prompt_id"] == who)]
    part = part[(part["alpha"] == alpha) & (part["seed"].fillna(-1) == seed)]
    return float(part["score"].iloc[0])


def text_of(number):
    return f"{number:.2f}".replace("-", "−")


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_slider_shows_every_prompt_at_that_alpha_with_its_flip(visit, scores, alpha):
    tab = visit("one")
    turn(tab, alpha)
    assert (
        tab.locator("#alpha-value").inner_text().replace("−", "-").lstrip("+") == f"{alpha / 10:g}"
    )
    flips = 0
    for who in scores["prompt_id"].unique():
        here = row(tab, who)
        now, was = score(scores, alpha, who), score(scores, 0.0, who)
        assert here.locator(".score").inner_text() == text_of(now)
        turned = (now > 0) - (was > 0)
        assert here.get_attribute("class") == {1: "up", -1: "down", 0: ""}[turned]
        said = {1: ["now refused"], -1: ["now not refused"], 0: []}[turned]
        assert here.locator(".flip").all_inner_texts() == said
        flips += bool(turned)
    counted = tab.locator(".meter .flips").all_inner_texts()
    assert sum(int(text.split()[0]) for text in counted) == flips
    assert tab.locator("#announced").inner_text() or flips == 0
    shot(tab, f"dial_alpha_{alpha:g}.png")


def test_random_directions_are_a_switch_away(visit, scores):
    tab = visit("one")
    turn(tab, 2.0)
    tab.locator("#dial").get_by_text("random", exact=True).first.click()
    tab.get_by_label("number", exact=True).select_option("2")
    who = "EDGE-holdout-3"
    expected = score(scores, 2.0, who, "random", 2)
    assert row(tab, who).locator(".score").inner_text() == text_of(expected)


def test_hostile_prompts_and_completions_are_shown_as_text(visit):
    tab = visit("completions")
    turn(tab, -2.0)
    shown = tab.locator("#prompts .text").all_inner_texts()
    assert shown[:3] == report_case.HOSTILE[:3]
    here = row(tab, "EDGE-holdout-3")
    assert "Sure, EDGE-holdout-3 at -2" in here.inner_text()
    here.get_by_text("1 more samples").click()
    assert report_case.BROKEN.strip() in here.locator("blockquote").nth(1).inner_text()
    here.get_by_text("unsteered", exact=True).click()
    assert "No, EDGE-holdout-3 at 0" in here.inner_text()
    assert tab.locator("iframe, img, #prompts script, #prompts b").count() == 0
    turn(tab, 2.0)
    assert "No, EDGE-holdout-3 at 2" in here.inner_text()
    shot(tab, "dial_completions.png")


def test_search_and_filters_leave_what_they_say(visit):
    tab = visit("one")
    count = tab.locator("#prompts > li").count
    assert count() == 8
    tab.keyboard.press("/")
    tab.keyboard.type("number 2")
    assert count() == 1
    tab.locator("#search").fill("")
    tab.get_by_label("Subset", exact=True).select_option("EDGE")
    assert count() == 4
    tab.get_by_label("Category", exact=True).select_option("kind 1")
    assert count() == 2
    assert tab.locator(".meter").all_inner_texts()[0].startswith("EDGE n 2")
    turn(tab, 2.0)
    tab.get_by_label("flips only").check()
    assert count() == len(tab.locator("#prompts > li.up").all()) > 0
    turn(tab, 0.0)
    assert count() == 0
    assert "0 of 0 prompts shown, 8 in all" in tab.locator("#shown").inner_text()


def test_two_runs_stand_side_by_side_and_more_can_be_compared(visit, scores):
    tab = visit("two")
    turn(tab, 2.0)
    who = "HARMFUL-holdout-1"
    expected = score(scores, 2.0, who)
    shown = row(tab, who).locator(".score").all_inner_texts()
    assert shown == [text_of(expected), text_of(expected - 0.5)]
    tab.get_by_role("button", name="Compare with another").click()
    assert row(tab, who).locator(".score").count() == 3
    tab.get_by_role("button", name="remove two").last.click()
    assert row(tab, who).locator(".score").count() == 2
    tab.screenshot(path=str(SHOTS / "two_runs.png"), full_page=True)


def test_tables_sort_and_filter(visit, scores):
    tab = visit("one")
    table = tab.locator(".table")
    names = table.locator("th").all_inner_texts()
    assert table.locator("tbody tr").count() == 6
    assert set(table.locator("tbody td:first-child").all_inner_texts()) == {"learned"}
    table.get_by_label("direction", exact=True).select_option("random")
    assert "18 rows" in table.locator("[role=status]").inner_text()
    head = table.locator("th").nth(names.index("alpha"))
    for order, values in (("ascending", ["−2", "2"]), ("descending", ["2", "−2"])):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        column = table.locator(f"tbody td:nth-child({names.index('alpha') + 1})").all_inner_texts()
        assert [column[0], column[-1]] == values
    table.get_by_label("Search", exact=True).fill("harmful")
    assert "9 rows" in table.locator("[role=status]").inner_text()


def test_light_and_dark_follow_the_system_and_the_switch(visit):
    colour = "getComputedStyle(document.body).backgroundColor"
    tab = visit("completions", scheme="dark")
    night = tab.evaluate(colour)
    shot(tab, "dark.png")
    tab.get_by_role("button", name="Dark").click()
    assert tab.evaluate(colour) != night
    assert visit("one").evaluate(colour) == tab.evaluate(colour)


def test_figures_are_drawn_when_they_come_into_view(visit):
    tab = visit("one")
    assert tab.locator("#figures .figure").last.locator(".main-svg").count() == 0
    tab.locator("#figures").scroll_into_view_if_needed()
    tab.locator("#figures .main-svg").first.wait_for()
    tab.locator("#figures .figure").last.scroll_into_view_if_needed()
    tab.locator("#figures .figure").last.locator(".main-svg").first.wait_for()
    assert "Refusal along the dial" in tab.locator("#figures").inner_text()


def test_figures_out_of_view_are_on_paper_too(visit):
    tab, drawn = visit("one"), "#figures .figure:has(.main-svg)"
    assert tab.locator(drawn).count() < 3
    tab.emulate_media(media="print")
    tab.wait_for_function("typeof window.Plotly !== 'undefined'")
    boxes = tab.locator("#figures .figure").count()
    assert tab.locator(drawn).count() == boxes == 3
    ends = "[...document.querySelectorAll('.main-svg')].map((one) => one.clientWidth)"
    assert max(tab.evaluate(ends)) <= 660
    tab = visit("one")
    tab.pdf(path=str(SHOTS / "printed.pdf"), print_background=True)
    assert tab.locator(drawn).count() == boxes


BEYOND = """[...document.querySelectorAll("header *, main *")].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width && !one.closest(".hidden") && (box.right > innerWidth + 1 || box.left < -1);
}).map((one) => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`)"""


@pytest.mark.parametrize("name", ["one", "two", "completions"])
def test_on_paper_nothing_is_beyond_the_page_nor_left_out(visit, name):
    """As wide as A4 within its margins, from a dark page: light, all rows of a table, figures no
    higher than a page, panels whose titles are clear of the axis above."""
    tab = visit(name, width=718, scheme="dark")
    turn(tab, 2.0)
    tab.emulate_media(media="print")
    tab.wait_for_function("typeof window.Plotly !== 'undefined'")
    assert tab.evaluate(BEYOND) == []
    assert tab.locator("html").get_attribute("data-theme") == "light"
    for count in tab.locator(".pages span").all_inner_texts():
        assert re.fullmatch(r"1 to (\d+) of \1 rows", count)
    assert (
        tab.evaluate(
            "Math.max(...[...document.querySelectorAll('.plot')].map((one) => one.clientHeight))"
        )
        <= 800
    )
    titles, axes = (
        [box.bounding_box() for box in tab.locator(f"#figures .figure:first-child {kind}").all()]
        for kind in (".annotation-text-g", ".g-xtitle, .g-x2title, .g-x3title")
    )
    assert titles
    assert axes
    for title in titles:
        for axis in axes:
            clear = title["y"] >= axis["y"] + axis["height"] or (
                axis["y"] >= title["y"] + title["height"]
            )
            assert clear or title["x"] >= axis["x"] + axis["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1300, 800), (400, 700)])
def test_a_figure_of_its_own_fills_its_window(visit, size, scheme):
    tab = visit("curves", width=size[0], scheme=scheme, height=size[1])
    tab.locator(".main-svg").first.wait_for()
    wide, high = tab.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    drawn = tab.locator(".main-svg").first.bounding_box()
    assert wide == size[0] == drawn["width"]
    assert high >= size[1] - 16
    assert tab.locator("h1").inner_text() == "Refusal along the dial"
    stacked = tab.evaluate("document.querySelector('.plot')._fullLayout.xaxis.domain[1] === 1")
    assert stacked == (size[0] == 400)
    tab.screenshot(path=str(SHOTS / f"figure_{size[0]}_{scheme}.png"), full_page=True)
    tab.set_viewport_size({"width": size[0] - 50, "height": size[1]})
    tab.wait_for_timeout(500)
    assert tab.locator(".main-svg").first.bounding_box()["width"] == size[0] - 50


def test_what_a_narrow_figure_says_is_whole_and_in_its_place(visit):
    tab = visit("panels", width=400, height=1600)
    tab.locator(".main-svg").first.wait_for()
    box = {
        name: [one.bounding_box() for one in tab.locator(f".infolayer {name}").all()]
        for name in (".annotation-text-g", ".legend", ".colorbar")
    }
    assert len(box[".annotation-text-g"]) == 3
    for title in box[".annotation-text-g"]:
        assert title["x"] >= 0
        assert title["x"] + title["width"] <= 400
    (legend,), (bar,) = box[".legend"], box[".colorbar"]
    assert legend["y"] + legend["height"] <= bar["y"]
    shown = [tab.locator(f".g-{axis}title").text_content() for axis in ("y", "y2", "y3")]
    assert shown == ["head", "head", "p"]  # an empty panel has none
    tab.screenshot(path=str(SHOTS / "panels_400.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 400])
def test_nothing_of_a_report_is_wider_than_the_window(visit, width, scheme):
    tab = visit("completions", width=width, scheme=scheme)
    figures = tab.locator("#figures .figure")
    for i in range(figures.count()):
        figures.nth(i).scroll_into_view_if_needed()
        figures.nth(i).locator(".main-svg").first.wait_for()
        box = figures.nth(i).locator(".main-svg").first.bounding_box()
        assert box["x"] + box["width"] <= width
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.screenshot(path=str(SHOTS / f"report_{width}_{scheme}.png"), full_page=True)


def test_a_narrow_window_needs_no_sideways_scrolling(visit):
    tab = visit("completions", width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    shot(tab, "narrow.png")


def test_everything_that_can_be_used_has_a_name(visit):
    tab = visit("two")
    nameless = tab.evaluate(
        """[...document.querySelectorAll("input, select, button")].filter((one) =>
            !(one.labels?.length && [...one.labels].some((l) => l.textContent.trim())) &&
            !one.getAttribute("aria-label") && !(one.tagName === "BUTTON" && one.textContent.trim())
        ).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert tab.locator("#alpha").get_attribute("aria-valuetext").startswith("alpha")
    assert tab.locator("h1").count() == 1
    assert tab.locator("html").get_attribute("lang") == "en"
