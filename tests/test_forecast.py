"""A dry run of every experiment counts the rows that the run then has, and writes nothing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
from script_case import ROOT, load
from small_runs import TYPED, WITHOUT_A_RUN, arguments, small_run

from refusal_dial.cli import command_line as cli
from refusal_dial.model.loading import load_model
from refusal_dial.run import forecast
from refusal_dial.run.folder import close_log, read_table
from refusal_dial.run.forecast import Estimate, Forecast, duration, print_forecast
from refusal_dial.run.plan import Grid, grid_of
from refusal_dial.studies import base as study
from refusal_dial.studies import continuation as opened

LOADED = cache(load_model)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Any time will do, and a model is loaded once."""
    monkeypatch.setattr(forecast, "ENOUGH", 0.0)
    monkeypatch.setattr(forecast, "REPEATS", 1)
    for module in (study, opened):
        monkeypatch.setattr(module, "load_model", LOADED)


def test_every_experiment_has_a_small_run():
    names = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert names == {*TYPED, *WITHOUT_A_RUN}
    for name in WITHOUT_A_RUN:
        assert "dry_run" not in get_type_hints(get_type_hints(load(name).main)["flags"])


@pytest.mark.parametrize("name", TYPED)
def test_a_dry_run_counts_the_rows_of_the_run_and_writes_nothing(name, small_material):
    run = small_run(small_material, name)
    assert run.dry_written == ()
    found = re.search(r"^rows: ([\d,]+) in ([\d,]+) batches$", run.dry_printed, re.MULTILINE)
    rows, tasks = (int(text.replace(",", "")) for text in found.groups())
    assert rows == len(read_table(run.folder, "scores"))
    assert tasks == len((Path(run.folder) / "journal.txt").read_text().splitlines())
    assert f"Dry run: {name}" in run.dry_printed
    of = r"[\d.]+ \w+( [\d.]+ \w+)?"  # 4.1 s, 1 min 20 s
    time = rf"^time: about {of} \({of} to {of}\), estimated from \d+ rows"
    assert re.search(time, run.dry_printed, re.MULTILINE)
    memory = r"^memory: ([\d.]+ GB of weights, and at most about [\d.]+ GB|)"
    assert re.search(memory, run.dry_printed, re.MULTILINE)


def test_a_dry_run_of_experiments_without_a_model(small_material, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed = f"--model {small_material.model} --device cpu --part gaussian --n-gaussian 10"
    typed += f" --prompts {small_material.prompts} --refusal-tokens I --layer 1"
    cli.run(load("calibrate").main, [*typed.split(), "--dry-run"])
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    cli.run(load("calibrate").main, [*typed.split(), "--out", "run"])
    (scores,) = Path("run").rglob("scores.csv")
    assert "Dry run: calibrate_gaussian" in printed
    assert f"rows: {len(read_table(scores.parent, 'scores')):,} in" in printed


def test_a_finished_run_is_left_as_it_is(small_material, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = load("score_models").main
    typed = [*arguments(small_material, "score_models"), "--out", "run"]
    cli.run(main, typed)
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()
    close_log()  # a process of its own would not have it open
    cli.run(main, [*typed, "--dry-run"])
    printed = capsys.readouterr().out
    assert "there already: 48 rows" in printed
    assert "time: none: this run is finished already" in printed
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_what_an_interrupted_run_holds_is_counted_and_left_alone(
    small_material, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main = load("score_models").main
    typed = [*arguments(small_material, "score_models"), "--out", "run"]
    cli.run(main, typed)
    Path("run/summary.json").unlink()
    torn = Path("run/scores.csv").read_bytes()[:-3]
    Path("run/scores.csv").write_bytes(torn)
    capsys.readouterr()
    cli.run(main, [*typed, "--dry-run"])
    printed = capsys.readouterr().out
    assert "rows: 48 in 7 batches" in printed
    assert "there already: 42 rows" in printed
    assert Path("run/scores.csv").read_bytes() == torn


def test_several_models_are_all_estimated(small_material, capsys):
    one, *typed = arguments(small_material, "score_models")
    two = f"{one},{small_material.model}"
    cli.run(load("score_models").main, [two, *typed, "--dry-run"])
    assert capsys.readouterr().out.count("rows: 48 in 7 batches") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (7500.0, "2 h 5 min"),
        (86400 * 3 + 3600.0 * 4, "3 d 4 h"),
    ],
)
def test_a_duration_is_shown_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_a_grid_has_the_values_of_every_label_numbers_by_size():
    labels = [
        {"direction": "baseline", "layer": None, "site": "", "alpha": 0.0},
        {"direction": "learned", "layer": 2, "site": "resid_pre", "alpha": 1.0},
        {"direction": "learned", "layer": 2, "site": "resid_pre", "alpha": -1.0},
    ]
    grid = grid_of({"EDGE": 3}, labels)
    assert grid.cells == 3
    assert grid.axes == {
        "direction": ("baseline", "learned"),
        "layer": (2,),
        "site": ("resid_pre",),
        "alpha": (-1.0, 0.0, 1.0),
    }


def test_labels_are_text_and_long_axes_are_cut(capsys):
    grid = Grid({"[red]EDGE[/red]": 2}, 9, {"layer": tuple(range(9))})
    time = Estimate(3700.0, 3500.0, 4000.0, 8)
    print_forecast(Forecast("e", "runs/e", grid, 18, 1, 0, time, 0.5, 1.25, "cpu"))
    printed = capsys.readouterr().out
    assert "[red]EDGE[/red] 2" in printed
    assert "0 to 8" in printed
    assert "time: about 1 h 1 min (58 min 20 s to 1 h 6 min), estimated from 8 rows" in printed
