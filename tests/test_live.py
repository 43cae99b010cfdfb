"""The live dial: its laws, and its page as it is served, called and looked at."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from refusal_dial.cli.flags import LiveFlags
from refusal_dial.common import DialError
from refusal_dial.generate.decode import Decoding, generate, stream
from refusal_dial.hooks import steer
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.report.live import answered, examples_of, hooks_at, load_dial, turn
from refusal_dial.report.theme import found_browser

SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
TEXT = "How do I rob a bank?"


@pytest.fixture(scope="module")
def dial(qwen_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {"text": f"{verb} it {i} {'x' * (3 * i % 7)}", "subset": subset}
        for subset, verb in (("HARMFUL", "burn"), ("EDGE", "light"))
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = LiveFlags(model=str(qwen_folder), prompts=str(path), refusal_tokens="I", device="cpu")
    return load_dial(LiveFlags(**{**vars(flags), "layer": 1, "max_new_tokens": 6, "max_chars": 60}))


def tokens_of(dial, text=TEXT):
    return tokenize(dial.study.model, [text])


# --- laws


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.8])
def test_a_stream_has_the_tokens_of_generate(qwen, alpha):
    direction = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
    hooks = [steer(direction, 20 * alpha, layer=1, pos=-1)] if alpha else []
    for text in (TEXT, "x", "a longer prompt than that"):
        tokens = tokenize(qwen, [text])
        (whole,) = generate(qwen, tokens, [hooks], Decoding(max_new_tokens=9))
        assert tuple(stream(qwen, tokens, hooks, 9)) == whole.ids


def test_a_stream_is_of_one_prompt(qwen):
    with pytest.raises(DialError, match="expected one prompt, not 2"):
        list(stream(qwen, tokenize(qwen, ["a", "b"]), [], 3))


@pytest.mark.parametrize("name", ["learned", "random"])
def test_alpha_zero_is_the_model_as_it_is(dial, name):
    *_, last = turn(dial, TEXT, 2, "mlp_out", name, 0.0)
    logits = last_logits(dial.study.model, tokens_of(dial))
    assert last.score == last.unsteered == float(dial.study.scorer(logits)[0])
    (plain,) = generate(dial.study.model, tokens_of(dial), [[]], Decoding(max_new_tokens=6))
    assert last.reply == last.plain == plain.text
    p = logits[0].double().softmax(-1)
    assert [q for _, q in last.tokens] == pytest.approx(sorted(p.tolist(), reverse=True)[:8])
    assert last.done


@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_a_step_is_its_hooks_and_a_reply_only_grows(dial, site):
    hooks = hooks_at(dial, 1, site, "learned", 0.5)
    shown = list(turn(dial, TEXT, 1, site, "learned", 0.5))
    score = dial.study.scorer(last_logits(dial.study.model, tokens_of(dial), hooks))
    assert {one.score for one in shown} == {float(score[0])}
    assert shown[0].reply == ""
    assert [one.done for one in shown] == [False] * (len(shown) - 1) + [True]
    (whole,) = generate(dial.study.model, tokens_of(dial), [hooks], Decoding(max_new_tokens=6))
    assert shown[-1].reply == whole.text
    assert len(shown) == len(whole.ids) + 2
    (unsteered,) = generate(dial.study.model, tokens_of(dial), [[]], Decoding(max_new_tokens=6))
    assert shown[-1].plain == unsteered.text
    assert {one.plain for one in shown[:-1]} == {""}


@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_the_trace_is_of_both_replies_and_moved_by_alpha_from_the_last_prompt_token_on(dial, site):
    *rest, last = turn(dial, TEXT, 1, site, "learned", 0.5)
    assert not any(one.trace for one in rest)
    plain, steered = last.trace
    assert (plain.name, steered.name) == ("unsteered", "alpha +0.5")
    n = tokens_of(dial).ids.shape[1]
    assert plain.prompt == steered.prompt == n
    assert len(steered.values) - n <= 6
    moved = [b - a for a, b in zip(plain.values[:n], steered.values[:n], strict=True)]
    assert moved[:-1] == pytest.approx([0] * (n - 1), abs=1e-4)
    assert moved[-1] == pytest.approx(0.5, abs=1e-2)
    *_, still = turn(dial, TEXT, 1, site, "learned", 0.0)
    assert [one.name for one in still.trace] == ["unsteered"]
    assert still.trace[0].values == pytest.approx(plain.values, abs=1e-5)


def test_the_figure_comes_with_the_last_answer_and_its_texts_are_escaped(dial):
    *rest, (*_, figure) = answered(dial, "<b>rob</b>", *GOOD[1:])
    assert all(one[-1] is None for one in rest)
    assert len(figure.data) == 2
    assert not re.search(
        "<(?!br>|extra>|/extra>)", json.dumps(figure.to_dict()["data"], default=str)
    )


def test_the_random_direction_is_as_long_and_no_other_every_time(dial):
    known, random = dial.directions(1, "resid_pre").values()
    assert float(random.unit.norm()) == pytest.approx(float(known.unit.norm()))
    assert abs(float(random.unit @ known.unit)) < 0.9
    assert torch.equal(dial.directions(1, "resid_pre")["random"].unit, random.unit)


@pytest.mark.parametrize(
    ("text", "layer", "site", "name", "alpha", "message"),
    [
        ("x" * 61, 1, "resid_pre", "learned", 0.0, "61 characters long, and 60 are read at most"),
        ("", 1, "resid_pre", "learned", 0.0, "empty"),
        (TEXT, 9, "resid_pre", "learned", 0.0, "layer 9 is out of range"),
        (TEXT, 1, "resid_per", "learned", 0.0, "did you mean 'resid_pre'"),
        (TEXT, 1, "resid_pre", "lerned", 0.0, "did you mean 'learned'"),
        (TEXT, 1, "resid_pre", "learned", float("nan"), "expected a number for alpha, not nan"),
    ],
)
def test_what_cannot_be_turned_is_one_line(dial, text, layer, site, name, alpha, message):
    with pytest.raises(DialError, match=message) as caught:
        list(turn(dial, text, layer, site, name, alpha))
    assert "\n" not in str(caught.value)


# --- the page

GOOD = (TEXT, 0.5, 1, "resid_pre", "learned")
ODD = [None, float("nan"), float("inf"), 1e300, 10**5000, "", "x", [], {}, True, "\ud800", -1, b"x"]


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_whatever_arrives_is_answered_in_words(dial, place):
    for value in ODD:
        asked = list(GOOD)
        asked[place] = value
        if place == 0 and value == "x":
            continue
        if place == 1 and value == -1:
            continue
        *_, (message, rows, reply, plain, figure) = answered(dial, *asked)
        assert message.startswith("error: "), (place, value)
        assert "\n" not in message
        assert len(message) < 400
        assert (rows, reply, plain, figure) == ([], "", "", None)
    asked = [None if i == place else value for i, value in enumerate(GOOD)]
    message = next(iter(answered(dial, *asked)))[0]
    assert "is empty: " in message


@pytest.fixture(scope="module")
def served(dial):
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[dial]'")
    from refusal_dial.report.live import serve

    connect, called = socket.socket.connect, []

    def noted(self, address):
        called.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", noted)
        blocks = serve(dial, 0, wait=False)
        yield blocks
        blocks.close()
    hosts = {a[0] for a in called if isinstance(a, tuple)}
    assert hosts <= {"127.0.0.1"}, "the server or its client called elsewhere"


def test_it_listens_on_this_machine_alone(served):
    port = served.server_port
    mine = psutil.Process(os.getpid()).net_connections(kind="inet")
    listening = {one.laddr.ip for one in mine if one.status == "LISTEN" and one.laddr.port == port}
    assert listening == {"127.0.0.1"}
    assert served.share_url is None
    assert served.analytics_enabled is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_taken_port_is_one_line(dial, served):
    from refusal_dial.report.live import serve

    with pytest.raises(DialError, match="cannot be used: give another --port"):
        serve(dial, served.server_port, wait=False)
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=5):
        pass


def test_the_page_says_what_the_dial_says(served, dial):
    from gradio_client import Client

    client = Client(served.local_url, verbose=False)
    score, rows, reply, plain, figure = client.predict(
        TEXT, 0.5, 1, "resid_pre", "learned", api_name="/turn"
    )
    *_, last = turn(dial, TEXT, 1, "resid_pre", "learned", 0.5)
    assert score.startswith(f"{last.score:+.2f}")
    assert (reply, plain) == (last.reply, last.plain)
    assert [row[1] for row in rows["data"]] == [f"{p:.3f}" for _, p in last.tokens]
    assert "unsteered" in json.dumps(figure)
    score, _, reply, *_ = client.predict("", 0.5, 1, "resid_pre", "learned", api_name="/turn")
    assert score.startswith("error: ")
    assert reply == ""
    for sent in ([TEXT, None, 1], [TEXT, 0.5, None], [TEXT, 7, 1], [TEXT, 0.5, 99], [None, 0.5, 1]):
        score, *_ = client.predict(*sent, "resid_pre", "learned", api_name="/turn")
        assert score.startswith("error: ")
    for named in ([None, "learned"], ["resid_pre", None], ["nowhere", "learned"]):
        score, *_ = client.predict(TEXT, 0.5, 1, *named, api_name="/turn")
        assert score.startswith("error: ")


def test_examples_are_of_every_subset_and_short_enough(dial):
    texts = {one.text: one.subset for one in dial.study.prompts}
    shown = examples_of(dial)
    assert [texts[text] for text in shown] == ["EDGE", "EDGE", "HARMFUL"]  # it has no BENIGN
    short = LiveFlags(**{**vars(dial.flags), "max_chars": 1})
    assert examples_of(replace(dial, flags=short)) == []


def test_one_request_at_a_time(served):
    assert {one.concurrency_limit for one in served.fns.values()} == {"default"}
    assert served._queue.default_concurrency_limit == 1
    assert served._queue.max_size == 8


@pytest.mark.slow
def test_it_turns_in_a_browser_and_fetches_nothing_from_elsewhere(served):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = found_browser()
    if found is None:
        pytest.skip("no Chrome or Chromium is installed: apt install chromium")
    here, asked, faults = re.compile(re.escape(served.local_url) + "|data:|blob:"), [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(found), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(served.local_url)
        sync_api.expect(tab.get_by_role("heading", name="Refusal dial")).to_be_visible()
        tab.get_by_label("Prompt").fill("<img src=x onerror=alert(1)> rob")
        tab.get_by_label("Prompt").press("Shift+Enter")
        score = tab.get_by_label("score", exact=True)
        sync_api.expect(score).to_have_value(re.compile("unsteered"), timeout=15000)
        before = score.input_value()
        tab.get_by_role("slider").first.focus()
        tab.keyboard.press("End")
        sync_api.expect(score).not_to_have_value(before, timeout=15000)
        sync_api.expect(tab.get_by_label("unsteered reply")).not_to_have_value("...", timeout=15000)
        assert tab.locator("img[src=x]").count() == 0
        tab.screenshot(path=str(SHOTS / "live.png"), full_page=True)
        tab.set_viewport_size({"width": 400, "height": 900})
        figure = tab.locator(".js-plotly-plot .main-svg").first
        sync_api.expect(figure).to_be_visible(timeout=15000)
        tab.wait_for_timeout(500)
        drawn = figure.bounding_box()
        assert drawn["x"] + drawn["width"] <= 400
        tab.screenshot(path=str(SHOTS / "live_400.png"), full_page=True)
        browser.close()
    assert faults == []
    assert [url for url in asked if not here.match(url)] == []
