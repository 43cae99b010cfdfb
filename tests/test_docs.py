"""The documentation: its examples run, its site builds without a warning, its schema fits a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from test_experiments import small

from refusal_dial.run.folder import read_config, read_table, read_verdict
from refusal_dial.run.schema import run_schema

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ("concepts", "extending", "migration", "judges", "dimensions")
SCHEMA = json.loads((DOCS / "run.schema.json").read_text())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_page_run_in_order(name, capsys):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}.md, block {number}", "exec"), names)  # noqa: S102


@pytest.mark.slow
def test_the_site_builds_and_leads_nowhere_wrong(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocs and mkdocstrings are not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alpha r" in (tmp_path / "api" / "directions.html").read_text()
    pages = {path.stem for path in DOCS.glob("*.md")}
    menu = (tmp_path / "index.html").read_text()
    assert {page for page in pages if f'href="{page}.html"' not in menu} == set()


def holds(name: str, value: object) -> None:
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(value)


def rows(frame: pd.DataFrame) -> list[dict[str, object]]:
    """As JSON has them: missing is null, and numpy's numbers are Python's."""
    plain = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{k: v.item() if isinstance(v, np.generic) else v for k, v in r.items()} for r in plain]


@pytest.fixture(scope="module")
def run(qwen_folder, some_prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema") / "run"
    controls = ("holdout", "random", "covariance", "shuffled", "flipped", "length", "folds")
    script = ROOT / "experiments" / "steering_holdout_control.py"
    asked = {"controls": controls, "n_random": 1, "alphas": (0.0, 0.5)}
    small(script, folder, model=qwen_folder, prompts=some_prompts, **asked)
    return folder


def test_the_schema_fits_every_file_of_a_run(run):
    holds("config", read_config(run))
    holds("summary", read_verdict(run))
    scores = read_table(run, "scores")
    for row in rows(scores.groupby("direction").head(2)):
        holds("scores_row", row)
    for row in rows(read_table(run, "summary")):
        holds("summary_row", row)
    with safe_open(run / "direction.safetensors", framework="pt") as file:
        holds("direction", json.loads(file.metadata()["direction"]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores_row", {"direction": "lerned"}),
        ("scores_row", {"pos": 3}),
        ("scores_row", {"prompt_id": ""}),
        ("summary_row", {"refusal_rate": 1.2}),
        ("summary_row", {"n": -1}),
        ("summary_row", {"layer": -1}),
        ("scores_row", {"alpha": None}),
    ],
)
def test_the_schema_refuses_what_no_run_holds(run, name, change):
    first = rows(read_table(run, name.removesuffix("_row")).head(1))[0]
    holds(name, first)
    with pytest.raises(jsonschema.ValidationError):
        holds(name, first | change)


def test_the_schema_in_the_docs_is_the_one_that_runs_are_checked_by():
    """`make schema` makes it."""
    assert (DOCS / "run.schema.json").read_text() == json.dumps(run_schema(), indent=2) + "\n"


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
