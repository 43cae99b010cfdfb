"""Kept replies are those of the model that is there now, or they are made anew."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from huggingface_hub import constants

from refusal_dial.common import hook_name
from refusal_dial.generate import kept
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.kept import kept_at, unsteered_replies
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import tokenize

DECODING = Decoding(4)


@pytest.fixture
def here(qwen_folder, tmp_path, monkeypatch):
    """A model that counts as large, its prompts, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "LARGE", 0)
    model = load_model(str(qwen_folder), "cpu", "float32")
    return model, tokenize(model, tiny.sentences(5))


def test_a_second_start_reads_what_the_first_one_made(here, caplog):
    model, tokens = here
    made = unsteered_replies(model, tokens, DECODING, 2)
    assert [one.ids for one in made] == [one.ids for one in generate(model, tokens, [[]], DECODING)]
    path = kept_at(model, tokens, DECODING)
    assert path is not None
    assert path.is_file()
    with caplog.at_level("INFO", "refusal_dial"):
        again = unsteered_replies(model, tokens, DECODING, 2)
    assert [(one.text, one.ids, one.stop) for one in again] == [
        (one.text, one.ids, one.stop) for one in made
    ]
    assert f"its replies to 5 prompts are those kept in {path}" in caplog.text


def test_another_model_prompt_or_decoding_has_a_file_of_its_own(here, qwen_folder):
    model, tokens = here
    places = [
        kept_at(model, tokens, DECODING),
        kept_at(model, tokens.rows(0, 4), DECODING),
        kept_at(model, tokens, Decoding(5)),
        kept_at(load_model(str(qwen_folder), "cpu", "bfloat16"), tokens, DECODING),
    ]
    with torch.no_grad():
        next(model.original_model.parameters()).mul_(1.5)
    places.append(kept_at(model, tokens, DECODING))
    assert None not in places
    assert len(set(places)) == len(places)


def test_nothing_is_kept_of_a_small_model_or_one_with_hooks(here, monkeypatch):
    model, tokens = here
    with model.hooks(fwd_hooks=[(hook_name("resid_pre", 1), lambda activation, hook: None)]):
        assert kept_at(model, tokens, DECODING) is None
    monkeypatch.setattr(kept, "LARGE", 1e9)
    assert kept_at(model, tokens, DECODING) is None


@pytest.mark.parametrize("fault", ["torn", "changed", "short", "another thing"])
def test_a_file_that_is_not_what_was_written_is_made_anew(here, fault):
    model, tokens = here
    made = unsteered_replies(model, tokens, DECODING, 2)
    path = kept_at(model, tokens, DECODING)
    text = path.read_text()
    found = json.loads(text)
    if fault == "torn":
        path.write_text(text[: len(text) // 2])
    elif fault == "changed":
        found["replies"][1][0][0] += 1
        path.write_text(json.dumps(found))
    elif fault == "short":
        rows = found["replies"][:-1]
        path.write_text(json.dumps({"sha256": kept._digest(rows), "replies": rows}))
    else:
        path.write_text("[]")
    assert [one.ids for one in unsteered_replies(model, tokens, DECODING, 2)] == [
        one.ids for one in made
    ]
    assert path.read_text() == text


def test_a_cache_that_cannot_be_written_ends_nothing(here, tmp_path, caplog):
    model, tokens = here
    (tmp_path / "refusal_dial").write_text("a file where a folder should be")
    with caplog.at_level("INFO", "refusal_dial"):
        assert len(unsteered_replies(model, tokens, DECODING, 2)) == 5
    assert "its replies are not kept: " in caplog.text
