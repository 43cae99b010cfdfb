"""Text classifiers are loaded whole or refused in one line, and run nothing of their own."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_case
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from refusal_dial.common import DialError
from refusal_dial.model.checkpoint import folder_revision
from refusal_dial.scoring import judge_model, toxicity
from refusal_dial.scoring.classifiers import SPECIAL, Classifier, load_classifier

MEANS = {"toxic": "full_compliance", "refusal": "full_refusal"}
TEXTS = ["A text.", "Another text, and a longer one.", "<|endoftext|>", "x" * 3000]


def classifier(path: Path, seed: int = 0, kind: str = "Qwen2") -> Path:
    """A random classifier of two labels, saved as the hub saves one."""
    config = getattr(transformers, f"{kind}Config")(**tiny.SMALL, num_labels=2)
    config.id2label, config.label2id = {0: "toxic", 1: "refusal"}, {"toxic": 0, "refusal": 1}
    torch.manual_seed(seed)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "judge")


def opened(source: str | Path, **given: Any) -> Classifier:
    return load_classifier(str(source), "judge", "a folder or hub id", "cpu", **given)


def changed(file: Path, **changes: Any) -> None:
    """Another value in a JSON file, or none at all (`...`)."""
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


def reweighed(folder: Path, **changes: Any) -> None:
    """Another tensor in the weights, or none at all (`...`), by the last word of its name."""
    file = folder / "model.safetensors"
    found = load_file(file)
    for name in list(found):
        if (word := name.split(".")[0]) in changes:
            found[name] = changes[word]
    save_file({k: v for k, v in found.items() if v is not ...}, file, {"format": "pt"})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "config.json", **changes)


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "tokenizer_config.json", **changes)


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def cut(name: str, at: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:at])

    return damage


def no_limit(folder: Path) -> None:
    tokenizer(model_max_length=int(1e30))(folder)
    config(max_position_embeddings=-1)(folder)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "config is no json": (lambda f: (f / "config.json").write_text("{") and None, "config.json"),
    "config is deep": (lambda f: (f / "config.json").write_text("[" * 10**5) and None, "judge"),
    "config is utf-16": (
        lambda f: (f / "config.json").write_bytes("{}".encode("utf-16")) and None,
        "judge",
    ),
    "no kind": (config(model_type=...), "could not be loaded"),
    "a kind nobody knows": (config(model_type="perceptron"), "perceptron"),
    "a kind that is a list": (config(model_type=[1]), "could not be loaded"),
    "layers": (config(num_hidden_layers=10**7), "num_hidden_layers 10000000, expected 1 to 1000"),
    "layers that are not there": (config(num_hidden_layers=4, layer_types=...), "its files lack"),
    "width": (config(hidden_size=64), "its files hold .* of shape .*, expected"),
    "many labels": (config(num_labels=10**9), "num_labels 1000000000, expected 0 to 1000000"),
    "a label more": (
        config(id2label={"0": "a", "1": "b", "2": "c"}, label2id=...),
        r"its files hold score\.weight of shape \[2, 32\], expected \[3, 32\]",
    ),
    "a hole in the labels": (
        config(id2label={"0": "a", "2": "b"}, label2id=...),
        r"id2label numbers its labels \[0, 2\], expected 0 to 1",
    ),
    "labels below 0": (config(id2label={"-1": "a", "0": "b"}), r"labels \[-1, 0\], expected 0"),
    "labels by name": (config(id2label={"a": "a", "b": "b"}), "could not be loaded"),
    "labels that are a list": (config(id2label=["a", "b"]), "could not be loaded"),
    "a label twice": (config(id2label={"0": "a", "1": "a"}), "has the label 'a' twice"),
    "no limit at all": (no_limit, "nothing says how long a text it reads"),
    "positions: 2": (config(max_position_embeddings=2), "is 2: expected a whole number from 3 up"),
    "positions: 0": (config(max_position_embeddings=0), "is 0: expected a whole number from 3 up"),
    "positions: text": (config(max_position_embeddings="512"), "expected int, got str"),
    "positions: null": (config(max_position_embeddings=None), "expected int, got NoneType"),
    "a length of 0": (tokenizer(model_max_length=0), "model_max_length is 0: expected"),
    "a length of text": (tokenizer(model_max_length="many"), "model_max_length is 'many'"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "half a tokenizer": (cut("tokenizer.json", 500), "could not be loaded"),
    "no pad token": (tokenizer(pad_token=None), "its tokenizer has no pad token"),
    "a pad token of its own": (
        tokenizer(pad_token="<|new|>"),
        "of id 259, and its weights embed the ids 0 to 257",
    ),
    "no weights": (without("model.safetensors"), "could not be loaded"),
    "half the weights": (cut("model.safetensors", 30_000), "could not be loaded"),
    "half a header": (cut("model.safetensors", 40), "could not be loaded"),
    "empty weights": (cut("model.safetensors", 0), "could not be loaded"),
    "no head": (lambda f: reweighed(f, score=...), r"its files lack score\.weight"),
    "another head": (
        lambda f: reweighed(f, score=torch.zeros(5, 32)),
        r"its files hold score\.weight of shape \[5, 32\], expected \[2, 32\]",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_cannot_be_used_is_one_line(kind: str, folder: Path) -> None:
    if kind == "a pad token of its own":
        weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        changed(folder / "config.json", vocab_size=258)
        file = folder / "model.safetensors"
        save_file(
            load_file(file) | {"model.embed_tokens.weight": weights[:258].clone()},
            file,
            {"format": "pt"},
        )
    damage, says = DAMAGE[kind]
    damage(folder)
    with pytest.raises(DialError, match=says) as error:
        opened(folder)
    line = str(error.value)
    assert str(folder) in line
    assert "\n" not in line
    assert len(line) < 800
    with pytest.raises(DialError, match=says):
        judge_model.model_judge(str(folder), "cpu", labels=MEANS)
    with pytest.raises(DialError, match=says):
        toxicity.load_toxicity(str(folder), "cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "tokenizer.json"])
def test_a_pickle_is_refused_and_not_run(name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    (folder / "model.safetensors").unlink()
    torch.save({"score.weight": Touch()}, folder / name)
    with pytest.raises(DialError, match="could not be loaded"):
        opened(folder)
    (folder / name).write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DialError, match="could not be loaded"):
        opened(folder)
    assert not marker.exists()


def test_code_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "x.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "x.C", "AutoModelForSequenceClassification": "x.M"}
    changed(folder / "config.json", model_type="x", auto_map=auto)
    with pytest.raises(DialError, match="could not be loaded"):
        opened(folder)
    assert not marker.exists()


def test_plain_tensors_in_a_bin_are_read(folder: Path) -> None:
    before = opened(folder).logits(TEXTS)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(opened(folder).logits(TEXTS), before)


def test_a_text_is_read_the_same_alone_and_padded_whatever_the_configuration_pads_with(
    folder: Path,
) -> None:
    """The last token is where the padding begins: with another pad token it would be a pad."""
    together = opened(folder).logits(TEXTS)
    alone = torch.cat([opened(folder).logits([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    for pad in (7, None):
        changed(folder / "config.json", pad_token_id=pad)
        torch.testing.assert_close(opened(folder).logits(TEXTS), alone, atol=1e-5, rtol=1e-5)


def test_the_least_of_what_is_said_is_read_and_control_tokens_are_text(folder: Path) -> None:
    positions = tiny.SMALL["max_position_embeddings"]
    assert opened(folder).reads == positions - SPECIAL
    tokenizer(model_max_length=64)(folder)
    short = opened(folder)
    assert short.reads == 64
    a, b = short.logits(["x" * 64 + "y" * 9, "x" * 64])
    assert torch.equal(a, b)
    no_limit(folder)
    tokenizer(model_max_length=64)(folder)
    assert opened(folder).reads == 64
    spelt, empty = short.logits(["a<|endoftext|>", "a"])
    assert not torch.allclose(spelt, empty)


def test_control_tokens_that_nobody_marked_are_text_too(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<verdict>", special=False)])
    tokenizer.save_pretrained(folder)
    reader = opened(folder).tokenizer
    ids = reader("a<verdict>b", split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<verdict>") not in ids
    assert tokenizer.decode(ids) == "a<verdict>b"


def test_which_one_it_is_covers_every_byte(folder: Path, whole: Path) -> None:
    """Another judge of the same files, names and sizes is another judge."""
    assert opened(folder).revision == opened(whole).revision == folder_revision(whole)
    judge = judge_model.model_judge(str(folder), "cpu", labels=MEANS).version
    scorer = toxicity.load_toxicity(str(folder), "cpu").version
    before = (folder / "model.safetensors").stat().st_size
    classifier(folder, seed=1)
    assert (folder / "model.safetensors").stat().st_size == before
    assert judge_model.model_judge(str(folder), "cpu", labels=MEANS).version != judge
    assert toxicity.load_toxicity(str(folder), "cpu").version != scorer


def test_a_hub_id_is_its_commit_online_and_off(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = classifier(tmp_path / "other", seed=1)
    commits = {hub_case.FIRST: whole, hub_case.SECOND: other}
    refs = {"main": hub_case.FIRST, "v2": hub_case.SECOND}
    with hub_case.served("org/judge", commits, refs) as (address, _):
        hub_case.use(monkeypatch, tmp_path / "hub", address)
        assert opened("org/judge").revision == hub_case.FIRST
        assert opened("org/judge", revision="v2").revision == hub_case.SECOND
    hub_case.use(monkeypatch, tmp_path / "hub")
    found = opened("org/judge", revision="v2")
    assert found.revision == hub_case.SECOND
    assert torch.equal(found.logits(TEXTS), opened(other).logits(TEXTS))
    judge = judge_model.model_judge("org/judge", "cpu", labels=MEANS, revision="v2")
    assert judge.version == hub_case.SECOND
    assert toxicity.load_toxicity("org/judge", "cpu").version == f"{hub_case.FIRST}, toxic"
    with pytest.raises(DialError, match="no judge 'org/judge': choices are a folder or hub id"):
        opened("org/judge", revision="v3")


@pytest.mark.parametrize("damage", ["config", "weights", "tokenizer", "layers"])
def test_a_hub_id_of_damaged_files_is_one_line(
    damage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hub_case.lay(tmp_path / "hub", "org/judge", folder)
    hub_case.use(monkeypatch, tmp_path / "hub")
    if damage == "layers":
        changed(here / "config.json", num_hidden_layers=10**7)
    else:
        name = {"config": "config.json", "weights": "model.safetensors"}.get(damage)
        (here / (name or "tokenizer.json")).write_bytes(b"\xff\x00{")
    with pytest.raises(DialError, match=r"org/judge|config\.json") as error:
        judge_model.model_judge("org/judge", "cpu", labels=MEANS)
    assert "\n" not in str(error.value)
