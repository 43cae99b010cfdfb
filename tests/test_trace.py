"""The projection at every token: what a cached run reads, moved by what is added."""

from __future__ import annotations

import json

import pytest
import torch
from small_runs import small_run

from refusal_dial.common import DialError, hook_name
from refusal_dial.directions.learning import Direction, Provenance
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.trace import projection_trace, token_traces
from refusal_dial.hooks import ablate, clamp, steer
from refusal_dial.model.tokens import tokenize
from refusal_dial.report.page import figures_of, report_page
from refusal_dial.report.reading import read_run
from refusal_dial.report.trace import trace_figure, trace_lines

D, LAYER = 32, 2
UNIT = torch.nn.functional.normalize(torch.arange(1.0, D + 1).cos(), dim=0)
TEXTS = ["How do I rob a bank?", "x", "a much longer prompt than either of those"]
REPLIES = [[5, 9, 11, 40], [7], []]


def direction(layer=LAYER, site="resid_pre"):
    return Direction(UNIT, 2.0, Provenance(layer, site, -1))


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out"])
def test_a_trace_is_the_dot_product_of_a_cached_run(qwen, site):
    tokens = tokenize(qwen, TEXTS)
    found = projection_trace(qwen, tokens, REPLIES, direction(site=site), norm=4.0)
    for i, reply in enumerate(REPLIES):
        ids = torch.tensor([[*tokens.ids[i][tokens.mask[i].bool()].tolist(), *reply]])
        _, cache = qwen.run_with_cache(ids)
        expected = cache[hook_name(site, LAYER)][0] @ UNIT / 4.0
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("pos", "where"),
    [
        ("all", lambda n, total: range(total)),
        (-1, lambda n, total: range(n - 1, total)),
        ("last_prompt", lambda n, total: [n - 1]),
        ("prompt", lambda n, total: range(n)),
        ("generated", lambda n, total: range(n, total)),
        (-2, lambda n, total: [n - 2]),
    ],
)
def test_a_step_of_alpha_moves_it_by_alpha_where_it_is_added_and_nowhere_else(qwen, pos, where):
    tokens = tokenize(qwen, TEXTS)
    plain = projection_trace(qwen, tokens, REPLIES, direction())
    hooks = [steer(UNIT, 1.7, layer=LAYER, pos=pos)]
    moved = projection_trace(qwen, tokens, REPLIES, direction(), hooks=hooks)
    for i, (one, other) in enumerate(zip(plain, moved, strict=True)):
        n = int(tokens.mask[i].sum())
        expected = torch.zeros(len(one))
        expected[list(where(n, len(one)))] = 1.7
        torch.testing.assert_close(other - one, expected, atol=1e-4, rtol=0)


def test_in_residual_norms_a_step_is_as_many_norms(qwen):
    tokens = tokenize(qwen, TEXTS[:1])
    ways = ([], [steer(UNIT, 0.3 * 5.0, layer=LAYER, pos=-1)])
    plain, moved = (
        projection_trace(qwen, tokens, REPLIES[:1], direction(), 5.0, hooks)[0] for hooks in ways
    )
    torch.testing.assert_close((moved - plain)[-5:], torch.full((5,), 0.3), atol=1e-4, rtol=0)


