"""Capability under steering: likelihoods as plain passes have them, tasks, the summary."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from small_runs import small_run
from tool_env import tool_python

from refusal_dial.cli import flags as typed_flags
from refusal_dial.cli.flags import CapabilityFlags, PlotFlags
from refusal_dial.common import DialError
from refusal_dial.data.tasks import OUR_TASKS, load_task
from refusal_dial.generate.likelihood import reply_logp
from refusal_dial.hooks import ablate, clamp, steer
from refusal_dial.report.capability import capability_figure, print_capability
from refusal_dial.run.folder import read_table, read_verdict
from refusal_dial.studies.capability import (
    CAPABILITY_AXES,
    LOSS,
    SCORE,
    load_capability,
    summarise_capability,
    task_questions,
    text_questions,
)

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
GRID = [
    [],
    [steer(UNIT, 5.0, layer=1, pos=-1)],
    [steer(UNIT, -5.0, layer=0, pos=-1), ablate(UNIT, layer=2, pos=-1)],
    [clamp(UNIT, 2.0, layer=1, pos=-1)],
]
EVERYWHERE = [
    [steer(UNIT, 5.0, layer=1, pos="all")],
    [steer(UNIT, 5.0, layer=1, pos="generated")],
    [steer(UNIT, 5.0, layer=1, pos="last_prompt")],
    [steer(UNIT, 5.0, layer=1, pos=-2)],
]


@pytest.fixture(scope="module")
def questions(qwen):
    return task_questions(qwen, "grammar", load_task("grammar", 6)[1])


def token_by_token(model, tokens, hooks, replies):
    """The same by decoding steps of the model itself, a prompt and a reply at a time."""
    from refusal_dial.generate.decode import follow

    out = []
    for i, mine in enumerate(replies):
        for ids in mine:
            steps = list(follow(model, tokens.rows(i, i + 1), hooks, [ids]))
            parts = [s.double().log_softmax(-1)[0, t] for s, t in zip(steps, ids, strict=False)]
            out.append(float(sum(parts)))
    return out


@pytest.mark.parametrize("grid", [GRID, EVERYWHERE], ids=["the newest token", "other positions"])
def test_a_reply_costs_what_decoding_says(qwen, questions, grid):
    """Read at once over a shared prompt, and token by token: the same log-probabilities."""
    some = questions.head(2)
    found = reply_logp(qwen, some.tokens, grid, some.replies)
    for row, cell in zip(found, grid, strict=True):
        alone = token_by_token(qwen, some.tokens, cell, some.replies)
        np.testing.assert_allclose(row, alone, atol=2e-4)
    if grid is GRID:
        assert (found[1] - found[0]).abs().max() > 0.1


def test_without_hooks_it_is_the_plain_forward_pass(qwen, questions):
    found = reply_logp(qwen, questions.tokens, [[]], questions.replies)[0]
    place = 0
    for ids, mask, mine in zip(
        questions.tokens.ids, questions.tokens.mask, questions.replies, strict=True
    ):
        for reply in mine:
            row = torch.tensor([[*ids[mask.bool()].tolist(), *reply]])
            with torch.no_grad():
                logp = qwen.original_model(row).logits[0].double().log_softmax(-1)
            at = range(row.shape[1] - len(reply) - 1, row.shape[1] - 1)
            value = sum(float(logp[i, t]) for i, t in zip(at, reply, strict=True))
            assert float(found[place]) == pytest.approx(value, abs=1e-4)
            place += 1


def test_a_hook_of_ones_own_is_taken_step_by_step(qwen, questions):
    def add(activation, hook=None):
        return activation + 0.5

    name = steer(UNIT, 1.0, layer=1, pos=-1)[0]
    mine = [(name, add)]
    some = questions.head(2)
    found = reply_logp(qwen, some.tokens, [mine], some.replies)[0]
    np.testing.assert_allclose(
        found, token_by_token(qwen, some.tokens, mine, some.replies), atol=2e-4
    )


def test_a_text_is_its_first_token_and_the_rest(qwen):
    from refusal_dial.data.prompts import Prompt

    texts = [Prompt("a", "Once upon a time.", "BENIGN"), Prompt("b", "x", "BENIGN")]
    found = text_questions(qwen, texts)
    assert list(found.rows["prompt_id"]) == ["a"]  # one token leaves nothing to foretell
    assert len(found.replies[0][0]) == len("Once upon a time.") - 1
    with pytest.raises(DialError, match="none of the plain texts has two tokens"):
        text_questions(qwen, texts[1:])


def test_our_tasks_are_whole_and_answers_are_not_told_by_their_place():
    assert OUR_TASKS == typed_flags.OUR_TASKS
    for name in OUR_TASKS:
        _, items = load_task(name)
        assert len(items) == 60
        assert len({item.question for item in items}) == 60
        assert all(len(set(item.choices)) == len(item.choices) for item in items)
        places = np.bincount([item.answer for item in items], minlength=len(items[0].choices))
        assert places.min() > 60 / len(items[0].choices) / 3
    for item in load_task("arithmetic")[1]:
        first, sign, second, _ = item.question.split()
        value = int(first) + int(second) * (1 if sign == "+" else -1)
        assert item.choices[item.answer] == str(value)
    assert load_task("facts", 5, 1) == load_task("facts", 5, 1)
    assert len(load_task("facts", 5, 1)[1]) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "", "choices": ["a", "b"], "answer": 0}, "expected a question, not ''"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "expected two choices or more"),
        ({"question": "q", "choices": "ab", "answer": 0}, "expected two choices or more"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "a choice, 0 to 1, not 2"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "a choice, 0 to 1, not True"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(row, message, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DialError, match=message) as error:
        load_task(str(file))
    assert "mine.jsonl" in str(error.value)
    with pytest.raises(DialError, match="unknown task 'fcts': did you mean 'facts'"):
        load_task("fcts")


# The summary, from rows whose figures are known.


def rows(shift: float = 0.0) -> pd.DataFrame:
    """40 items, 30 of them right unsteered; `shift` of them wrong under the dial."""
    frames = []
    for direction, strength in (("baseline", 0.0), ("learned", 1.0), ("random", 1.0)):
        wrong = int(40 * shift) if direction == "learned" else 0
        for measure, subset, values in (
            ("facts", "TASK", [float(i < 30 - wrong) for i in range(40)]),
            (LOSS, "TEXT", [1.0 + 0.01 * i + (0.5 if wrong else 0.0) for i in range(40)]),
            ("score", "EDGE", [1.0 if direction == "learned" else -1.0] * 40),
        ):
            place = (None, "", None) if direction == "baseline" else (1, "resid_pre", -1)
            about = dict(
                zip(
                    CAPABILITY_AXES,
                    (direction, None, *place, strength, strength, strength),
                    strict=True,
                )
            )
            ids = [f"{measure}{i}" for i in range(40)]
            frames.append(
                pd.DataFrame({"prompt_id": ids, "score": values}).assign(
                    **about, measure=measure, subset=subset, split="holdout"
                )
            )
    return pd.concat(frames, ignore_index=True)


def one(table, direction, measure):
    return table[(table["direction"] == direction) & (table["measure"] == measure)].iloc[0]


def test_a_cost_that_was_put_in_is_found_and_a_null_finds_none():
    table = summarise_capability(rows(0.25))
    facts = one(table, "learned", "facts")
    assert (facts["n"], facts["value"], facts["difference"]) == (40, 0.5, -0.25)
    assert facts["diff_lo"] < -0.25 < facts["diff_hi"] < 0
    loss = one(table, "learned", LOSS)
    assert loss["difference"] == pytest.approx(0.5)
    assert one(table, "learned", "refused")["difference"] == 1
    none = summarise_capability(rows(0.0))
    for measure in ("facts", LOSS):
        same = one(none, "learned", measure)
        assert same["difference"] == 0
        assert same["diff_lo"] <= 0 <= same["diff_hi"]
    assert one(none, "learned", "facts")["diff_lo"] < 0  # 40 items leave room for some


def test_cells_without_an_item_and_runs_without_a_baseline():
    table = rows()
    with pytest.raises(DialError, match="every cell needs every item once"):
        summarise_capability(table.drop(index=45))
    with pytest.raises(DialError, match="the unsteered model is missing"):
        summarise_capability(table[table["direction"] != "baseline"])


def test_the_verdict_is_in_words(capsys):
    print_capability(summarise_capability(rows(0.25)), "residual", {"facts": 0.25})
    printed = capsys.readouterr().out
    assert "at 1: refusal score EDGE +2.00 [+2.00, +2.00]; cost: facts -0.250 [" in printed
    assert "random directions: facts +0.000 to +0.000" in printed
    assert "chance" not in printed
    print_capability(summarise_capability(rows(0.0)), "residual", {"facts": 0.7})
    printed = capsys.readouterr().out
    assert "cost: no loss shown: every interval holds 0 or a gain" in printed
    assert "facts: unsteered 0.75 is not shown to be above chance (0.70)" in printed


def test_where_no_share_refused_moves_the_score_stands_in_its_place(capsys):
    table = rows(0.25)
    print_capability(summarise_capability(table), "residual", {})
    heads = capsys.readouterr().out
    assert "refused" in heads
    score = table["measure"] == SCORE
    low = table.assign(score=table["score"].where(~score, table["score"] - 100))
    print_capability(summarise_capability(low), "residual", {})
    printed = capsys.readouterr().out
    assert "refused" not in printed
    assert "+2.00" in printed.split("at 1: ")[0]  # in the table


def test_the_run_and_its_figure(small_material, tmp_path):
    from script_case import load

    run = small_run(small_material, "capability")
    summary = read_table(run.folder, "summary")
    assert set(summary["measure"]) == {"score", "refused", *OUR_TASKS, LOSS, "kl"}
    base = summary[summary["direction"] == "baseline"]
    assert (base["difference"] == 0).all()
    assert (base.loc[base["measure"] == "kl", "value"] == 0).all()
    assert read_verdict(run.folder)["chance"]["grammar"] == 0.5
    load("plot_capability").main(PlotFlags(run.folder, out=str(tmp_path / "c.html")))
    page = (tmp_path / "c.html").read_text()
    assert "What the dial costs beside what it does" in page
    with pytest.raises(DialError, match="needs a learned direction and the refusal score"):
        capability_figure(summary[summary["measure"] != "score"], "m")


def test_tasks_of_one_name_are_refused(tmp_path, qwen_folder, small_material):
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}) + "\n"
    )
    flags = CapabilityFlags(tasks=("facts", str(tmp_path / "facts.jsonl")))
    with pytest.raises(DialError, match="tasks need different names"):
        load_capability(flags)


# lm-eval's steered model on one of our files.


@pytest.mark.slow
def test_lm_eval_gets_our_log_probabilities_on_our_file(tmp_path, request):
    """lm-eval's own tokenisation, its own steering, our task file: every choice's log-probability,
    and so the accuracy, is that of our hooks at all positions."""
    from refusal_dial.directions.learning import Provenance, from_vector
    from refusal_dial.model.loading import load_model

    python = tool_python(request.config.cache, (), ("lm-eval==0.4.13",))
    folder = tiny.folder("Qwen2", tmp_path / "model", template=None)
    model = load_model(str(folder), "cpu")
    direction = from_vector(
        UNIT * 3, Provenance(layer=2, site="resid_pre", pos=-1, model=str(folder))
    )
    data = Path(__file__).parents[1] / "data" / "tasks" / "facts.jsonl"
    task = tmp_path / "tasks"
    task.mkdir()
    (task / "our_facts.yaml").write_text(
        "task: our_facts\ndataset_path: json\ntest_split: train\n"
        f"dataset_kwargs:\n  data_files: {data}\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n"
    )
    file = tmp_path / "d.pt"
    torch.save(
        {
            "layers.1": {
                "steering_vector": direction.unit,
                "steering_coefficient": 3.0,
                "action": "add",
                "bias": None,
                "head_index": None,
            }
        },
        file,
    )
    script = Path(__file__).with_name("capability_lm_eval.py")
    out = tmp_path / "out.json"
    made = subprocess.run(
        [str(python), str(script), str(folder), str(file), str(task), str(out)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    theirs = json.loads(out.read_text())
    mine = task_questions(model, "facts", load_task("facts")[1])
    hooks = [steer(direction, 3.0, layer=2, pos="all")]
    logp = reply_logp(model, mine.tokens, [[], hooks], mine.replies)
    np.testing.assert_allclose(logp[1], np.concatenate(theirs["logp"]), atol=1e-3)
    assert np.abs(logp[0] - np.concatenate(theirs["logp"])).max() > 0.1  # it did steer
    right = [
        int(part.argmax()) == answer
        for part, answer in zip(logp[1].reshape(60, 4), mine.answers, strict=True)
    ]
    assert np.mean(right) == pytest.approx(theirs["acc"])
    print(f"lm-eval: accuracy {theirs['acc']:.4f}, ours {np.mean(right):.4f}")
