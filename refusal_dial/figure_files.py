"""Figures become files: .html always, and .png, .pdf or .svg by a browser that is found here.

The .html holds plotly itself and works offline; the same figure gives the same bytes. The other
formats are drawn by kaleido in Chrome or Chromium. This module does not know what a figure shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from refusal_dial.files import located, write_whole
from refusal_dial.types import DialError

BROWSERS = (
    *("google-chrome", "google-chrome-stable", "chrome", "chromium", "chromium-browser"),
    *("microsoft-edge", "brave-browser"),
)
USUAL_PLACES = (
    "/usr/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)
SCALE = 2  # pixels of a .png for each pixel of the figure


def found_browser() -> Path | None:
    """Chrome or Chromium: what `BROWSER_PATH` names, else on the path or where it usually is."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return Path(named) if Path(named).is_file() else None
    on_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if on_path:
        return Path(on_path)
    return next((Path(place) for place in USUAL_PLACES if Path(place).is_file()), None)


def write_figures(
    figures: Mapping[str, go.Figure],
    folder: str | Path,
    formats: Sequence[str] = ("html",),
    out: str | None = None,
) -> list[Path]:
    """Write every figure as `<name>.html`, and in the other formats; the paths, .html first.

    They go into `folder`, or where `out` names: a folder, or for a single figure its .html file.
    Raises `DialError`, after the .html is written, if other formats are asked for and kaleido or a
    browser is missing or fails.
    """
    stems = _stems(list(figures), located(folder if out is None else out))
    written = [
        write_whole(Path(f"{stem}.html"), figure.to_html(include_plotlyjs=True, div_id=name))
        for (name, figure), stem in zip(figures.items(), stems, strict=True)
    ]
    others = [one for one in dict.fromkeys(formats) if one != "html"]
    if others:
        drawn = [(figure, stem) for figure, stem in zip(figures.values(), stems, strict=True)]
        written += _draw(
            [(figure, Path(f"{stem}.{one}")) for figure, stem in drawn for one in others]
        )
    return written


def _stems(names: list[str], where: Path) -> list[str]:
    if where.suffix == ".html" and len(names) == 1:
        return [str(where.with_suffix(""))]
    return [str(where / name) for name in names]


def _draw(wanted: Sequence[tuple[go.Figure, Path]]) -> list[Path]:
    kinds = ", ".join(dict.fromkeys(path.suffix[1:] for _, path in wanted))
    browser = found_browser()
    if browser is None:
        raise DialError(
            f"the .html is written, but {kinds} needs Chrome or Chromium and none was found: "
            "apt install chromium, or plotly_get_chrome, or set BROWSER_PATH"
        )
    if find_spec("kaleido") is None:
        raise DialError(
            f"the .html is written, but {kinds} needs kaleido: pip install 'refusal-dial[figures]'"
        )
    import plotly.io as pio

    os.environ.setdefault("BROWSER_PATH", str(browser))
    paths = [path for _, path in wanted]
    try:
        pio.write_images(
            [figure for figure, _ in wanted],
            paths,
            scale=SCALE,
            width=[figure.layout.width for figure, _ in wanted],
            height=[figure.layout.height for figure, _ in wanted],
        )
    except Exception as error:  # a browser can fail in as many ways as there are machines
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DialError(
            f"the .html is written, but {browser} drew no {kinds} ({reason}): "
            "set BROWSER_PATH to another Chrome or Chromium"
        ) from error
    return paths