def test_what_is_removed_reads_0_and_what_is_clamped_its_value(qwen):
    tokens = tokenize(qwen, TEXTS)
    for hook, value in (
        (ablate(UNIT, layer=LAYER), 0.0),
        (clamp(UNIT, 0.5, layer=LAYER), 0.5),
    ):
        for trace in projection_trace(qwen, tokens, REPLIES, direction(), hooks=[hook]):
            torch.testing.assert_close(trace, torch.full_like(trace, value), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pos", ["all", -1, "generated"])
def test_token_by_token_it_is_the_same_as_at_once(qwen, pos):
    """A hook of one's own can only be asked a step at a time."""
    tokens = tokenize(qwen, TEXTS)
    name, edit = steer(UNIT, 2.0, layer=1, pos=pos)
    at_once = projection_trace(qwen, tokens, REPLIES, direction(), hooks=[(name, edit)])
    own = [(name, lambda activation, hook: edit(activation))]
    stepwise = projection_trace(qwen, tokens, REPLIES, direction(), hooks=own)
    for one, other in zip(at_once, stepwise, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_trace_names_every_token_of_prompt_and_reply(qwen):
    tokens = tokenize(qwen, TEXTS)
    replies = [one.ids for one in generate(qwen, tokens, [[]], Decoding(max_new_tokens=4))]
    for i, one in enumerate(token_traces(qwen, tokens, replies, direction(), 1.0, [], "plain")):
        assert one.prompt == int(tokens.mask[i].sum())
        assert len(one.tokens) == len(one.values) == one.prompt + len(replies[i])
        assert TEXTS[i] in "".join(one.tokens[: one.prompt])
        assert one.name == "plain"


@pytest.mark.parametrize(
    ("replies", "which", "norm", "message"),
    [
        (REPLIES[:2], direction(), 1.0, "expected a reply to each of 3 prompts, not 2"),
        (REPLIES, direction(), 0.0, "norm must be a number over 0, not 0"),
        (REPLIES, direction(site="mlp_post"), 1.0, "the direction has width 32, and mlp_post"),
        (REPLIES, direction(layer=9), 1.0, "layer 9 is out of range"),
        (REPLIES, direction(site="resid_per"), 1.0, "did you mean 'resid_pre'"),
    ],
)
def test_what_cannot_be_traced_is_one_line(qwen, replies, which, norm, message):
    with pytest.raises(DialError, match=message) as caught:
        projection_trace(qwen, tokenize(qwen, TEXTS), replies, which, norm)
    assert "\n" not in str(caught.value)


# --- the figure

EVIL = "<img src=x onerror=alert(1)>"


def line(name, panel="EDGE 1", **more):
    about = {"panel": panel, "name": name, "prompt": 2, "tokens": [EVIL, "b", "c"]}
    return {**about, "values": [0.1, None, -0.2], **more}


def test_a_figure_has_a_panel_a_prompt_and_a_line_a_way_and_escapes_every_text():
    lines = [line("unsteered"), line("alpha +0.3"), line("unsteered", panel=EVIL), line(EVIL, EVIL)]
    figure = trace_figure(lines, "title")
    assert len(figure.data) == 4
    assert [trace.showlegend for trace in figure.data] == [True, True, False, True]
    assert "reply, token 1" in figure.data[0].text[2]
    assert EVIL not in figure.to_json()
    assert "&lt;img" in figure.to_json()


@pytest.mark.parametrize(
    "trace",
    [
        None,
        [],
        "x",
        [3],
        [line("a", values=[1.0])],
        [line("a", values=["x", 1, 2])],
        [line("a", tokens="abc")],
        [{"panel": "a"}],
    ],
)
def test_what_no_run_writes_is_one_line(trace):
    with pytest.raises(DialError) as caught:
        trace_lines({"trace": trace})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["eval_direction_on_xstest", "toxicity_steering"])
def test_a_run_with_completions_has_a_trace_in_its_page(name, small_material):
    reading = read_run(small_run(small_material, name).folder)
    lines = trace_lines(reading.verdict)
    assert json.dumps(lines)
    assert {one["name"] for one in lines} == {"unsteered", "alpha -1", "alpha +1"}
    assert {one["panel"].split()[0] for one in lines} == set(reading.scores["subset"])
    # the same prompt, and at the last token of it a whole norm more and less
    for panel in {one["panel"] for one in lines}:
        by = {one["name"]: one for one in lines if one["panel"] == panel}
        n = by["unsteered"]["prompt"]
        plain, low, high = (by[name]["values"] for name in ("unsteered", "alpha -1", "alpha +1"))
        assert high[: n - 1] == pytest.approx(plain[: n - 1], abs=1e-4)
        assert high[n - 1] - plain[n - 1] == pytest.approx(1, abs=1e-2)
        assert low[n - 1] - plain[n - 1] == pytest.approx(-1, abs=1e-2)
    assert "trace" in figures_of(reading)
    assert report_page([reading])
