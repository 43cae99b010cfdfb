"""Opening a study: the scores are the model's own, and the tokens they read are on record."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from refusal_dial.cli.flags import StudyFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import load_prompts, some_of_each
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.scoring.logits import make_scorer, refusal_score, refusal_tokens
from refusal_dial.studies import base
from refusal_dial.studies.base import load_study, prompt_rows, study_of, study_settings


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {"id": f"{subset}{i}", "text": f"{subset.lower()} {i} {'x' * i}", "subset": subset}
        for subset in ("HARMFUL", "EDGE", "BENIGN")
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def flags(folder, path, **changes) -> StudyFlags:
    settings = {"model": str(folder), "prompts": path, "device": "cpu", "refusal_tokens": "I"}
    return StudyFlags(**{**settings, **changes})


def test_scores_and_activations_are_those_of_each_prompt_alone(qwen_folder, prompts_file):
    study = load_study(flags(qwen_folder, prompts_file, batch_size=5), layers=None)
    assert study.layers == (0, 1, 2)
    assert study.activations.shape == (3, 12, 32)
    for i in (0, 7, 11):
        logits = last_logits(study.model, tokenize(study.model, [study.prompts[i].text]))
        want = refusal_score(logits, study.refusal.refusal).item()
        assert study.scores[i] == pytest.approx(want, abs=1e-4)
    norm = study.activations[1].norm(dim=-1).mean().item()
    assert study.residual_norm(1) == pytest.approx(norm)


def test_prompt_rows_tell_train_from_holdout(qwen_folder, prompts_file):
    study = load_study(flags(qwen_folder, prompts_file))
    table = prompt_rows(study, study.prompts[4:6])
    assert list(table.columns) == ["prompt_id", "subset", "split"]
    assert list(table.loc[table["split"] == "train", "prompt_id"]) == ["EDGE0", "EDGE1"]


def test_settings_are_plain_data_without_the_folder_they_go_to(qwen_folder, prompts_file):
    given = flags(qwen_folder, prompts_file, out="anywhere")
    study = load_study(given)
    settings = json.loads(json.dumps(study_settings(study, given)))
    assert "out" not in settings
    assert settings["refusal_tokens"]["refusal_texts"] == ["I"]
    assert settings["model"]["n_layers"] == 3
    assert settings["data"]["n_prompts"] == 12


def test_a_system_message_and_plain_text_change_the_scores(qwen_folder, prompts_file):
    base = load_study(flags(qwen_folder, prompts_file)).scores
    for change in ({"system": "Refuse."}, {"plain": True}):
        other = load_study(flags(qwen_folder, prompts_file, **change)).scores
        assert not np.allclose(base, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refusal_tokens": "family"}, "no published refusal tokens fit this tokenizer"),
        ({"refusal_tokens": "calibrated"}, "no refusal tokens could be calibrated"),
        ({"refusal_tokens": "999999"}, "token 999999 is not in this vocabulary"),
        ({"scorer": "logit_diff"}, "use --refusal-tokens calibrated"),
        ({"prompts": "missing.jsonl"}, "no prompts file 'missing.jsonl'"),
    ],
)
def test_what_cannot_be_opened_is_one_line(qwen_folder, prompts_file, changes, message):
    with pytest.raises(DialError) as error:
        load_study(flags(qwen_folder, prompts_file, **changes))
    assert message in str(error.value)


def test_calibration_needs_both_groups(qwen_folder, tmp_path):
    path = tmp_path / "edge.jsonl"
    path.write_text('{"text": "a", "subset": "EDGE"}\n{"text": "b", "subset": "EDGE"}\n')
    with pytest.raises(DialError, match="takes HARMFUL and BENIGN prompts, and these are EDGE"):
        load_study(flags(qwen_folder, str(path), refusal_tokens="auto"))


def test_the_embedded_model_calibrates_to_words_that_open_a_refusal(embedded, some_prompts):
    study = study_of(embedded, StudyFlags(prompts=str(some_prompts), device="cpu"))
    assert study.refusal.source == "calibrated"
    assert {text.strip() for text in study.refusal.refusal_texts} & {"I", "Sorry", "No"}
    by_subset = {
        name: study.scores[[p.subset == name for p in study.prompts]].mean()
        for name in ("HARMFUL", "EDGE", "BENIGN")
    }
    assert by_subset["HARMFUL"] > by_subset["EDGE"] > by_subset["BENIGN"]
    both = make_scorer("logit_diff", study.refusal)(torch.zeros(1, len(study.model.tokenizer)))
    assert torch.isfinite(both).all()


def test_logits_that_are_not_kept_give_the_same_tokens_and_scores(embedded, tmp_path, monkeypatch):
    """Read once and kept, or read again for the scores: the same study."""
    path = tmp_path / "some.jsonl"
    rows = [{"text": one.text, "subset": one.subset} for one in some_of_each(load_prompts(), 24, 0)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = StudyFlags(prompts=str(path), device="cpu", scorer="logit_diff", batch_size=16)
    kept = study_of(embedded, flags, (3,))
    monkeypatch.setattr(base, "KEPT_LOGITS", 0)
    again = study_of(embedded, flags, (3,))
    assert again.refusal == kept.refusal
    np.testing.assert_array_equal(again.scores, kept.scores)
    assert torch.equal(again.activations, kept.activations)


def test_digits_of_other_scripts_are_words_not_ids(qwen_folder):
    model = load_model(str(qwen_folder), device="cpu")
    found = refusal_tokens("²", model.tokenizer, (), torch.zeros(0, 4))
    assert found.refusal == (model.tokenizer.encode("²", add_special_tokens=False)[0],)
