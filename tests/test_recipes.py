"""Recipes: flags from a file, the command line first; what is no recipe; figures side by side."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.command_line import argument, flag, parse_flags
from refusal_dial.cli.recipes import PublishedFigure, load_recipe, ours, print_published
from refusal_dial.common import DialError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Flags:
    run: str = argument("a run")
    layer: int = flag(20, "a layer")
    plain: bool = flag(False, "a switch")
    name: str = flag("x", "a name")
    config: str | None = cli.CONFIG_FLAG


def main(flags: Flags) -> None: ...


def flags(tmp_path, text, *argv):
    (tmp_path / "c.yaml").write_text(text)
    return parse_flags(Flags, ["--config", str(tmp_path / "c.yaml"), *argv], main)


def test_the_command_line_comes_before_the_file(tmp_path):
    found = flags(tmp_path, "layer: 3\nplain: true\nrun: r\nname: [a, b]\n", "--layer", "5")
    assert (found.layer, found.plain, found.run, found.name) == (5, True, "r", "a,b")
    assert found.config == str(tmp_path / "c.yaml")
    assert flags(tmp_path, "run: r", "other").run == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lyaer: 3", "unknown flag lyaer: did you mean --layer"),
        ("experiment: other", "is a config of other, and this is test_recipes"),
        ("layer: {a: 1}", "layer must be a value or a list of values"),
        ("layer:", "layer must be a value or a list of values, not None"),
        ("- a\n- b", "expected a mapping of flags such as 'layer: 20'"),
        ("a: [", "is not plain YAML in UTF-8"),
        ("a: !!python/object/apply:os.system [echo]", "is not plain YAML in UTF-8"),
        ("run: r\nlayer: deep", "--layer: expected a whole number, not 'deep'"),
        ("run: r\npublished: {figures: [{what: a}]}", "published needs study, findings"),
        ("run: r\nconfig: other.yaml", "unknown flag config"),
        ("layer: 2", "missing argument RUN"),
    ],
)
def test_what_is_no_recipe(tmp_path, text, message):
    with pytest.raises(DialError, match=message):
        flags(tmp_path, text)


def test_a_config_that_is_not_there_twice_or_without_a_file(tmp_path):
    with pytest.raises(DialError, match=r"no config file 'no\.yaml': expected"):
        parse_flags(Flags, ["--config=no.yaml"], main)
    with pytest.raises(DialError, match="--config is given twice"):
        parse_flags(Flags, ["--config=a", "--config=b"], main)
    with pytest.raises(DialError, match="--config needs a value"):
        parse_flags(Flags, ["--config", "--layer", "3"], main)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00a: \x80")
    with pytest.raises(DialError, match="is not plain YAML"):
        parse_flags(Flags, [f"--config={tmp_path / 'bad.yaml'}"], main)


def test_a_flag_given_twice_in_a_file(tmp_path):
    file = tmp_path / "twice.yaml"
    for again in ("n-random: 2", "n_random: 2"):
        file.write_text(f"n_random: 1\n{again}\n")
        with pytest.raises(DialError, match="n_random is given twice"):
            load_recipe(str(file))


TABLE = pd.DataFrame({"layer": [1, 2, 2], "strength": [0.0, 0.0, 1.0], "rate": [0.1, 0.2, 0.4]})


def test_our_number_is_found_where_the_recipe_says():
    where = {"layer": 2, "strength": 1}
    assert ours(PublishedFigure("a", 1.0, "rate", where), {"summary": TABLE}) == (0.4, 1)
    mean, rows = ours(PublishedFigure("a", 1.0, "rate", {"strength": 0}), {"summary": TABLE})
    assert (mean, rows) == (pytest.approx(0.15), 2)
    for figure in (
        PublishedFigure("a", 1.0, "rate", {"layer": 9}),
        PublishedFigure("a", 1.0, "none", {}),
        PublishedFigure("a", 1.0, "rate", {"none": 1}),
        PublishedFigure("a", 1.0, "rate", {}, "other"),
    ):
        assert ours(figure, {"summary": TABLE}) is None


def test_another_model_is_no_reproduction(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: big\npublished:\n  study: S\n  findings: [it works]\n  figures:\n"
        "    - {what: w, value: 0.5, column: rate, where: {layer: 1}}\n"
    )
    print_published(str(path), "embedded", {"summary": TABLE})
    shown = capsys.readouterr().out
    assert "published: it works" in shown
    assert "this is embedded, not big: the same recipe, not a reproduction" in shown
    assert "0.5" in shown
    assert "0.1" in shown
    print_published(str(path), "big", {"summary": TABLE})
    assert "reproduction" not in capsys.readouterr().out
    print_published(None, "big", {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_fits_its_experiment(path):
    recipe = load_recipe(str(path))
    assert recipe.experiment is not None
    assert recipe.study
    script = runpy.run_path(str(ROOT / "experiments" / f"{recipe.experiment}.py"))
    kind = script.get("Flags") or script["main"].__annotations__["flags"]
    if isinstance(kind, str):
        kind = script[kind]
    found = parse_flags(kind, ["--config", str(path), "--model", "embedded"], script["main"])
    assert found.model == "embedded"
    assert found.config == str(path)
