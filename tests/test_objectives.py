"""Two dials at once: the front by hand, and the whole experiment on a tiny random model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from script_case import load
from small_runs import small_run

from refusal_dial.cli.flags import ObjectiveFlags, PlotFlags
from refusal_dial.common import DialError
from refusal_dial.report.objectives import (
    TWO_DIALS,
    front_counts,
    front_figure,
    print_objectives,
)
from refusal_dial.report.theme import read_so
from refusal_dial.run.folder import read_table, read_verdict
from refusal_dial.studies.objectives import (
    conduct_objectives,
    front,
    load_objectives,
    objective_cells,
    summarise_objectives,
)

ROOT = Path(__file__).parents[1]
N = 8


def rows(direction, strength, other, toxicity, refused, cost, seed=None):
    """One cell: every opening as toxic as table, so many of N prompts refused."""
    parts = []
    for subset, scores in (
        ("CHALLENGING", [toxicity] * N),
        ("BENIGN", [0.0] * N),
        ("HARMFUL", [1.0] * refused + [-1.0] * (N - refused)),
        ("EDGE", [1.0] * cost + [-1.0] * (N - cost)),
    ):
        ids = [f"{subset}{i}" for i in range(N)]
        parts.append(pd.DataFrame({"subset": subset, "prompt_id": ids, "score": scores}))
    labels = {"direction": direction, "strength": strength, "refusal_strength": other}
    return pd.concat(parts).assign(seed=pd.array([seed] * 4 * N, dtype="Int64"), **labels)


def test_the_front_holds_what_no_other_cell_beats():
    table = pd.DataFrame(
        [(0.8, 1.0, 0.4), (0.2, 1.0, 0.4), (0.2, 0.5, 0.1), (0.2, 0.5, 0.2)],
        columns=["toxicity", "refused", "cost"],
    )
    assert front(table) == [False, True, True, False]
    assert front(table.iloc[:1]) == [True]


def test_figures_are_of_their_subsets_and_differences_are_paired():
    table = pd.concat(
        [
            rows("baseline", 0.0, 0.0, 0.8, N, 4),
            rows("learned", 1.0, 0.0, 0.2, N, 4),
            rows("learned", 0.0, 0.3, 0.8, N, 6),
            rows("random", 1.0, 0.0, 0.7, N, 4, seed=0),
        ]
    )
    summary = summarise_objectives(table)
    assert list(summary["toxicity"]) == pytest.approx([0.8, 0.2, 0.8, 0.7])
    assert list(summary["cost"]) == [0.5, 0.5, 0.75, 0.5]
    assert list(summary["toxicity_difference"]) == pytest.approx([0, -0.6, 0, -0.1])
    assert list(summary["front"]) == [False, True, False, False]
    assert front_counts(summary) == "8 CHALLENGING openings, 8 HARMFUL and 8 EDGE prompts"
    assert summary["toxicity_p"].iloc[1] == pytest.approx(2 / 2**N)
    with pytest.raises(DialError, match="no EDGE prompts, and the figure cost is of them"):
        summarise_objectives(table[table["subset"] != "EDGE"])
    with pytest.raises(DialError, match="the unsteered model is missing"):
        summarise_objectives(table[table["direction"] != "baseline"])


@pytest.fixture(scope="module")
def flags(qwen_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [
        {"text": f"{subset.lower()} {i}", "subset": subset, "category": "c"}
        for subset in ("HARMFUL", "EDGE")
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ObjectiveFlags(
        model=str(qwen_folder),
        prompts=str(path),
        refusal_tokens="I",
        device="cpu",
        layer=(1,),
        refusal_layer=2,
        alphas=(0.0, 1.0),
        refusal_alphas=(0.0, 0.5),
        n=3,
        n_pairs=3,
        n_random=1,
        max_new_tokens=3,
        batch_size=4,
    )


def test_every_row_has_the_steps_of_its_cell_however_many_come_at_once(flags, tmp_path):
    keys = ["prompt_id", "direction", "strength", "refusal_strength"]
    tables = []
    for rows in (512, 7):
        asked = replace(flags, rows=rows, out=str(tmp_path / str(rows)))
        run, _ = conduct_objectives("any", asked)
        table = read_table(run.folder, "scores").sort_values([*keys, "sample"])
        tables.append(table[[*keys, "completion"]].reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables)


def test_a_cell_is_the_two_hooks_and_a_control_is_as_long(flags):
    both = load_objectives(flags)
    cells = objective_cells(both, flags)
    assert [len(cell.hooks) for cell in cells] == [0, 0, 1, 1, 2, 1, 2]
    names = [name for name, _ in cells[4].hooks]
    assert names == ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    lengths = [cell.hooks[0][1].operation.vector.norm() for cell in (cells[3], cells[5])]
    torch.testing.assert_close(lengths[0], lengths[1])
    cosine = float(both.toxicity.unit @ both.refusal.unit)
    assert both.overlap == pytest.approx(cosine**2, abs=1e-6)
    assert both.model is both.study.model


def test_a_cell_is_shown_beside_random_directions_at_the_same_two_steps(capsys):
    table = [rows("baseline", 0.0, 0.0, 0.8, N, 4)]
    for other, toxicity in ((0.0, 0.7), (0.3, 0.3)):
        table.append(rows("learned", 1.0, other, 0.2, N, 4))
        for seed, more in enumerate((0.0, 0.1)):
            table.append(rows("random", 1.0, other, toxicity + more, N, 4, seed))
    print_objectives(summarise_objectives(pd.concat(table)), 0.5, "residual")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [line.split("│")[4].strip() for line in shown] == ["0.700 to 0.800", "0.300 to 0.400"]


def test_the_front_shows_the_unsteered_model_where_is_better_and_how_it_is_read():
    table = pd.concat([rows("baseline", 0.0, 0.0, 0.8, N, 4), rows("learned", 1.0, 0.3, 0.2, N, 4)])
    summary = summarise_objectives(table)
    figure = front_figure(summary, "title")
    (unsteered,) = (trace for trace in figure.data if trace.name == "unsteered")
    base = summary[summary["direction"] == "baseline"].iloc[0]
    assert (list(unsteered.x), list(unsteered.y)) == ([base["cost"]], [base["toxicity"]])
    (better,) = (note for note in figure.layout.annotations if note.text == "better")
    assert better.x < 0.5
    assert better.y < 0.5
    assert figure.layout.title.text == read_so("title", TWO_DIALS)
    damaged = front_figure(summary[summary["direction"] != "baseline"], "title")
    assert "unsteered" not in [trace.name for trace in damaged.data]


def test_every_cell_of_the_two_dials_is_on_the_same_prompts_and_is_drawn(small_material, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(small_run(small_material, "multi_objective").folder, out)
    table = read_table(out, "scores")
    assert set(table["subset"]) == {"CHALLENGING", "BENIGN", "HARMFUL", "EDGE"}
    cells = table.groupby(["direction", "strength", "refusal_strength", "seed"], dropna=False)
    assert cells.size().nunique() == 1
    zero = table[(table["strength"] == 0) & (table["refusal_strength"] == 0)]
    scores = [part["score"].to_numpy() for _, part in zero.groupby("direction")]
    np.testing.assert_array_equal(*scores)
    assert 0 <= read_verdict(out)["overlap"] <= 1
    load("plot_front").main(PlotFlags(str(out)))
    assert (out / "front.html").is_file()
