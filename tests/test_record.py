"""The experiment log: its tables say what the summary says, and nothing in it is markup."""

from __future__ import annotations

import pandas as pd
from test_replies_summary import NO, YES, cell, halves, rows

from refusal_dial.report.replies import log_page, plain_markdown
from refusal_dial.studies.replies import coherent_range, summarise_replies

CONFIG = {
    "experiment": "caa_refusal",
    "command": "python <b>x</b>.py",
    "started": "today",
    "versions": {"torch": "2"},
    "settings": {
        "model": {"name": "a|b", "revision": "r", "device": "cpu", "dtype": "float32"},
        "data": {"source": "embedded", "hash": "h"},
        "judge": {"name": "builtin", "version": "1"},
        "seed": 0,
    },
}


def verdict(summary, measured=()):
    judge = {"judge": "builtin", "version": "1", "measured": list(measured), "unscored": 2}
    judge["disagrees_with_substring"] = None
    return {"judge": judge, "coherence": coherent_range(summary)}


def table_after(text, title):
    part = text[text.index(title) :].split("\n\n")[1]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines()]
    return pd.DataFrame(lines[2:], columns=lines[0])


def test_layers_and_conditions_have_their_tables():
    parts = []
    for subset in ("HARMFUL", "EDGE"):
        parts.append(cell("baseline", 0.0, [YES], subset=subset))
        parts.append(cell("learned", 1.0, [NO, NO, NO, YES], subset=subset))
        parts.append(cell("baseline", 0.0, [NO], subset=subset, system="instructed"))
    summary = summarise_replies(halves(rows(*parts)))
    text = log_page(CONFIG, verdict(summary), summary, {12: 3.14159})
    assert table_after(text, "## Vectors").values.tolist() == [["12", "3.14"]]
    assert table_after(text, "## HARMFUL refused").values.tolist() == [["20", "50%"]]
    whole = summarise_replies(rows(*parts))
    text = log_page(CONFIG, verdict(whole), whole, {})
    found = table_after(text, "## Conditions").set_index("condition")
    assert found.loc["steering 1", "HARMFUL refused"].startswith("75% [")
    assert found.loc["system message", "EDGE refused"].startswith("100% [")
    assert "its accuracy was not measured" in text
    assert len(table_after(text, "## Every cell")) == len(whole)


def test_what_came_from_elsewhere_is_text():
    summary = summarise_replies(rows(cell("baseline", 0.0, [YES]), cell("learned", 1.0, [NO])))
    text = log_page(CONFIG, verdict(summary), summary, {})
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "# caa\\_refusal: a\\|b" in text
    assert "- versions: torch 2" in text
    resumed = CONFIG | {"resumed": [{"started": "later", "versions": {"torch": "3"}}]}
    assert "- versions: torch 2, then 3" in log_page(resumed, verdict(summary), summary, {})
    assert plain_markdown("a\nb [c](d)") == "a b \\[c\\](d)"
