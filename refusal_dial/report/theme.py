"""How every figure looks, and how a figure becomes a file.

Each kind of direction and each subset of prompts always has its own colour. The .html holds plotly
itself, works offline and fills its window; .png, .pdf and .svg are drawn by a browser that is found
here.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs

from refusal_dial.common import UNIT_NAMES, DialError, located, write_whole

# --------------------------------------------------------------------------------------------------
# How every figure looks: one typeface, few colours, and each kind of direction always in its own.
#
# Subsets and the learned direction have colours of Okabe and Ito (2008), which the common kinds of
# colour blindness tell apart; controls have others. No colour has two meanings. Intervals are
# bands.


BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

LIGHT_BLUE = "#8DBEDC"  # the learned direction, the other way

GOLD, VIOLET, WINE, TEAL = "#A6761D", "#6A3D9A", "#882255", "#1B8A99"

SPARE = ("#808000", "#8B5A4A")
"""Olive and sienna: of kinds that have no colour of their own."""

GREY, BLACK = "#767676", "#000000"

COLOURS = {
    "learned": BLUE,
    "baseline": BLACK,
    "random": GREY,
    "random_detector": GREY,
    "shuffled": GOLD,
    "covariance": WINE,
    "length": TEAL,
    "conditional": VIOLET,
}

SUBSET_COLOURS = {
    "HARMFUL": VERMILLION,
    "CHALLENGING": VERMILLION,
    "EDGE": PURPLE,
    "BENIGN": GREEN,
}

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"

LINES = "#D9D9D6"

ALPHA = f"alpha ({UNIT_NAMES['residual']})"
"""What alpha is called where it is displayed as `in_norms` has it."""


SCORE_AXIS = "refusal score (log-odds)"


def colour_of(kind: str) -> str:
    """The colour of a kind of direction; one that has none of its own gets the same one always."""
    return COLOURS.get(kind) or SPARE[zlib.crc32(kind.encode()) % len(SPARE)]


def subset_colour(subset: str) -> str:
    """The colour of a subset of prompts, the same in every figure."""
    return SUBSET_COLOURS.get(subset, BLUE)


def escaped(text: str) -> str:
    """Plotly reads a little HTML in titles and labels; names are data."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unit_label(dial: str, settings: Mapping[str, Any]) -> str:
    """The title of the axis of a dial: its name, and the unit that the run recorded."""
    unit = settings.get("alpha_unit")
    return f"{dial} ({UNIT_NAMES.get(unit, unit)})" if unit else dial


def in_norms(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `alpha` in mean residual norms, as it is displayed."""
    return table.assign(alpha=table["alpha_relative"]) if "alpha_relative" in table else table


def title_of(
    config: Mapping[str, Any], question: str, rows: pd.DataFrame | None = None, n: str = ""
) -> str:
    """The question; then model, layer, site and position from a run's config; and the number of
    prompts (of openings, where the run had those) in `rows`, those that are drawn, or `n` in words.
    Where only the unsteered model is drawn, layer, site and position say nothing, and are left
    out."""
    settings = config["settings"]
    unsteered = rows is not None and "direction" in rows and set(rows["direction"]) == {"baseline"}
    layers = "" if unsteered else _layers(settings.get("layer"))
    counted = 0 if rows is None else prompts_in(rows)
    if counted and not n:
        n = f"{counted} {'openings' if 'openings' in settings else 'prompts'}"
    about = [", ".join(filter(None, [str(settings["model"]["name"]), layers]))]
    about.append(f"n = {n}" if n else "")
    if not unsteered:
        about.append(settings.get("site") or "")
        about.append(f"position {settings['pos']}" if settings.get("pos") is not None else "")
    return f"{question}<br><sup>{' · '.join(map(escaped, filter(None, about)))}</sup>"


def prompts_in(rows: pd.DataFrame) -> int:
    """How many prompts these rows are about: a row per prompt and cell, or a summary with `n` for
    each group. Groups that a summary holds both together (`all`) and apart are counted once."""
    if "prompt_id" in rows:
        return int(rows["prompt_id"].nunique())
    if "split" in rows and (rows["split"] == "all").any():
        rows = rows[rows["split"] == "all"]
    groups = [name for name in ("subset", "split", "category") if name in rows]
    return int(rows.groupby(groups, dropna=False)["n"].max().sum()) if len(rows) else 0


def _layers(value: Any) -> str:
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if not layers:
        return "" if value is None else "all layers"
    some = ", ".join(map(str, layers)) if len(layers) < 7 else f"{len(layers)} of them"
    return f"layer {some}" if len(layers) == 1 else f"layers {some}"


def add_line(
    figure: go.Figure, x: Any, y: Any, colour: str, name: str, at: Mapping[str, int], legend: bool
) -> None:
    """A line through the points of a curve, in the panel `at`."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": colour, "width": 2},
        marker={"size": 5},
        **at,
    )


def add_band(
    figure: go.Figure, x: Any, lo: Any, hi: Any, colour: str, name: str, at: Mapping[str, int]
) -> None:
    """An interval around a curve, drawn there and back; hidden with the curve called `name`."""
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*hi, *lo[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        **at,
    )


def add_draws(
    figure: go.Figure,
    draws: Sequence[tuple[Any, Any]],
    colour: str,
    name: str,
    at: Mapping[str, int],
    legend: bool,
) -> None:
    """A thin line through the points of every draw of a control, under what is drawn later."""
    xs: list[Any] = []
    ys: list[Any] = []
    for x, y in draws:
        xs += [*x, None]  # None: the line ends here
        ys += [*y, None]
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": colour, "width": 1 if len(draws) > 1 else 1.5},
        opacity=min(0.9, max(0.15, 6 / len(draws))),
        **at,
    )


