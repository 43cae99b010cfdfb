"""The per-example dump holds every prompt with its exact scores."""

from __future__ import annotations

import json

import frames
import pytest

from refusal_dial.data.prompts import Prompt
from refusal_dial.report.reading import examples
from refusal_dial.run.folder import append, open_run, read_table


@pytest.fixture
def sweep():
    scores = frames.scores(lambda *a: 0.1 * a[5] + a[3] / 3 + (a[2] or 0) / 7, layers=(12, 20))
    names = list(scores["prompt_id"].drop_duplicates())
    ids = {name: f"{i:04d}" for i, name in enumerate(names)}
    scores["prompt_id"] = scores["prompt_id"].map(ids)
    scores["split"] = scores["subset"].map({"EDGE": "train", "HARMFUL": "holdout"})
    prompts = [
        Prompt(ids[name], f"text\u2028 {name} é", name.split("-")[0], "category") for name in names
    ]
    return scores, prompts


def test_every_prompt_has_one_line_with_its_fields_split_and_exact_scores(sweep):
    scores, prompts = sweep
    text = examples(scores, prompts)
    lines = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert [line["id"] for line in lines] == [prompt.id for prompt in prompts]
    for line, prompt in zip(lines, prompts, strict=True):
        rows = scores[scores["prompt_id"] == prompt.id]
        assert line["text"] == prompt.text
        assert (line["subset"], line["category"], line["pair_id"]) == (
            prompt.subset,
            "category",
            None,
        )
        assert line["split"] == {"EDGE": "train", "HARMFUL": "holdout"}[prompt.subset]
        assert [line["baseline"]] == list(rows[rows["direction"] == "baseline"]["score"])
        learned = rows[rows["direction"] == "learned"]
        assert list(line["scores"]) == ["12", "20"]
        for layer, points in line["scores"].items():
            part = learned[learned["layer"] == int(layer)]
            assert points == [list(pair) for pair in zip(part["alpha"], part["score"], strict=True)]


def test_a_dump_of_a_run_read_back_is_the_same_though_its_ids_look_like_numbers(sweep, tmp_path):
    scores, prompts = sweep
    run = open_run("steer", {}, out=str(tmp_path / "run"))
    append(run, scores)
    assert examples(read_table(run.folder, "scores"), prompts) == examples(scores, prompts)


def test_without_a_learned_direction_there_is_the_baseline_alone(sweep):
    scores, prompts = sweep
    lines = examples(scores[scores["direction"] == "baseline"], prompts).split("\n")[:-1]
    assert [json.loads(line)["scores"] for line in lines] == [{}] * len(prompts)
