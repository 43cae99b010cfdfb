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


def nested(item: str, times: int, depth: int) -> str:
    """Anchors that each repeat the one before: `times ** depth` values in a few lines."""
    lines = [f"a0: &a0 {item}"]
    for i in range(1, depth + 1):
        repeated = ", ".join([f"*a{i - 1}"] * times)
        lines.append(f"a{i}: &a{i} [{repeated}]")
    return "\n".join(lines)


def merged(depth: int) -> str:
    """Merge keys that each merge the one before twice."""
    lines = ["m0: &m0 {x: 1}"]
    lines += [f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, depth + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        nested("[1, 2]", 10, 9),
        merged(24),
        "published: {figures: [{what: a, value: 1, column: b, where: &w {w: *w}}]}",
    ],
)
def test_anchors_that_stand_for_more_than_a_recipe_holds_are_refused(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert len(text) < 1000
    with pytest.raises(DialError, match="stands for more than 10000 values") as error:
        load_recipe(str(file))
    assert "\n" not in str(error.value)


def test_a_few_anchors_and_a_merge_key_are_read(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("published:\n  findings: &f [a, b]\n  study: S\nname: [x, y]\n")
    assert load_recipe(str(file)).findings == ("a", "b")
    file.write_text(
        "published:\n  figures:\n    - &one {what: w, value: 1.0, column: c, where: {layer: 1}}\n"
        "    - {<<: *one, what: v}\n"
    )
    assert [one.what for one in load_recipe(str(file)).figures] == ["w", "v"]


def test_a_file_that_is_no_recipe_by_its_size_is_not_read(tmp_path):
    (tmp_path / "c.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(DialError, match="is 1048577 bytes: expected a recipe, which is short"):
        load_recipe(str(tmp_path / "c.yaml"))


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
    assert recipe.study or path.stem.startswith("smollm2_")  # ours, of no published study
    script = runpy.run_path(str(ROOT / "experiments" / f"{recipe.experiment}.py"))
    kind = script.get("Flags") or script["main"].__annotations__["flags"]
    if isinstance(kind, str):
        kind = script[kind]
    file = ["direction.pt"] if recipe.experiment == "verify_direction" else []
    typed = [*file, "--config", str(path), "--model", "embedded"]
    found = parse_flags(kind, typed, script["main"])
    assert found.model == "embedded"
    assert found.config == str(path)
