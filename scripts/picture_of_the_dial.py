"""A picture of a report's dial, as the README shows one: the page of a run in a headless browser.

The dial is turned by its own keys to the alpha nearest to --alpha, and the prompts that flip there
are shown. Needs playwright (a development tool) and an installed Chrome or Chromium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, flag, parse_whole
from refusal_dial.common import DialError, format_value

LEAST, MOST = 400, 8000  # pixels: the page needs room, and a browser draws twice as many


def _pixels(value: Any) -> int:
    if not LEAST <= parse_whole(value) <= MOST:
        raise DialError(f"expected {LEAST} to {MOST} pixels, not {format_value(value)}")
    return parse_whole(value)


@dataclass(frozen=True)
class Flags:
    """Which run, where the dial is turned to, and where the picture goes."""

    run: str = argument("a run folder")
    alpha: float = flag(4.0, "where the dial is turned to, in the run's alphas")
    width: int = flag(1100, f"pixels of the window and the picture, {LEAST} to {MOST}", _pixels)
    height: int = flag(780, f"pixels of the picture, {LEAST} to {MOST}", _pixels)
    out: str = flag("docs/figures/dial.png", "the .png file to write")


def main(flags: Flags) -> None:
    from refusal_dial.common import named, write_whole
    from refusal_dial.report.dial import dials
    from refusal_dial.report.page import report_page
    from refusal_dial.report.reading import read_run
    from refusal_dial.report.theme import found_browser

    out, browser = named(flags.out, ".png"), found_browser()
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise DialError("playwright is not installed: pip install playwright") from error
    if browser is None:
        raise DialError("no Chrome or Chromium is installed: apt install chromium")
    reading = read_run(flags.run)
    series = [one for run in dials([reading])["runs"] for one in run["series"]]
    if not series:
        raise DialError(f"{flags.run} steered nothing: a report of it has no dial")
    first = next((one for one in series if one["kind"] == "learned"), series[0])
    alphas = {0.0: 0.0} | dict(zip(first["at"], first["alphas"], strict=True))
    wanted = min(max(flags.alpha, min(alphas.values())), max(alphas.values()))
    at = min(alphas, key=lambda at: abs(alphas[at] - wanted))
    step = sorted(alphas).index(at)
    try:
        with sync_playwright() as playwright:
            chrome = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            tab = chrome.new_page(viewport={"width": flags.width, "height": flags.height})
            tab.set_content(report_page([reading]))
            write_whole(out, _turned(tab, step, flags.width, flags.height))
    except Error as error:
        text = " ".join(str(error).split())[:200]
        raise DialError(f"{browser} drew no picture ({text}): give another size") from error
    print(f"picture: {flags.out}, at alpha {alphas[at]:g}")


def _turned(tab: Any, step: int, width: int, height: int) -> bytes:
    """The dial at a step of its alphas, from a little above it."""
    tab.locator("html[data-ready]").wait_for()
    tab.get_by_label("flips only").check()
    tab.locator("#alpha").focus()
    tab.keyboard.press("Home")
    for _ in range(step):
        tab.keyboard.press("ArrowRight")
    top = tab.evaluate("document.getElementById('alpha').getBoundingClientRect().top + scrollY")
    clip = {"x": 0, "y": max(0, top - 80), "width": width, "height": height}
    picture: bytes = tab.screenshot(full_page=True, clip=clip)
    return picture


if __name__ == "__main__":
    cli.run(main)