def read_so(title: str, how: str) -> str:
    """The title with a line or two that say how the figure is read."""
    return "<br>".join([title, *(f"<sup>{escaped(line)}</sup>" for line in wrap(how, 84))])


def add_better(figure: go.Figure, col: int, down: bool = False) -> None:
    """An arrow into the upper left corner of a panel, or the lower left one: where a trade-off is
    better."""
    y, ay = (0.01, -34) if down else (0.99, 34)
    figure.add_annotation(
        text="better",
        **{"x": 0.01, "y": y, "ax": 46, "ay": ay, "arrowhead": 2, "arrowcolor": GREY},
        xref=f"x{col if col > 1 else ''} domain",
        yref=f"y{col if col > 1 else ''} domain",
    )


def add_unsteered(figure: go.Figure, x: float, y: float, col: int) -> None:
    """The unsteered model in a panel of a trade-off: a diamond."""
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        name="unsteered",
        legendgroup="unsteered",
        showlegend=col == 1,
        marker={"color": colour_of("baseline"), "symbol": "diamond", "size": 11},
        hovertemplate="unsteered<br>%{x:.2f}, %{y:.2f}<extra></extra>",
        row=1,
        col=col,
    )


def anchored(values: Any) -> list[float] | None:
    """From 0 to 1 where all values are there, as those of a scorer of toxicity are; else the axis
    finds its own range."""
    known = pd.Series(values, dtype=float).dropna()
    return [-0.02, 1.02] if len(known) and known.between(0, 1).all() else None


def error_bars(value: pd.Series[Any], lo: pd.Series[Any], hi: pd.Series[Any]) -> dict[str, Any]:
    """plotly's bars from the ends of an interval, which it takes as distances from the value."""
    return {"array": hi - value, "arrayminus": value - lo}


def styled(figure: go.Figure, title: str, height: int, width: int) -> go.Figure:
    """The figure in the common look: thin axes, no frame, the legend below, fixed size."""
    axis = {"linecolor": LINES, "tickcolor": LINES, "zeroline": False, "title_font": {"size": 13}}
    figure.update_xaxes(title_standoff=8, **axis)
    figure.update_yaxes(title_standoff=8, **axis)
    figure.update_annotations(font={"size": 13})
    more = 18 * max(0, title.count("<br>") - 1)
    return figure.update_layout(
        template="simple_white",
        title={
            "text": title,
            "font": {"size": 18},
            **{"x": 0, "xref": "paper", "xanchor": "left"},
            **{"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 24}},
        },
        height=height + more,
        width=width,
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        margin={"t": 100 + more, "l": 70, "r": 30, "b": 90},
        font={"family": FONT, "size": 13},
    )


# --------------------------------------------------------------------------------------------------
# Figures become files: .html always, and .png, .pdf or .svg by a browser that is found here.
#
# The .html holds plotly itself and works offline; the same figure gives the same bytes. The other
# formats are drawn by kaleido in Chrome or Chromium.


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
    Raises `DialError` for an .html file in which several figures would stand, and, after the .html
    is written, if other formats are asked for and kaleido or a browser is missing or fails.
    """
    stems = _stems(list(figures), located(folder if out is None else out), out)
    written = [
        write_whole(Path(f"{stem}.html"), figure_page(figure, name))
        for (name, figure), stem in zip(figures.items(), stems, strict=True)
    ]
    others = [one for one in dict.fromkeys(formats) if one != "html"]
    if others:
        drawn = [(figure, stem) for figure, stem in zip(figures.values(), stems, strict=True)]
        written += _draw(
            [(figure, Path(f"{stem}.{one}")) for figure, stem in drawn for one in others]
        )
    return written


def _stems(names: list[str], where: Path, out: str | None) -> list[str]:
    if out is not None and where.suffix == ".html" and not where.is_dir():
        if len(names) > 1:
            raise DialError(
                f"--out {out!r} is one file, and these are {len(names)} figures "
                f"({', '.join(names)}): give a folder"
            )
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


# --------------------------------------------------------------------------------------------------
# Pages.


def template(name: str, **filters: Callable[[Any], Any]) -> Template:
    """A page's template, which stands beside this file. Every text put into it is escaped; an
    unknown name in it is an error."""
    pages = Environment(
        loader=PackageLoader("refusal_dial.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    pages.filters.update(filters)
    return pages.get_template(name)


def figure_page(figure: go.Figure, name: str) -> str:
    """A figure as a page of its own, which fills its window, light or dark, and works offline; the
    same figure gives the same bytes."""
    return template("figure.html").render(
        name=name,
        title=name.replace("_", " "),
        data=inert_json(json.loads(figure.to_json())),
        plotly=packed_plotly(),
        script=page_part("unpacked.js") + page_part("fitted.js"),
    )


@cache
def packed_plotly() -> str:
    """Plotly's script, 4.8 MB, in 2 MB."""
    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """A text as base64 of its gzip, which a page unpacks by `DecompressionStream`."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def page_part(name: str) -> str:
    """A style or a script of the pages, which stands beside this file."""
    return files("refusal_dial.report").joinpath(name).read_text(encoding="utf-8")


def inert_json(data: Any) -> str:
    """JSON that is inert inside a script element, whatever the texts in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
