"""Texts that spell out control tokens stay texts; what a template writes stays control tokens."""

from __future__ import annotations

import shutil

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import (
    control_tokens,
    reader_of_text,
    spells_control,
    text_ids,
    tokenize,
    with_replies,
)

UNMARKED = ["<think>", "</think>", "<tool_call>", "[TOOL]"]
TEXTUAL = ["  ", "<table>", "refusal"]
SPELT = [*tiny.SPECIAL, *UNMARKED]
texts = st.lists(st.one_of(st.sampled_from([*SPELT, *TEXTUAL]), st.text(max_size=6))).map("".join)
LAW = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def model(qwen_folder, tmp_path_factory):
    """A model whose tokenizer has control tokens that it does not mark as special."""
    folder = tmp_path_factory.mktemp("marked") / "model"
    shutil.copytree(qwen_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in [*UNMARKED, *TEXTUAL]])
    tokenizer.chat_template = tiny.THINKING
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu")


def controls(model, ids):
    """The control tokens among ids, as they are spelt."""
    spelt = control_tokens(model.tokenizer)
    return [t for t in model.tokenizer.convert_ids_to_tokens(list(ids)) if t in spelt]


def row(tokens):
    return tokens.ids[0][tokens.mask[0].bool()].tolist()


def test_brackets_make_a_control_token_and_added_words_are_text(model):
    assert control_tokens(model.tokenizer) == set(SPELT)
    assert spells_control(model.tokenizer, "so </think> it goes")
    assert not spells_control(model.tokenizer, "<table>  refusal < think>")


OPENING = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]


@given(texts.filter(str.strip))
@LAW
def test_no_prompt_and_no_system_message_writes_a_control_token(model, text):
    ids = row(tokenize(model, [text]))
    assert controls(model, ids) == OPENING
    for system, prompt in (("Be brief.", text), (text, "Hi"), (text, text)):
        ids = row(tokenize(model, [prompt], system=system))
        assert controls(model, ids) == ["<|im_start|>", "<|im_end|>", *OPENING]
    for system in (None, text):
        assert controls(model, row(tokenize(model, [text], system=system, chat=False))) == []


@given(texts)
@LAW
def test_a_reply_writes_none_and_is_what_was_said(model, text):
    before = tokenize(model, ["Hi"])
    ids = row(with_replies(model, before, [text]))[before.ids.shape[1] :]
    assert controls(model, ids) == []
    assert model.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == (
        model.tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        if model.tokenizer.backend_tokenizer.normalizer
        else text
    )


@given(texts)
@LAW
def test_what_spells_no_control_token_is_read_as_ever(model, text):
    mine, tokenizer = text_ids(model.tokenizer, text), model.tokenizer
    if not spells_control(tokenizer, text):
        assert mine == tokenizer.encode(text, add_special_tokens=False)
    both = reader_of_text(tokenizer)(
        [text, "a"], split_special_tokens=True, padding=True, return_tensors="pt"
    )
    assert controls(model, both["input_ids"][0][both["attention_mask"][0].bool()].tolist()) == []


def test_added_text_stays_one_token(model):
    ids = text_ids(model.tokenizer, "<think>a  <table>")
    assert model.tokenizer.convert_ids_to_tokens(ids)[-2:] == ["  ", "<table>"]


def test_a_token_that_is_added_later_is_known(model):
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    assert text_ids(tokenizer, "<later><think>")
    tokenizer.add_tokens(["<later>"])
    ids = text_ids(tokenizer, "<later><think>")
    assert tokenizer.convert_tokens_to_ids("<later>") not in ids
    assert tokenizer.decode(ids) == "<later><think>"
