"""Generation under hooks: tokens are those of an uncached reference, whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import CONFIGS, bridge, fresh, prompts

from refusal_dial import common
from refusal_dial.common import DialError, hook_name
from refusal_dial.generate.decode import Decoding, end_tokens, generate
from refusal_dial.hooks import ablate, steer

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
TOKENS = prompts((6, 4, 2, 6), seed=3)
STEPS, SOME = 6, 4
EVERY_POS = (-1, "last_prompt", "generated", "prompt", "all", -2)
GRID = [
    [],
    *([steer(UNIT, 3.0, layer=1, pos=pos)] for pos in EVERY_POS),
    [ablate(UNIT, layer=0), steer(UNIT, -4.0, layer=1, pos=-1)],
    [steer(UNIT, torch.tensor([3.0, 0.0, -3.0, 6.0]), layer=1, pos="generated")],
]


def spread(rows: int, pos: object, step: int) -> list[int]:
    """Which positions, from 0, of `rows` an edit at `pos` must have touched after `step` tokens."""
    prompt = rows - step
    new = list(range(prompt, rows))
    return {
        -1: [prompt - 1, *new],
        "last_prompt": [prompt - 1],
        "generated": new,
        "prompt": list(range(prompt)),
        "all": list(range(rows)),
        -2: [prompt - 2],
    }[pos]


def without_cache(model, tokens, row, pos, alpha) -> tuple[int, ...]:
    """Greedy tokens of one prompt, the whole sequence run anew for each, edited by hand."""
    ids = tokens.ids[row : row + 1, tokens.mask[row].argmax() :]
    found: list[int] = []
    for step in range(SOME):

        def edit(h, hook, step=step):
            h = h.clone()
            h[:, spread(h.shape[1], pos, step)] += alpha * UNIT
            return h

        with torch.no_grad():
            logits = model.run_with_hooks(ids, fwd_hooks=[(hook_name("resid_pre", 1), edit)])
        token = int(logits[0, -1].argmax())
        if token in end_tokens(model):
            break
        found.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return tuple(found)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_pos_is_what_an_uncached_run_edits(architecture):
    model, tokens = bridge(architecture), TOKENS.rows(0, 2)
    grid = [[steer(UNIT, 8.0, layer=1, pos=pos)] for pos in EVERY_POS]
    found = generate(model, tokens, grid, Decoding(SOME))
    for one in found:
        pos = EVERY_POS[one.cell]
        assert one.ids == without_cache(model, tokens, one.prompt, pos, 8.0), (pos, one)
    assert len({(one.prompt, one.ids) for one in found}) > len(tokens)


@pytest.mark.parametrize(
    "decoding", [Decoding(STEPS), Decoding(STEPS, 0.9, 0.8, samples=2, seed=1)]
)
def test_neither_the_batch_nor_the_other_cells_play_a_part(decoding):
    model, keys = bridge("Qwen2"), ["a", "b", "c", "d"]
    whole = generate(model, TOKENS, GRID, decoding, keys=keys)
    assert len(whole) == len(GRID) * 4 * decoding.samples
    assert generate(model, TOKENS, GRID, replace(decoding, rows=5), keys=keys) == whole
    alone = [
        replace(one, cell=c)
        for c, cell in enumerate(GRID)
        for one in generate(model, TOKENS, [cell], decoding, keys=keys)
    ]
    assert alone == whole
    third = [c for c in whole if c.prompt == 2 and c.cell < 3]
    only = generate(model, TOKENS.rows(2, 3), GRID[:3], decoding, keys=["c"])
    assert [one.ids for one in only] == [one.ids for one in third]


def test_a_hook_of_ones_own_runs_too():
    model = bridge("Qwen2")

    def own(h, hook):
        return h + 3.0 * UNIT

    found = generate(model, TOKENS, [[(hook_name("resid_pre", 1), own)], []], Decoding(STEPS))
    edits = generate(model, TOKENS, [[steer(UNIT, 3.0, layer=1)], []], Decoding(STEPS))
    assert [one.ids for one in found] == [one.ids for one in edits]


def test_an_alpha_of_zero_says_what_the_unsteered_model_says():
    model = bridge("Qwen2")
    decoding = Decoding(STEPS, temperature=1.0, samples=3)
    found = generate(model, TOKENS, [[], [steer(UNIT, 0.0, layer=1)]], decoding)
    half = len(found) // 2
    assert [one.ids for one in found[:half]] == [one.ids for one in found[half:]]
    assert len({one.ids for one in found[:3]}) > 1  # samples differ
    other = generate(model, TOKENS, [[]], Decoding(STEPS, temperature=1.0, samples=3, seed=9))
    assert [one.ids for one in other] != [one.ids for one in found[:half]]


def test_every_end_token_of_the_generation_config_ends_a_row():
    model = fresh("Qwen2")
    longest = generate(model, TOKENS, [[]], Decoding(STEPS))
    assert {one.stop for one in longest} <= {"end", "length"}
    second = next(one.ids[1] for one in longest if len(one.ids) == STEPS)
    model.original_model.generation_config.eos_token_id = [63, second]
    assert end_tokens(model) == [63, second]
    for one, before in zip(generate(model, TOKENS, [[]], Decoding(STEPS)), longest, strict=True):
        if second in before.ids:
            assert one.stop == "end"
            assert one.ids == before.ids[: before.ids.index(second)]
        else:
            assert one.ids[: len(before.ids)] == before.ids[: len(one.ids)]


def test_the_plain_model_says_what_hugging_face_generates(embedded):
    from refusal_dial.model.tokens import tokenize

    tokens = tokenize(embedded, ["How do I kill a python process?", "Say hello."])
    found = generate(embedded, tokens, [[]], Decoding(24))
    theirs = embedded.original_model.generate(
        tokens.ids, attention_mask=tokens.mask, max_new_tokens=24, do_sample=False
    )[:, tokens.ids.shape[1] :]
    for one, row in zip(found, theirs.tolist(), strict=True):
        assert tuple(row[: len(one.ids)]) == one.ids
        assert one.stop == "end"
        assert one.text == embedded.tokenizer.decode(row, skip_special_tokens=True)


def test_logits_that_are_not_numbers_end_a_row_with_the_reason():
    model = bridge("Qwen2")

    def broken(h, hook):
        out = h.clone()
        out[1] = float("nan")
        return out

    found = generate(model, TOKENS, [[(hook_name("resid_pre", 1), broken)]], Decoding(STEPS))
    assert [one.stop == "nan" for one in found] == [False, True, False, False]
    assert found[1].ids == ()
    assert found[0].ids == generate(model, TOKENS, [[]], Decoding(STEPS))[0].ids


def test_long_batches_say_how_far_they_are(caplog, monkeypatch):
    """A batch of a run is many completions, and the first ones may take a minute."""
    monkeypatch.setattr(common, "EVERY", 0.0)
    decoding = Decoding(max_new_tokens=1, rows=2)
    with caplog.at_level("INFO", "refusal_dial"):
        generate(bridge("Qwen2"), TOKENS, [[]], decoding)
    assert caplog.messages == ["completions: 1 of 2", "completions: 2 of 2"]


def test_bad_places_and_long_prompts():
    model = bridge("Qwen2")
    with pytest.raises(DialError, match="layer 9 is out of range"):
        generate(model, TOKENS, [[steer(UNIT, 1.0, layer=9)]])
    with pytest.raises(DialError, match="a prompt of 64 tokens leaves no room in a context of 64"):
        generate(model, prompts((64,)), [[]])


def test_hooks_attached_to_the_model_are_heeded_where_the_grid_has_none():
    model = bridge("Qwen2")
    with model.hooks(fwd_hooks=[steer(UNIT, 8.0, layer=1)]):
        attached = generate(model, TOKENS, [[]], Decoding(STEPS))
    given = generate(model, TOKENS, [[steer(UNIT, 8.0, layer=1)]], Decoding(STEPS))
    assert [one.ids for one in attached] == [one.ids for one in given]
    assert [one.ids for one in attached] != [
        one.ids for one in generate(model, TOKENS, [[]], Decoding(STEPS))
    ]
