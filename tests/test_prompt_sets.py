"""Sets of others, in their own columns: from a local file, and through `datasets` by name."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
import torch
from test_experiments import ROOT, small

from refusal_dial import directions
from refusal_dial.common import DialError
from refusal_dial.data import prompts as module
from refusal_dial.data.prompts import load_prompts
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.run.folder import read_table

JBB = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
HARMS = ("id", "risk_area", "types_of_harm", "specific_harms", "question", "GPT4_response")
FILES = {  # name: (file, its columns, rows, what they are: id, subset, category, text)
    "or-bench hard": (
        "or-bench-hard-1k.csv",
        ("prompt", "category"),
        [("How do I kill a daemon, quickly?", "violence"), ('A "quoted" one', "deception")],
        [
            ("0001", "EDGE", "violence", "How do I kill a daemon, quickly?"),
            ("0002", "EDGE", "deception", 'A "quoted" one'),
        ],
    ),
    "or-bench toxic": (
        "or-bench-toxic.csv",
        ("prompt", "category"),
        [("Write an insult.", "hate")],
        [("0001", "HARMFUL", "hate", "Write an insult.")],
    ),
    "wildjailbreak eval": (
        "eval.tsv",
        ("adversarial", "label", "data_type"),
        [("As a pirate, say how", "1", "adversarial_harmful"), ("x\ny", "0", "adversarial_benign")],
        [
            ("0001", "HARMFUL", "adversarial_harmful", "As a pirate, say how"),
            ("0002", "EDGE", "adversarial_benign", "x\ny"),
        ],
    ),
    "wildjailbreak train": (
        "train.tsv",
        ("vanilla", "adversarial", "completion", "data_type"),
        [("plain", "", "no", "vanilla_harmful"), ("plain", "dressed", "no", "adversarial_benign")],
        [
            ("0001", "HARMFUL", "vanilla_harmful", "plain"),
            ("0002", "EDGE", "adversarial_benign", "dressed"),
        ],
    ),
    "do-not-answer": (
        "data_en.csv",
        HARMS,
        [("0", "Information Hazards", "Leak of secrets", "Names", "Who is it?", "I cannot")],
        [("0", "HARMFUL", "Leak of secrets", "Who is it?")],
    ),
    "jailbreakbench harmful": (
        "harmful-behaviors.csv",
        JBB,
        [("0", "Defame someone", "Sure, here", "Defamation", "Harassment", "Original")],
        [("harmful-0", "HARMFUL", "Harassment", "Defame someone")],
    ),
    "jailbreakbench benign": (
        "benign-behaviors.csv",
        JBB,
        [("0", "Praise someone", "Sure, here", "Praise", "Harassment", "Original")],
        [("benign-0", "EDGE", "Harassment", "Praise someone")],
    ),
}


def laid(folder, name):
    file, columns, rows, _ = FILES[name]
    path = folder / file
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
    return path


def as_rows(prompts):
    return [(p.id, p.subset, p.category, p.text) for p in prompts]


@pytest.mark.parametrize("name", FILES)
def test_a_local_file_is_known_by_its_columns(name, tmp_path):
    assert as_rows(load_prompts(str(laid(tmp_path, name)))) == FILES[name][3]


def test_sorry_bench_in_its_jsonl(tmp_path):
    row = {"question_id": 7, "category": "3", "turns": ["Say it"], "prompt_style": "base"}
    rows = [row, row | {"prompt_style": "slang", "turns": ["Say it, mate"]}]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert as_rows(load_prompts(str(path))) == [
        ("7", "HARMFUL", "3", "Say it"),
        ("7-slang", "HARMFUL", "3", "Say it, mate"),
    ]
    path.write_text(json.dumps(row | {"turns": ["one", "two"]}) + "\n")
    with pytest.raises(DialError, match="no text; expected a column text, prompt"):
        load_prompts(str(path))


def test_both_parts_of_a_set_are_read_from_its_folder(tmp_path):
    for name in ("jailbreakbench harmful", "jailbreakbench benign"):
        laid(tmp_path, name)
    assert Counter(p.subset for p in load_prompts(str(tmp_path))) == {"HARMFUL": 1, "EDGE": 1}


def test_a_file_that_does_not_say_which_part_it_is_and_rows_of_our_own(tmp_path):
    laid(tmp_path, "or-bench hard").rename(tmp_path / "some.csv")
    with pytest.raises(DialError, match=r"some\.csv, line 2: no subset; expected one of HARMFUL"):
        load_prompts(str(tmp_path / "some.csv"))
    row = {"prompt": "p", "category": "c", "subset": "BENIGN"}
    (tmp_path / "or-bench-toxic.jsonl").write_text(json.dumps(row) + "\n")
    assert load_prompts(str(tmp_path / "or-bench-toxic.jsonl"))[0].subset == "BENIGN"


CARDS = {
    "jailbreakbench": """---
configs:
- config_name: behaviors
  data_files:
  - split: harmful
    path: harmful-behaviors.csv
  - split: benign
    path: benign-behaviors.csv
---
""",
    "or-bench": """---
configs:
- config_name: or-bench-hard-1k
  data_files: or-bench-hard-1k.csv
- config_name: or-bench-toxic
  data_files: or-bench-toxic.csv
---
""",
    "wildjailbreak": """---
configs:
- config_name: eval
  data_files: eval.tsv
---
""",
    "do-not-answer": "",
}


@pytest.mark.parametrize("name", CARDS)
def test_by_name_datasets_reads_the_parts_that_its_card_names(name, tmp_path, monkeypatch):
    """The set lies in a folder with the hub's card, which `datasets` reads as it does the hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub_id = module.PROMPT_HUB_NAMES[name]
    folder = tmp_path / hub_id
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARDS[name])
    expected = []
    for one in FILES:
        if one.startswith(name) and one != "wildjailbreak train":
            laid(folder, one)
            expected += FILES[one][3]
    for table in (module.HUB_PARTS, module.HUB_OPTIONS):
        if hub_id in table:
            monkeypatch.setitem(table, str(folder), table[hub_id])
    monkeypatch.setitem(module.PROMPT_HUB_NAMES, name, str(folder))
    found = [row[1:] for row in as_rows(load_prompts(name))]
    assert found == [row[1:] for row in expected]


def test_a_name_near_one_is_told(tmp_path):
    with pytest.raises(DialError, match=r"'or-bnch': did you mean 'or-bench'\?"):
        load_prompts("or-bnch")


@pytest.mark.parametrize(
    "files", [("jailbreakbench harmful", "jailbreakbench benign"), ("do-not-answer",)]
)
def test_a_set_gets_its_table_by_category(files, qwen_folder, tmp_path, capsys):
    sets = tmp_path / "sets"
    sets.mkdir()
    for one in files:
        laid(sets, one)
    unit = from_vector(torch.ones(32), Provenance(1, "resid_pre", -1))
    directions.save(unit, tmp_path / "d.safetensors")
    script = ROOT / "experiments" / "eval_direction_on_xstest.py"
    asked = {"direction": str(tmp_path / "d.safetensors"), "n_random": 0, "max_new_tokens": 2}
    asked |= {"alphas": (0.0, 1.0), "alpha_unit": "absolute"}
    small(script, tmp_path / "run", model=qwen_folder, prompts=sets, **asked)
    table = read_table(tmp_path / "run", "scores")
    assert set(table["category"]) == {FILES[one][3][0][2] for one in files}
    printed = capsys.readouterr().out
    assert FILES[files[0]][3][0][2] in printed
