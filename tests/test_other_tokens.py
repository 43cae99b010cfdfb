"""A run that goes on with other tokens than it began with: refused, and nothing of it is touched.

A chat template that prints the date makes other tokens of the same prompts every day.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import bad_case
import pytest
import tiny
import torch
from script_case import ROOT
from small_runs import TYPED, Material, arguments
from transformers.utils import chat_template_utils

from refusal_dial import directions
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import tokenize, tokens_hash
from refusal_dial.run import job
from refusal_dial.run.folder import close_log, key_of, record_batch, trusted_batches

DATED = tiny.CHAT.replace("user\n{{", "user\n{{ strftime_now('%d %B %Y') }}\n{{")
PLAIN = {"toxicity_steering", "analyze_layers", "conditional_toxicity"}  # no chat template is read
STEERED = "steering_holdout_control"


@pytest.fixture(scope="module")
def dated(small_material, tmp_path_factory) -> Material:
    """The material of small runs with a model whose chat template prints the date."""
    root = tmp_path_factory.mktemp("dated")
    tiny.folder("Qwen2", root / "qwen2", DATED)
    for path in (small_material.prompts, small_material.direction):
        (root / path.name).write_bytes(path.read_bytes())
    return Material(root)


@pytest.fixture
def on_day(monkeypatch):
    """Sets the clock that chat templates read."""

    def set_clock(day: int) -> None:
        now = SimpleNamespace(now=lambda: datetime(2026, 11, day))
        monkeypatch.setattr(chat_template_utils, "datetime", now)

    return set_clock


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Starts an experiment in `tmp_path / "run"`, interrupted after so many batches of rows."""
    monkeypatch.chdir(tmp_path)

    def started(made: Material, name: str, batches: int | None = None) -> bad_case.Ended:
        typed = [*arguments(made, name), f"--out={tmp_path / 'run'}"]
        real = job.append

        def appending(run, rows):
            appending.left -= 1
            if appending.left < 0:
                raise KeyboardInterrupt
            real(run, rows)

        appending.left = batches
        with monkeypatch.context() as patch:
            if batches is not None:
                patch.setattr(job, "append", appending)
            ended = bad_case.run(ROOT / "experiments" / f"{name}.py", typed, tmp_path, capsys)
        close_log()  # as when its process ends
        return ended

    return started


def test_the_hash_is_that_of_the_ids_without_padding(qwen):
    tokens = tokenize(qwen, ["a", "a longer one"])
    assert tokens_hash(tokens) == tokens_hash(tokens.rows(0, 1), tokens.rows(1, 2))
    assert len({tokens_hash(tokens), tokens_hash(tokens.rows(0, 1)), tokens_hash()}) == 3


def test_the_template_prints_the_day(dated, on_day):
    model = load_model(str(dated.model), device="cpu")
    hashes = []
    for day in (1, 1, 2):
        on_day(day)
        hashes.append(tokens_hash(tokenize(model, ["Hi"])))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "name", [n if n == STEERED else pytest.param(n, marks=pytest.mark.slow) for n in TYPED]
)
def test_a_run_of_one_day_is_not_resumed_on_another(name, dated, start, on_day, tmp_path):
    on_day(1)
    assert start(dated, name, batches=1 if name == STEERED else 0).code == 130
    before = bad_case.files_in(tmp_path)
    on_day(2)
    ended = start(dated, name)
    if name in PLAIN:
        assert ended.code == 0
        return
    assert bad_case.files_in(tmp_path) == before
    if name == "verify_direction":  # its one alpha is a length that the other tokens change
        assert "holds a run with direction.place.alpha = " in ended.line
        return
    assert "holds a run whose prompts were other tokens (hash " in ended.line
    assert "the template prints the date; choose another --out" in ended.line


def test_the_first_day_goes_on_where_it_stopped(dated, start, on_day, tmp_path):
    on_day(1)
    assert start(dated, STEERED, batches=1).code == 130
    kept = (tmp_path / "run" / "direction.safetensors").read_bytes()
    assert start(dated, STEERED).code == 0
    assert (tmp_path / "run" / "direction.safetensors").read_bytes() == kept


def test_another_direction_in_the_folder_is_not_overwritten(small_material, start, tmp_path):
    """Whatever changed it: the file of a direction given by its path, other weights on a worker."""
    assert start(small_material, STEERED, batches=1).code == 130
    file = tmp_path / "run" / "direction.safetensors"
    one = directions.load(file)
    other = one.unit.roll(1)
    directions.save(directions.Direction(other, one.norm, one.provenance), file)
    ended = start(small_material, STEERED)
    assert "rows of two directions would stand in one run" in ended.line
    assert torch.equal(directions.load(file).unit, other)
    file.write_bytes(b"torn")  # what cannot be read is written again
    assert start(small_material, STEERED).code == 0
    assert torch.allclose(directions.load(file).unit, one.unit)


def as_earlier_version(folder: Path) -> None:
    """The run as it was before there was a hash of tokens; its journal is of its own settings."""
    config = json.loads((folder / "config.json").read_text())
    scores = folder / "scores.csv"
    batches, rows = trusted_batches(scores, key_of(config["settings"])).batches, scores.read_bytes()
    del config["settings"]["tokens"]
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("scores.csv", "journal.txt"):
        (folder / name).unlink()
    for batch in batches:
        record_batch(scores, key_of(config["settings"]), rows[batch.start : batch.stop], batch.rows)


def test_a_whole_run_of_an_earlier_version_is_read(small_material, start, tmp_path):
    assert start(small_material, STEERED).code == 0
    as_earlier_version(tmp_path / "run")
    before = bad_case.files_in(tmp_path)
    ended = start(small_material, STEERED)
    assert ended.code == 0
    assert "this run is finished already" in ended.err
    assert bad_case.files_in(tmp_path) == before


def test_half_a_run_of_an_earlier_version_is_not_resumed(small_material, start, tmp_path):
    assert start(small_material, STEERED, batches=1).code == 130
    as_earlier_version(tmp_path / "run")
    assert "a run of an earlier version that is not whole" in start(small_material, STEERED).line
