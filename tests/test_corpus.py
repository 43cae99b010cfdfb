"""Tokens, loss weights and the training loop of the embedded model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from embedded_model import corpus, grammar, replies, tokenizer, training
from embedded_model import training as shaping
from embedded_model import training as storage
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from refusal_dial.common import DialError

TINY = training.Recipe(
    steps=5,
    batch=8,
    layers=4,
    width=16,
    mlp=16,
    heads=2,
    kv_heads=1,
    exit_layers=(2, 3),
    exchange_chance=1.0,
    exchange_layers=(1, 2),
    push_chance=1.0,
    push_layers=(1, 3),
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizer.train_tokenizer()


def test_training_the_tokenizer_again_gives_the_shipped_one(bpe: Tokenizer) -> None:
    shipped = Tokenizer.from_file(str(storage.WEIGHTS / "tokenizer.json"))
    assert tokenizer.wrap(bpe).backend_tokenizer.to_str() == shipped.to_str()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_unicode_comes_back_composed(bpe: Tokenizer, text: str) -> None:
    back = bpe.decode(bpe.encode(text).ids, skip_special_tokens=False)
    assert back == normalizers.NFC().normalize_str(text)


def test_openers_and_most_words_of_the_grammar_are_single_tokens(bpe: Tokenizer) -> None:
    for word in (*replies.REFUSAL_OPENERS, *replies.COMPLIANCE_OPENERS):
        assert len(bpe.encode(word).ids) == 1
    slots = [
        slot
        for subset in grammar.SUBSETS
        for found in grammar.combinations(subset, held_out=True).values()
        for item in found
        for slot in item.slots
    ]
    words = [f" {word}" for slot in slots for word in slot.split()]
    assert sum(len(bpe.encode(word).ids) == 1 for word in words) / len(words) > 0.9


def test_the_chat_template_writes_what_training_read(bpe: Tokenizer) -> None:
    wrapped = tokenizer.wrap(bpe)
    user = {"role": "user", "content": "How do I kill a python process?"}
    system = {"role": "system", "content": "Be brief."}
    for messages, brief in (([user], None), ([system, user], "Be brief.")):
        text = wrapped.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == tokenizer.chat_text(user["content"], brief)
    assert wrapped.encode("I") == [bpe.token_to_id("I")]


def test_the_loss_counts_the_reply_and_not_the_padding(bpe: Tokenizer) -> None:
    weights = corpus.Weights(prompt=0.1, decision=4.0, reply=1.0, plain=0.5)
    chat = corpus.Example(tokenizer.chat_text("Hi"), "Sure, yes.<|im_end|>", refused=False)
    scene = corpus.Example("Tom smiled.", ' "Hello."<|endoftext|>', refused=None)
    batch = corpus.encode(bpe, [chat, scene], weights)
    for row, item in enumerate((chat, scene)):
        prompt, reply = len(bpe.encode(item.prompt).ids), len(bpe.encode(item.reply).ids)
        found = batch.weights[row]
        before = 0.5 if item.refused is None else 0.1
        assert found[0] == 0
        assert torch.allclose(found[1:prompt], torch.tensor(before))
        assert found[prompt] == 4.0
        assert (found[prompt + 1 : prompt + reply] == 1.0).all()
        assert (found[prompt + reply :] == 0).all()
        assert batch.decisions[row] == prompt - 1
        ids = batch.tokens[row, : prompt + reply].tolist()
        assert bpe.decode(ids, skip_special_tokens=False) == item.prompt + item.reply
    assert batch.refused.tolist() == [0, -1]


def test_batches_follow_from_seed_and_step(bpe: Tokenizer) -> None:
    def tokens(seed: int, step: int) -> list[list[int]]:
        drawn: list[list[int]] = corpus.batch(bpe, seed, step, 8, TINY.weights).tokens.tolist()
        return drawn

    assert tokens(0, 3) == tokens(0, 3)
    assert tokens(0, 3) != tokens(0, 4)
    assert tokens(0, 3) != tokens(1, 3)


def test_training_sees_no_held_out_combination() -> None:
    held_out = {
        grammar.request(item, frame).text
        for subset in grammar.SUBSETS
        for found in grammar.combinations(subset, held_out=True).values()
        for item in found
        for frame in range(16)
    }
    rng = random.Random(0)
    for _ in range(3000):
        example = corpus.sample(rng)
        if example.refused is not None:
            asked = example.prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            assert asked not in held_out


def test_exchange_permutes_decisions_and_push_moves_replies_only(bpe: Tokenizer) -> None:
    batch = corpus.batch(bpe, 0, 0, 64, TINY.weights)
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(64, batch.tokens.shape[1] - 1, 8, generator=generator)
    rows, chat = torch.arange(64), batch.refused >= 0
    moved = shaping.exchange(batch, generator)(residual)
    before, after = residual[rows, batch.decisions], moved[rows, batch.decisions]
    assert torch.equal(before[chat].sort(0).values, after[chat].sort(0).values)
    assert torch.equal(before[~chat], after[~chat])
    changed = (shaping.push(batch, 0.5, generator)(residual) != residual).any(-1)
    for row in range(64):
        assert not changed[row, : batch.decisions[row] + 1].any()
        assert bool(changed[row, batch.decisions[row] + 1 :].all()) == bool(chat[row])


def test_an_interrupted_run_ends_as_an_uninterrupted_one(bpe: Tokenizer, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "state.pt"
    whole = training.train(TINY, bpe)
    training.train(TINY, bpe, checkpoint=checkpoint, stop_after=2)
    resumed = training.train(TINY, bpe, checkpoint=checkpoint)
    assert (whole.step, resumed.step) == (5, 5)
    assert resumed.seconds > 0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.pt"]


def test_a_checkpoint_of_another_recipe_is_not_taken(bpe: Tokenizer, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    training.train(TINY, bpe, checkpoint=checkpoint, stop_after=1)
    other = training.Recipe(**{**vars(TINY), "seed": 7})
    with pytest.raises(DialError, match="another recipe"):
        training.train(other, bpe, checkpoint=checkpoint)


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = training.Recipe(steps=100)
    rates = [training.learning_rate(recipe, step) for step in range(100)]
    assert max(rates) == pytest.approx(recipe.rate)
    assert rates[0] < rates[5]
    assert rates[-1] < recipe.rate * 0.05
