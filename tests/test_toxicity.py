"""Toxicity scorers: the offline one, random-weight classifiers, and what they say when unusable."""

from __future__ import annotations

from pathlib import Path

import hub_case
import numpy as np
import pytest
import tiny
import torch
import transformers

from refusal_dial.common import DialError
from refusal_dial.scoring.ratings import correlation, load_rated, toxic_auc
from refusal_dial.scoring.toxicity import MEASURED_SCORERS, load_toxicity, toxic_label

NAMES = {0: "neutral", 1: "Toxic"}
TEXTS = ["You are an idiot!", "Let us have some tea.", "", "x " * 2000, "  \n"]


def classifier(path: Path, names: dict[int, str], kind: str | None = None) -> str:
    """A random text classifier, saved as the hub saves one."""
    config = transformers.Qwen2Config(**tiny.SMALL, num_labels=len(names), problem_type=kind)
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    torch.manual_seed(0)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classifier(tmp_path_factory.mktemp("two"), NAMES)


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = {0: "obscene", 1: "toxicity", 2: "threat"}
    return classifier(tmp_path_factory.mktemp("many"), names, "multi_label_classification")


def logits(source: str, text: str) -> torch.Tensor:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    ids = transformers.AutoTokenizer.from_pretrained(source)(text, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits[0].double()


def test_the_offline_scorer_tells_insults_from_calm_words():
    scorer = load_toxicity()
    insult, calm, nothing, _, blank = scorer(TEXTS)
    assert insult > 0.9
    assert calm < 0.1
    assert nothing == blank == 0
    assert "alt-profanity-check" in scorer.version
    assert len(scorer([])) == 0


def test_the_offline_scorer_misses_what_is_meant_and_not_said():
    polite_hate = "People of their kind should not be allowed to live in our town."
    assert load_toxicity()([polite_hate])[0] < 0.5


def test_the_figures_that_the_offline_scorer_claims_are_measured(shared):
    sets = [one for name in ("rtp", "wiki_toxicity") for one in load_rated(shared / "data" / name)]
    scorer = load_toxicity()
    claimed = {measured.n: measured for measured in MEASURED_SCORERS}
    for one in sets:
        scores, ratings = scorer(one.texts), np.asarray(one.ratings)
        assert round(toxic_auc(scores, ratings), 3) == claimed[len(one)].auc
        assert round(correlation(scores, ratings), 3) == claimed[len(one)].correlation
    assert len(sets) == len(MEASURED_SCORERS)


def test_the_offline_scorer_has_no_labels_to_choose_from():
    for label in ("toxic", ""):
        with pytest.raises(DialError, match="profanity has no labels to read; leave it out"):
            load_toxicity(label=label)


def test_one_of_several_labels_is_a_softmax(two_labels):
    scores = load_toxicity(two_labels, "cpu")(TEXTS)
    expected = logits(two_labels, TEXTS[0]).softmax(-1)[1]
    assert scores[0] == pytest.approx(float(expected), abs=1e-5)
    assert scores[2] == 0
    assert np.isfinite(scores).all()


def test_independent_labels_are_sigmoids(many_labels):
    scorer = load_toxicity(many_labels, "cpu")
    expected = logits(many_labels, TEXTS[0]).sigmoid()
    assert scorer(TEXTS)[0] == pytest.approx(float(expected[1]), abs=1e-5)
    assert scorer.version.endswith("toxicity")
    obscene = load_toxicity(many_labels, "cpu", label="obscene")
    assert obscene(TEXTS)[0] == pytest.approx(float(expected[0]), abs=1e-5)


def test_a_text_scores_the_same_alone_and_in_a_batch(two_labels):
    alone = load_toxicity(two_labels, "cpu", batch_size=1)(TEXTS)
    together = load_toxicity(two_labels, "cpu", batch_size=4)(TEXTS)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_numbers_that_are_not_finite_are_no_score(two_labels, monkeypatch):
    real = transformers.Qwen2ForSequenceClassification.forward

    def broken(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(transformers.Qwen2ForSequenceClassification, "forward", broken)
    scores = load_toxicity(two_labels, "cpu")(TEXTS[:3])
    assert list(np.isnan(scores)) == [True, True, False]


def test_labels_that_nobody_explained_are_listed():
    with pytest.raises(DialError, match=r"labels LABEL_0, LABEL_1, and which is toxic is not kno"):
        toxic_label("mine", ["LABEL_0", "LABEL_1"])
    with pytest.raises(DialError, match="'rude' is none of them: name it with --toxic-label"):
        toxic_label("mine", list(NAMES.values()), "rude")
    assert toxic_label("mine", ["LABEL_0", "LABEL_1"], "LABEL_1") == "LABEL_1"
    assert toxic_label("mine", ["LABEL_0", "LABEL_1"], "label_0") == "LABEL_0"
    assert toxic_label("mine", ["hate", "Toxic"]) == "Toxic"


@pytest.mark.parametrize("name", ["nobody/such-a-classifier", "a folder that is not there"])
def test_a_scorer_that_is_not_there(name, monkeypatch, tmp_path):
    hub_case.use(monkeypatch, tmp_path)
    with pytest.raises(DialError, match=f"no toxicity scorer '{name}': choices are profanity, a"):
        load_toxicity(name, "cpu")


def test_a_folder_without_a_classifier(tmp_path):
    with pytest.raises(DialError, match=r"holds no model: config.json is not in it"):
        load_toxicity(str(tmp_path), "cpu")


def test_a_classifier_without_its_head_is_an_error_and_no_random_score(tmp_path):
    tiny.folder("Qwen2", tmp_path)
    with pytest.raises(DialError, match=r"its files lack score\.weight"):
        load_toxicity(str(tmp_path), "cpu")
