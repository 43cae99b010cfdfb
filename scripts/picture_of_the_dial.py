"""A picture of a report's dial, as the README shows one: the page of a run in a headless browser.

The dial is turned by its own keys to the alpha nearest to --alpha, and the prompts that flip there
are shown. Needs playwright (a development tool) and an installed Chrome or Chromium.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, where the dial is turned to, and where the picture goes."""

    run: str = argument("a run folder")
    alpha: float = flag(4.0, "where the dial is turned to, in the run's alphas")
    width: int = flag(1100, "of the window and the picture")
    height: int = flag(780, "of the picture")
    out: str = flag("docs/figures/dial.png", "the .png file to write")


def main(flags: Flags) -> None:
    from playwright.sync_api import sync_playwright

    from refusal_dial.figure_files import found_browser
    from refusal_dial.files import named, write_whole
    from refusal_dial.report.page import page
    from refusal_dial.report.reading import read_run
    from refusal_dial.run import find_run, read_table
    from refusal_dial.types import DialError

    out = named(flags.out, ".png")
    browser = found_browser()
    if browser is None:
        raise DialError("no Chrome or Chromium is installed: apt install chromium")
    folder = find_run(flags.run)
    alphas = sorted(read_table(folder, "summary", "alpha")["alpha"].unique())
    step = min(range(len(alphas)), key=lambda i: abs(alphas[i] - flags.alpha))
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=str(browser), args=["--no-sandbox"])
        tab = chrome.new_page(viewport={"width": flags.width, "height": flags.height})
        tab.set_content(page([read_run(folder)]))
        tab.get_by_label("flips only").check()
        tab.locator("#alpha").focus()
        tab.keyboard.press("Home")
        for _ in range(step):
            tab.keyboard.press("ArrowRight")
        top = tab.evaluate("document.getElementById('alpha').getBoundingClientRect().top + scrollY")
        picture = tab.screenshot(
            full_page=True,
            clip={"x": 0, "y": top - 80, "width": flags.width, "height": flags.height},
        )
        write_whole(out, picture)
    print(f"picture: {flags.out}, at alpha {alphas[step]:g}")


if __name__ == "__main__":
    cli.run(main)
