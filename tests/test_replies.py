"""Experiments on replies, on a tiny random model: rows, pairing, resuming, and both readings."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from script_case import load
from small_runs import small_run

from refusal_dial import directions
from refusal_dial.cli.flags import ComparisonFlags, PlotFlags
from refusal_dial.common import DialError
from refusal_dial.directions.files import direction_at
from refusal_dial.engine.score import score_grid
from refusal_dial.generate.completions import completion_text
from refusal_dial.generate.decode import decoding_of
from refusal_dial.report.replies import layer_strength
from refusal_dial.run.folder import read_config, read_table, read_verdict
from refusal_dial.run.plan import Budget, compute_all
from refusal_dial.scoring.judges import UNSCORED, Judge, Judgement, substring
from refusal_dial.studies import replies as layers
from refusal_dial.studies.base import load_study
from refusal_dial.studies.replies import (
    SYSTEM_NAME,
    ReplyPlan,
    conduct_replies,
    load_conversation,
    reply_cells,
    with_and_without,
)
from refusal_dial.studies.steering import learn, learned_from

ROOT = Path(__file__).parents[1]
SMALL = {"refusal_tokens": "I", "device": "cpu", "layer": (1, 2), "alphas": (-1.0, 0.0, 1.0)}
SMALL |= {"n_random": 1, "max_new_tokens": 4, "batch_size": 5, "k": 1}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {
            "text": f"{subset.lower()} {i} {'x' * (3 * i % 7)}",
            "subset": subset,
            "category": "ab"[i % 2],
            "pair_id": None if subset == "BENIGN" else str(i),
        }
        for subset in ("HARMFUL", "EDGE", "BENIGN")
        for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def flags_of(kind, qwen_folder, prompts, **more):
    return kind(model=str(qwen_folder), prompts=prompts, **{**SMALL, **more})


@pytest.fixture(scope="module")
def talk(qwen_folder, prompts):
    flags = flags_of(ComparisonFlags, qwen_folder, prompts)
    study = load_study(flags, flags.layer)
    talk = load_conversation(study, flags, study.prompts[:6], "Refuse.")
    return talk, flags, learn(study, flags, study.prompts[5:10])


def test_rows_hold_both_readings_of_every_cell(talk):
    talk, flags, learned = talk
    cells = with_and_without(reply_cells(talk.study, flags, learned), SYSTEM_NAME)
    assert len(cells) == (1 + 2 * 5) + (1 + 2 * 3)
    who = talk.tokens, talk.read, talk.prompts, talk.judge, talk.study.scorer
    plan = ReplyPlan(*who, talk.rows(), cells, decoding_of(flags), Budget(4, "auto", None))
    parts = [plan.compute(talk.model, task) for task in plan.tasks]
    assert [len(part) for part in parts] == [4 * len(cells), 2 * len(cells)]
    first = parts[0]
    assert set(first["label"]) <= {"full_compliance", "partial_refusal", "full_refusal", "unclear"}
    assert list(first["phrase"]) == [
        int(substring(completion_text(x))) for x in first["completion"]
    ]
    for system, tokens in talk.tokens.items():
        mine = [cell for cell in cells if cell.labels["system"] == system]
        scores = score_grid(
            talk.model, tokens.rows(0, 4), [c.hooks for c in mine], talk.study.scorer
        )
        scored = first.loc[first["system"] == system, "score"]
        assert scored.tolist() == pytest.approx(scores.flatten().tolist(), abs=1e-5)
    zero = first[(first["direction"] == "learned") & (first["alpha"] == 0)]
    own = first[(first["direction"] == "baseline")].set_index(["system", "prompt_id"])
    for _, row in zero.iterrows():
        assert row["completion"] == own.loc[(row["system"], row["prompt_id"]), "completion"]
    assert plan.compute(talk.model, plan.tasks[1]).equals(parts[1])
    # Rows come as soon as so many replies are there, and are the same ones.
    few = replace(plan, decoding=replace(plan.decoding, rows=9))
    assert {task.rows for task in few.tasks} <= set(range(1, 10))
    keys = ["system", "direction", "seed", "layer", "alpha", "prompt_id"]
    one, other = (
        table.sort_values(keys, kind="stable").reset_index(drop=True)
        for table in (pd.concat(parts), compute_all(talk.model, few))
    )
    assert list(one["completion"]) == list(other["completion"])
    assert one["score"].tolist() == pytest.approx(other["score"].tolist(), abs=1e-5)


def test_a_cell_under_a_system_message_that_nobody_gave(talk, tmp_path):
    talk, flags, _ = talk
    cells = with_and_without(reply_cells(talk.study, flags, []), "polite")
    with pytest.raises(DialError, match="no system message is called 'polite' here"):
        conduct_replies("any", talk, replace(flags, out=str(tmp_path)), cells, [], talk.rows())


def test_a_judge_that_cannot_judge_ends_the_run(talk, tmp_path):
    talk, flags, _ = talk

    def fails(completions, prompts):
        return [Judgement(UNSCORED) for _ in completions]

    broken = replace(talk, judge=Judge("broken", "1", fails))
    cells = reply_cells(talk.study, flags, [])
    rows = (talk.rows(), replace(flags, out=str(tmp_path / "run")))
    with pytest.raises(DialError, match=r"5 of 6 rows have no score .5 no label from the judge"):
        conduct_replies("any", broken, rows[1], cells, [], rows[0])
    run, summary = conduct_replies(
        "any", broken, replace(rows[1], max_missing=1.0), cells, [], rows[0]
    )
    assert read_verdict(run.folder)["judge"]["unscored"] == 6
    assert summary["refusal_rate"].isna().all()


FIGURES = {
    "eval_direction_on_xstest": ("plot_xstest", 3),
    "caa_refusal": ("plot_layer_strength", 2),
    "compare_prompting_steering": ("plot_conditions", 1),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_judge_is_in_the_run_and_its_figures_are_drawn(name, small_material, tmp_path):
    run, out = small_run(small_material, name), tmp_path / "run"
    shutil.copytree(run.folder, out)
    judge = read_verdict(out)["judge"]
    assert judge["judge"] == "builtin"
    assert sum(judge["labels"].values()) == len(read_table(out, "scores"))
    assert read_config(out)["settings"]["judge"]["version"] == judge["version"]
    assert "judge: builtin version" in run.printed
    script, count = FIGURES[name]
    draw = load(script)
    draw.main(PlotFlags(str(out)))
    assert len(list(out.glob("*.html"))) == count
    if name == "caa_refusal":
        _cells_are_those_of_the_table(draw.main, out, tmp_path)


def _cells_are_those_of_the_table(main, run, tmp_path):
    """On disk the figure has the reported half, where the choosing half says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    summary = pd.read_csv(copy / "summary.csv")
    reported = summary["split"] == layers.REPORT
    summary.loc[reported, "refusal_rate"] = np.linspace(0, 0.5, int(reported.sum()))
    summary.loc[~reported, "refusal_rate"] = 1.0
    summary.to_csv(copy / "summary.csv", index=False)
    verdict = json.loads((copy / "summary.json").read_text())
    del verdict["sha256"]  # as of a run that was made before there were any
    (copy / "summary.json").write_text(json.dumps(verdict))
    main(PlotFlags(str(copy)))
    half = layers.layer_table(read_table(copy, "summary", "system", "strength"), layers.REPORT)
    text = (copy / "layer_strength.html").read_text().replace("\\u002f", "/")
    for heat in layer_strength(half, "t").to_plotly_json()["data"]:
        assert json.dumps(heat["z"]["bdata"])[1:-1] in text


def test_a_direction_comes_from_a_file_or_a_run(talk, tmp_path):
    _, _, (first, second) = talk
    directions.save(first, tmp_path / "direction_layer1.safetensors")
    assert direction_at(str(tmp_path)).provenance.layer == 1
    directions.save(second, tmp_path / "direction_layer2.safetensors")
    assert direction_at(str(tmp_path), 2).provenance.layer == 2
    assert direction_at(str(tmp_path / "direction_layer1.safetensors")).provenance.layer == 1
    with pytest.raises(DialError, match=r"holds these directions: direction_layer1.*--layer"):
        direction_at(str(tmp_path))


def test_prompts_a_direction_was_learned_from_are_known_by_their_hash(talk):
    talk, _, (first, _) = talk
    everyone = talk.study.prompts
    assert learned_from(first, everyone) == list(everyone[5:10])
    changed = [replace(prompt, text=prompt.text + "!") for prompt in everyone]
    assert learned_from(first, changed) == []
