"""Thinking models: the template's block, the reply after it, loops, roles, and runs."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from script_case import load
from small_runs import arguments

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.flags import OpenFlags
from refusal_dial.common import DialError, log
from refusal_dial.generate.completions import completion_text
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.thoughts import after_thought, divide, read_prompts
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import last_logits, think_block, tokenize
from refusal_dial.run.folder import read_config, read_table, read_verdict
from refusal_dial.studies.pairs import (
    Pair,
    align,
    align_around,
    match,
    role_order,
    template_lengths,
)
from refusal_dial.studies.selection import template_positions

THINKS = {"\n": "<think>", "<think>": "h", "h": "m", "m": "</think>", "</think>": "I", "I": "t"}
LOOPS = THINKS | {"m": "h"}
WANDERS = THINKS | dict(zip("hmabcdefgijklnop", "mabcdefgijklnopq", strict=True))
FROM_OPEN = {**THINKS, "\n": "h"}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return load_model(str(tiny.speaker(tmp_path_factory.mktemp("thinks"), THINKS)), device="cpu")


def at_end(model, tokens, n=40):
    return [
        model.tokenizer.decode(row[mask.bool()])[-n:]
        for row, mask in zip(tokens.ids, tokens.mask, strict=True)
    ]


def test_the_block_is_what_the_template_writes(thinker):
    off, on = (think_block(thinker.tokenizer, asked) for asked in (False, True))
    assert (off.opening, off.closing, off.separator) == ("<think>", "</think>", "\n\n")
    assert not off.opened
    assert not on.opened
    (asked,) = at_end(thinker, tokenize(thinker, ["Hi"], thinking=True))
    assert asked.endswith("<|im_start|>assistant\n")
    (not_asked,) = at_end(thinker, tokenize(thinker, ["Hi"]))
    assert not_asked.endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_always_opens_a_thought(tmp_path):
    """On, the prompt ends in the open block; off, the block is closed again."""
    model = load_model(str(tiny.speaker(tmp_path, FROM_OPEN, tiny.OPENED)), device="cpu")
    assert think_block(model.tokenizer, True).opened
    (on,) = at_end(model, tokenize(model, ["Hi"], thinking=True))
    assert on.endswith("assistant\n<think>\n")
    (off,) = at_end(model, tokenize(model, ["Hi"]))
    assert off.endswith("assistant\n<think>\n\n</think>\n\n")
    (one,) = generate(model, tokenize(model, ["Hi"], thinking=True), [()], Decoding(8))
    reply, thought = after_thought(
        model.tokenizer, one, think_block(model.tokenizer, True), Decoding(4, max_thought_tokens=4)
    )
    assert (reply.text, thought.text, thought.end) == ("It", "hm", "closed")


def test_a_template_that_knows_no_thinking_is_refused_in_one_line(qwen, thinker):
    assert think_block(qwen.tokenizer, True) is None
    with pytest.raises(DialError, match="knows no thinking: leave --thinking at off") as found:
        tokenize(qwen, ["Hi"], thinking=True)
    assert "\n" not in str(found.value)
    with pytest.raises(DialError, match="--thinking on needs the chat template, and --plain"):
        tokenize(thinker, ["Hi"], thinking=True, chat=False)


def test_the_flag_is_on_or_off():
    def main(flags: OpenFlags) -> None: ...

    assert cli.parse_flags(OpenFlags, [], main).thought == 0
    assert cli.parse_flags(OpenFlags, ["--thinking", "on"], main).thought == 512
    assert cli.parse_flags(OpenFlags, ["--thinking=on", "--thought-tokens=9"], main).thought == 9
    with pytest.raises(DialError, match="off, on"):
        cli.parse_flags(OpenFlags, ["--thinking", "maybe"], main)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_thought_and_reply_are_the_whole(thinker, inside, after):
    """The two parts are the completion; a budget that the tag does not come within leaves none."""
    tokenizer, block = thinker.tokenizer, think_block(thinker.tokenizer, True)
    ids = tokenizer.encode(f"<think>{''.join(inside)}</think>{''.join(after)}")
    thought, reply = divide(tokenizer, ids, block, len(ids))
    assert [*thought.ids, *reply] == ids
    assert tokenizer.decode(list(reply)) == "".join(after)
    assert thought.text == "".join(inside)
    assert thought.closed
    late, nothing = divide(tokenizer, ids, block, len(inside) + 1)
    assert nothing == ()
    assert not late.closed
    assert late.end in ("endless", "loop")
    plain, all_of_it = divide(tokenizer, tokenizer.encode("abc"), block, 9)
    assert (plain.end, tokenizer.decode(list(all_of_it))) == ("none", "abc")


def test_tags_of_several_tokens_are_found_alike(qwen, tmp_path):
    """A tokenizer without added tags, and the same text: the same parts."""
    tokenizer = tiny.tokenizer(tiny.THINKING)
    block = think_block(tokenizer, True)
    assert len(tokenizer.encode("</think>")) > 1
    thought, reply = divide(tokenizer, tokenizer.encode("<think>hm</think>\n\nIt"), block, 99)
    assert (thought.text, tokenizer.decode(list(reply))) == ("hm", "\n\nIt")
    ids = tokenizer.encode("user <think> is a tag\n<think>\n\n</think>\n\n")
    start, stop = block.span(tokenizer, ids)
    assert tokenizer.decode(ids[start:stop]) == "<think>\n\n</think>"


@pytest.mark.parametrize(
    ("says", "end", "text"),
    [(THINKS, "closed", "It"), (LOOPS, "loop", ""), (WANDERS, "endless", ""), ({}, "none", "")],
    ids=["closed", "loop", "endless", "none"],
)
def test_every_way_a_thought_ends(says, end, text, tmp_path, monkeypatch):
    model = load_model(str(tiny.speaker(tmp_path, says)), device="cpu")
    block, decoding = think_block(model.tokenizer, True), Decoding(5, max_thought_tokens=12)
    prompts = ["One", "and two"]
    tokens = tokenize(model, prompts, thinking=True)
    for one in generate(model, tokens, [()], decoding):
        reply, thought = after_thought(model.tokenizer, one, block, decoding)
        assert (reply.text, thought.end) == (text, end)
        assert len(thought.ids) <= 12
        assert len(reply.ids) <= 5
    # The prompt up to the answer ends in a closed block, but where the model answered at once.
    lines = []
    monkeypatch.setattr(log, "log", lambda level, line, *values: lines.append(line % values))
    read = read_prompts(model, prompts, thought=12)
    expected = "assistant\n" if end == "none" else "</think>\n\n"
    assert all(one.endswith(expected) for one in at_end(model, read))
    assert lines[0].startswith(f"thoughts of 2 prompts: 2 {end}")
    assert ("were closed" in lines[0]) == (end in ("loop", "endless"))


def test_the_score_is_read_after_the_thought(tmp_path):
    """The next token after the block is that of the answer, as decoding has it; before the block it
    is the opening tag."""
    says = {**THINKS, "\n": "<think>"}
    model = load_model(str(tiny.speaker(tmp_path, says)), device="cpu")
    before = last_logits(model, tokenize(model, ["Hi"], thinking=True)).argmax(-1)
    assert model.tokenizer.decode(before) == "<think>"
    prompts = ["Hi", "Hello there"]
    read = read_prompts(model, prompts, thought=12)
    one_by_one = [read_prompts(model, [text], thought=12) for text in prompts]
    logits = last_logits(model, read)
    for row, alone in zip(logits, one_by_one, strict=True):
        torch.testing.assert_close(row, last_logits(model, alone)[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(
        read_prompts(model, prompts).ids, tokenize(model, prompts).ids
    )  # no thought: the prompts as they were


def test_a_thought_that_does_not_fit_says_how_long_it_may_be(thinker):
    with pytest.raises(DialError, match=r"a thought of 600 tokens .*--thought-tokens up to \d+"):
        read_prompts(thinker, ["Hi"], thought=600)


def pair_of(model, thought) -> Pair:
    from refusal_dial.data.prompts import Prompt

    prompts = [
        Prompt("h", "How do I rob it?", "HARMFUL", "", "p"),
        Prompt("e", "How do I dig it?", "EDGE", "", "p"),
    ]
    tokens = read_prompts(model, [p.text for p in prompts], thought=thought)
    found = match(model, prompts, tokens, thought=thought)
    return found, found.items[0]


@pytest.mark.parametrize("thought", [0, 12])
def test_positions_of_the_block_have_a_role(thinker, thought):
    found, pair = pair_of(thinker, thought)
    ids = [side.ids[0][side.mask[0].bool()].tolist() for side in (found.clean, found.corrupted)]
    read = {role: thinker.tokenizer.decode([ids[0][at[0]]]) for role, at in pair.roles.items()}
    inside = [read[role] for role in read if role.startswith("think-")]
    said = ["h", "m"] if thought else ["\n", "\n"]
    assert inside == ["<think>", *said, "</think>"]
    assert [read[f"end-{k}"] for k in (2, 1)] == ["\n", "\n"]
    assert read["turn-1"] == "\n"
    assert read["phrase-1"] + read["after+1"] == "b "
    assert list(pair.roles) == sorted(pair.roles, key=role_order)
    assert template_positions(thinker, thought=thought)[-1] == -1


def test_an_empty_block_is_of_the_template(thinker):
    closing = template_lengths(thinker)[1]
    (row,) = tokenize(thinker, ["Hi"]).ids.tolist()
    written = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert thinker.tokenizer.decode(row[-closing:]) == written


@given(*(st.lists(st.integers(0, 3), max_size=6) for _ in range(6)), st.integers(0, 2))
def test_roles_around_blocks_of_any_lengths(a, b, one, other, tail, more, closing):
    first, second = [*a, *one, *tail], [*b, *other, *tail]
    blocks = (len(a), len(a) + len(one)), (len(b), len(b) + len(other))
    roles = align_around((first, second), blocks, 0, closing)
    for side, row in enumerate((first, second)):
        at = [where[side] for where in roles.values()]
        assert at == sorted(set(at))
        assert all(-len(row) <= p < 0 for p in at)
    assert sum(role.startswith("think") for role in roles) == min(len(one), len(other)) or not (
        one or other or tail
    )
    none = (len(first), len(first)), (len(second), len(second))
    assert align_around((first, second), none, 0, closing) == align(first, second, 0, closing)


def run_of(name, small_material, model, out, *more):
    """The folder of a small run of this model that thinks; a flag given twice has its later
    value."""
    typed = [*arguments(small_material, name), f"--model={model}", "--thinking=on"]
    typed += ["--thought-tokens=12", f"--out={out}", *more]
    last = {one.split("=")[0]: one for one in typed}
    cli.run(load(name).main, list(last.values()))
    (scores,) = out.rglob("scores.csv")
    return scores.parent


@pytest.mark.slow
def test_replies_are_judged_after_the_block_and_loops_are_counted(small_material, tmp_path, capsys):
    """The thought is not in what is judged. The control, a model that loops, has no reply, and
    every thought is counted."""
    says = {"\n": "<think>", "<think>": "n", "n": "o", "o": "</think>"}
    says |= {"</think>": "Y", "Y": "e", "e": "s"}
    folder = tiny.speaker(tmp_path / "model", says, tiny.TIGHT)
    torch.save(torch.eye(512)[300], tmp_path / "d.pt")  # no token's own
    more = ("--layer=1", "--alphas=0.1", f"--direction={tmp_path / 'd.pt'}", "--n-random=1")
    more = (*more, "--any-model", "--refusal-tokens=Y")
    run = run_of("eval_direction_on_xstest", small_material, folder, tmp_path / "a", *more)
    rows = read_table(run, "scores")
    assert {completion_text(one) for one in rows["completion"]} <= {"Yes", "Ye", "Y"}
    assert {json.loads(one) for one in rows["thought"]} == {"no"}
    assert set(rows["thought_end"]) == {"closed"}
    assert set(rows["thought_tokens"]) == {4}
    assert (rows["score"] > 0).all()  # Y is the first token of the answer
    assert read_config(run)["settings"]["thinking"] == "on"
    assert read_verdict(run)["thoughts"]["closed"] == len(rows)
    assert "thoughts: " in capsys.readouterr().out
    loops = tiny.speaker(tmp_path / "loops", says | {"o": "n"})
    run = run_of("eval_direction_on_xstest", small_material, loops, tmp_path / "b", *more)
    rows = read_table(run, "scores")
    assert set(rows["thought_end"]) == {"loop"}
    assert set(rows["label"]) == {"unclear"}
    assert (read_table(run, "summary")["thought_lost"] == 1).all()
    assert f"{len(rows)} loop" in capsys.readouterr().out


def test_without_the_flag_a_run_knows_nothing_of_it(small_material):
    from small_runs import small_run

    run = small_run(small_material, "eval_direction_on_xstest")
    assert "thinking" not in read_config(run.folder)["settings"]
    assert set(read_table(run.folder, "scores")["thought_end"]) == {"none"}


def test_a_sweep_of_scores_is_read_after_the_thought(small_material, tmp_path):
    says = {"\n": "<think>", "<think>": "n", "n": "</think>", "</think>": "Y"}
    folder = tiny.speaker(tmp_path / "model", says, tiny.TIGHT)
    run = run_of("score_models", small_material, folder, tmp_path / "on", "--refusal-tokens=Y")
    assert (read_table(run, "scores")["score"] > 0).all()


def test_a_script_refuses_the_flag_in_one_line(small_material, capsys):
    with pytest.raises(SystemExit) as code:
        cli.run(
            load("score_models").main, [*arguments(small_material, "score_models"), "--thinking=on"]
        )
    assert code.value.code
    said = capsys.readouterr().err.strip().splitlines()
    assert "knows no thinking" in said[-1]
