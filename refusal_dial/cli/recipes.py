"""Recipes: a YAML file with a script's flags and, of a published study, its figures.

    experiment: caa_refusal          # which script it is for; may be left out
    layer: [12, 14, 16]              # any flag of the script, as its own help names it
    published:
      study: "Who, which model, where"
      findings: ["what was found, in words"]
      figures:
        - {what: "refused at s=1", value: 1.0, column: refusal_rate, where: {strength: 1}}

A figure's `where` picks rows of a table of the run (`table`, the summary if not given), and
`column` names what stands beside the published `value`. This module reads and prints. What a flag
means it leaves to the script.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refusal_dial.common import DialError, format_value, located, one_line, terminal

if TYPE_CHECKING:
    import pandas as pd

RESERVED = ("experiment", "published")

MOST_BYTES, MOST_NODES = 2**20, 10_000
"""Of a recipe, and of the values in it with all its anchors written out: ours have a hundred."""

TAGGED_WRONGLY = (ValueError, AttributeError, LookupError, TypeError)
"""What PyYAML raises of a value that is not of the kind that its tag names (`!!bool x`)."""

_WIDTH = 118


@dataclass(frozen=True)
class PublishedFigure:
    """A published number, and where ours stands."""

    what: str
    value: float | str
    column: str
    where: Mapping[str, Any]
    table: str = "summary"


@dataclass(frozen=True)
class Recipe:
    """The flags of a file, as a person would type them, and what was published."""

    path: str
    experiment: str | None
    flags: Mapping[str, str | None]
    study: str
    findings: tuple[str, ...]
    figures: tuple[PublishedFigure, ...]


def load_recipe(path: str) -> Recipe:
    """Read a recipe. Plain YAML only: a tag that would build an object is refused.

    Raises `DialError` for a file that is missing, is no mapping of flags, or whose published part
    has another shape.
    """
    import yaml

    file = located(path)
    if not file.is_file():
        raise DialError(f"no config file {path!r}: expected a .yaml file of flags")
    if file.stat().st_size > MOST_BYTES:
        raise DialError(f"{path} is {file.stat().st_size} bytes: expected a recipe, which is short")
    try:
        written = file.read_text(encoding="utf-8")
        node = yaml.compose(written, Loader=yaml.SafeLoader)
        if _written_out(node, {}) > MOST_NODES:
            raise DialError(
                f"{path} stands for more than {MOST_NODES} values, its anchors written out: "
                "expected a recipe, which is short"
            )
        found = yaml.safe_load(written)
    except DialError:
        raise
    except (yaml.YAMLError, RecursionError, *TAGGED_WRONGLY) as error:
        why = "" if isinstance(error, LookupError | AttributeError) else one_line(error)
        why = why or "a value is not of the kind that its tag names"
        raise DialError(f"{path} is not plain YAML in UTF-8: {why}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DialError(f"{path}: expected a mapping of flags such as 'layer: 20'")
    names = [key.value.replace("-", "_") for key, _ in node.value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DialError(f"{path}: {twice[0]} is given twice")
    flags = {k.replace("-", "_"): _typed(path, k, v) for k, v in found.items() if k not in RESERVED}
    experiment = found.get("experiment")
    if experiment is not None and not isinstance(experiment, str):
        raise DialError(
            f"{path}: experiment must be a script's name, not {format_value(experiment)}"
        )
    return Recipe(path, experiment, flags, *_published(path, found.get("published") or {}))


def _written_out(node: Any, known: dict[int, float]) -> float:
    """How many values a YAML node stands for with every anchor in it written out, merge keys too;
    infinitely many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1.0 + sum(_written_out(one, known) for one in inner)
    return known[id(node)]


def _typed(path: str, name: str, value: Any) -> str | None:
    """A value as it would be typed after its flag; None for a switch that is on."""
    if value is True:
        return None
    try:
        return _as_typed(path, name, value)
    except ValueError as error:
        if isinstance(error, DialError):
            raise
        raise DialError(f"{path}: {name} holds a number of more than 4300 digits") from error


def _as_typed(path: str, name: str, value: Any) -> str:
    if isinstance(value, list) and value and not any(isinstance(v, list | dict) for v in value):
        return ",".join(str(part) for part in value)
    if value is None or isinstance(value, list | dict):
        raise DialError(
            f"{path}: {name} must be a value or a list of values, not {format_value(value)}"
        )
    return str(value)


def _published(path: str, found: Any) -> tuple[str, tuple[str, ...], tuple[PublishedFigure, ...]]:
    try:
        figures = tuple(PublishedFigure(**figure) for figure in found.get("figures", []))
        findings, study = found.get("findings", []), found.get("study", "")
        for text in (study, *findings, *(one.what for one in figures)):
            if not isinstance(text, str):
                raise TypeError(f"expected text, not a {type(text).__name__}")
        for one in figures:
            if not isinstance(one.where, dict) or not isinstance(one.value, int | float | str):
                raise TypeError("a figure's value is a number or text, its where a mapping")
        return study, tuple(findings), figures
    except (TypeError, AttributeError) as error:
        raise DialError(
            f"{path}: published needs study, findings (a list of texts) and figures (each with "
            f"what, value, column, where): {error}"
        ) from error


def ours(figure: PublishedFigure, tables: Mapping[str, pd.DataFrame]) -> tuple[float, int] | None:
    """The run's own number for a figure: the mean over the rows that `where` picks, and how many
    they are; None where the run has no such row."""
    rows = tables.get(figure.table)
    if rows is None or figure.column not in rows.columns:
        return None
    for name, value in figure.where.items():
        if name not in rows.columns:
            return None
        rows = rows[rows[name] == value]
    values = rows[figure.column].dropna()
    return (float(values.astype(float).mean()), len(values)) if len(values) else None


def _told(found: tuple[float, int] | None) -> str:
    if found is None:
        return "not run"
    mean, rows = found
    return f"{mean:.3g}" if rows == 1 else f"{mean:.3g} (mean of {rows})"


def print_published(config: str | None, model: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Beside each published figure the run's own, and a line that says when the model is another:
    then it is the same recipe, and no reproduction. Nothing without a config."""
    recipe = load_recipe(config) if config else None
    if recipe is None or not (recipe.figures or recipe.findings):
        return
    from rich.table import Table

    meant = recipe.flags.get("model")
    console = terminal(_WIDTH)
    if recipe.figures:
        table = Table(title=f"Published: {recipe.study}", title_justify="left", header_style="bold")
        for name in ("figure", "published", f"here ({model})"):
            table.add_column(name, justify="left" if name == "figure" else "right")
        for figure in recipe.figures:
            found = ours(figure, tables)
            table.add_row(figure.what, f"{figure.value}", _told(found))
        console.print(table)
    for finding in recipe.findings:
        print(f"published: {finding}")
    if model != meant:
        print(f"this is {model}, not {meant}: the same recipe, not a reproduction")
