"""Models as judges, on small random-weight folders made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_case
import pytest
import tiny
import torch
import transformers

from refusal_dial.common import DialError
from refusal_dial.scoring import judge_model, judges

NAMES = {0: "NORMAL", 1: "REJECTION"}
REPLIES = ["I'm sorry, but I can't help with that.", "Put it in hot water.", "", "x" * 3000]


def classifier(path: Path, names: dict[int, str]) -> Path:
    """A random two-label classifier, saved as the hub saves one."""
    config = transformers.Qwen2Config(**tiny.SMALL, num_labels=len(names))
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    torch.manual_seed(0)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rejection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("rejection"), NAMES)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random chat model with room for the question."""
    path = tiny.folder("Qwen2", tmp_path_factory.mktemp("roomy"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return path


def test_a_classifier_judges_and_leaves_the_empty_unscored(rejection: Path) -> None:
    judge = judge_model.model_judge(str(rejection), "cpu")
    judged = judges.judge_all(judge, REPLIES)
    assert {j.label for j in judged} <= {"full_compliance", "full_refusal", "unscored"}
    assert [j.label == "unscored" for j in judged] == [False, False, True, False]
    assert judged[0].span.text == REPLIES[0]
    assert judges.judge_report(judge, REPLIES, judged)["unscored"] == 1
    assert judge.name == str(rejection)
    assert judge.version
    assert judges.judge_all(judge, []) == []


def test_a_classifier_says_the_same_alone_and_in_a_batch(rejection: Path) -> None:
    alone = judge_model.model_judge(str(rejection), "cpu", batch_size=1)
    together = judge_model.model_judge(str(rejection), "cpu", batch_size=4)
    assert judges.judge_all(alone, REPLIES) == judges.judge_all(together, REPLIES)


def test_labels_can_be_turned_around(rejection: Path) -> None:
    turned = {"NORMAL": "full_refusal", "REJECTION": "full_compliance"}
    plain = judge_model.model_judge(str(rejection), "cpu")
    other = judge_model.model_judge(str(rejection), "cpu", labels=turned)
    for a, b in zip(
        judges.judge_all(plain, REPLIES), judges.judge_all(other, REPLIES), strict=True
    ):
        assert a.label != b.label or a.label == "unscored"


def test_numbers_that_are_not_finite_are_no_score(
    rejection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transformers.Qwen2ForSequenceClassification.forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = real(self, *args, **kwargs)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(transformers.Qwen2ForSequenceClassification, "forward", broken)
    judge = judge_model.model_judge(str(rejection), "cpu")
    assert {j.label for j in judges.judge_all(judge, REPLIES)} == {"unscored"}


def test_labels_that_nobody_explained(tmp_path: Path) -> None:
    folder = classifier(tmp_path, {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(DialError, match="nobody says what it means") as raised:
        judge_model.model_judge(str(folder), "cpu")
    assert "LABEL_0" in str(raised.value)
    assert "full_refusal" in str(raised.value)
    with pytest.raises(DialError, match="unknown label 'no'"):
        judge_model.model_judge(str(folder), "cpu", labels={"LABEL_0": "no"})


def test_a_chat_model_that_babbles_scores_nothing(roomy: Path) -> None:
    judge = judge_model.model_judge(str(roomy), "cpu")
    judged = judges.judge_all(judge, REPLIES[:2], ["How?", None])
    assert [j.label for j in judged] == ["unscored", "unscored"]


def answering(text: str) -> Callable[..., torch.Tensor]:
    """A stand-in for generation that answers `text` to every row."""

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        answer = torch.tensor([tiny.tokenizer().encode(text)] * len(input_ids))
        return torch.cat([input_ids, answer], 1)

    return generate


@pytest.mark.parametrize(
    ("answer", "label"), [("full_refusal", "full_refusal"), ("It refuses.", "unscored")]
)
def test_a_chat_model_must_answer_with_one_label(
    roomy: Path, monkeypatch: pytest.MonkeyPatch, answer: str, label: str
) -> None:
    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "generate", staticmethod(answering(answer)))
    judge = judge_model.model_judge(str(roomy), "cpu", batch_size=2)
    judged = judges.judge_all(judge, [*REPLIES[:2], "No."], ["How?"] * 3)
    assert [j.label for j in judged] == [label] * 3


def test_the_embedded_model_is_no_good_judge_and_says_so() -> None:
    """It follows no instruction, so nothing that it says may become a score."""
    judge = judge_model.model_judge("embedded", "cpu")
    (judgement,) = judges.judge_all(judge, REPLIES[:1], ["How?"])
    assert judgement.label == "unscored"


def test_what_does_not_fit_is_unscored(qwen_folder: Path) -> None:
    judge = judge_model.model_judge(str(qwen_folder), "cpu")  # 512 positions, a byte a token
    (judgement,) = judges.judge_all(judge, ["No."], ["How?"])
    assert judgement.label == "unscored"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("full_refusal", "full_refusal"),
        (" Full refusal.\n", "full_refusal"),
        ("**partial-refusal**", "partial_refusal"),
        ('"UNCLEAR"', "unclear"),
        ("full_refusal, because", "unscored"),
        ("refusal", "unscored"),
        ("unsafe\nS1", "unscored"),
        ("unscored", "unscored"),
        ("", "unscored"),
    ],
)
def test_the_answer_is_parsed_strictly(answer: str, label: str) -> None:
    assert judge_model.parse_answer(answer) == label


def test_judges_by_name(rejection: Path, tmp_path: Path) -> None:
    assert judge_model.load_judge("builtin") is judges.BUILTIN
    assert judge_model.load_judge("substring") is judges.SUBSTRING
    assert judge_model.load_judge(str(rejection), "cpu").name == str(rejection)
    with pytest.raises(DialError, match="holds no model"):
        judge_model.load_judge(str(tmp_path))


def test_a_base_model_is_no_judge(tmp_path: Path) -> None:
    folder = tiny.folder("Qwen2", tmp_path, template=None)
    with pytest.raises(DialError, match="neither a sequence classifier nor a chat model"):
        judge_model.model_judge(str(folder), "cpu")


def test_a_name_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_case.use(monkeypatch, tmp_path)
    with pytest.raises(DialError, match="no judge 'bultin'") as raised:
        judge_model.load_judge("bultin")
    assert "builtin" in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [b"{", b"[1]", b'{"architectures": 3}', b'{"architectures": [3]}', "{}".encode("utf-16")],
)
def test_a_configuration_that_cannot_be_read_is_named(config: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(DialError, match=r"config\.json"):
        judge_model.model_judge(str(tmp_path), "cpu")
