"""What a report is made of: every number stands in the run's files, every text is data."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from dataclasses import replace
from html import unescape
from importlib.resources import files
from pathlib import Path

import frames
import numpy as np
import pandas as pd
import pytest
import report_case

from refusal_dial.common import DialError
from refusal_dial.data.openings import load_openings
from refusal_dial.data.prompts import data_hash
from refusal_dial.report import dial
from refusal_dial.report.dial import dials
from refusal_dial.report.page import figures_of, report_page, summary_table, verdict_lines
from refusal_dial.report.reading import read_run, texts_of

OWN = [path.name for path in files("refusal_dial.report").iterdir() if path.name.endswith(".js")]


@pytest.fixture(scope="module")
def scores():
    return frames.scores(frames.dial)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scores):
    here = tmp_path_factory.mktemp("report")
    return report_case.leave_run(here / "made", scores, report_case.prompts_file(here))


@pytest.fixture(scope="module")
def reading(folder):
    return read_run(folder)


@pytest.fixture(scope="module")
def html(reading):
    return report_page([reading])


def data_of(html: str) -> dict:
    inside = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]+)</script>', html)
    assert inside is not None
    return json.loads(gzip.decompress(base64.b64decode(inside[1])))


def test_every_score_is_in_the_dial_at_its_alpha_and_prompt(reading, scores):
    (run,) = dials([reading])["runs"]
    ids = [prompt["id"] for prompt in run["prompts"]]
    found = {
        (one["kind"], one["seed"], one["layer"], alpha, who): score
        for one in run["series"]
        for alpha, column in zip(one["alphas"], one["scores"], strict=True)
        for who, score in zip(ids, column, strict=True)
    }
    steered = scores[scores["direction"] != "baseline"]
    assert len(found) == len(steered)
    for row in steered.itertuples():
        seed = None if pd.isna(row.seed) else row.seed
        key = (row.direction, seed, row.layer, row.alpha, row.prompt_id)
        assert found[key] == pytest.approx(row.score, rel=1e-5)
    base = scores[scores["direction"] == "baseline"].set_index("prompt_id")["score"]
    assert run["base"][0]["scores"] == pytest.approx(list(base[ids]), rel=1e-5)


def test_prompts_are_found_again_by_their_hash_alone(folder, reading, tmp_path):
    settings = reading.settings
    ids = ["EDGE-holdout-0"]
    assert texts_of(settings, ids).by_id[ids[0]].text == report_case.HOSTILE[0]
    source = report_case.prompts_file(tmp_path)
    moved = {**settings, "data": {**settings["data"], "source": str(source)}}
    assert texts_of(moved, ids).why_not == ""
    assert texts_of(moved, ["nobody"]).why_not == f"1 prompts of the run are not in {source}"
    source.write_text(source.read_text().replace("HARMFUL number 1", "another text"))
    changed = texts_of(moved, ids)
    assert not changed.by_id
    assert "has changed since the run: its hash is" in changed.why_not
    source.unlink()
    assert "no prompts file" in texts_of(moved, ids).why_not
    assert "cannot be read here" in texts_of({}, ids).why_not


def test_openings_of_a_study_of_continuations_are_found_again():
    openings = load_openings("embedded", 6, 3, 0)
    data = {"source": "embedded", "measure": data_hash(openings.measure)}
    settings = {"data": data, "n": 6, "n_pairs": 3, "seed": 0}
    ids = [one.id for one in openings.measure]
    assert [texts_of(settings, ids).by_id[one].text for one in ids] == [
        one.text for one in openings.measure
    ]
    assert "has changed" in texts_of({**settings, "seed": 1}, ids).why_not


def test_what_was_said_stands_with_its_sample_score_and_label(tmp_path, scores):
    source = report_case.prompts_file(tmp_path)
    run = report_case.leave_with_completions(tmp_path / "completions", scores, source)
    (dial,) = dials([read_run(run)])["runs"]
    assert dial["kind"] == "replies"
    learned = next(one for one in dial["series"] if one["kind"] == "learned")
    (first, second) = learned["completions"][0][0]
    assert dial["words"][first[0]] == "Sure, EDGE-holdout-0 at -2"
    assert dial["words"][second[0]] == report_case.BROKEN + "-2"
    assert dial["labels"][first[2]] == "full_compliance"
    assert first[1] == learned["scores"][0][0] == -3
    assert len(dial["words"]) == len(set(dial["words"]))


def test_a_missing_score_is_none_and_not_a_number(folder, reading, scores):
    holes = scores.copy()
    holes.loc[scores["prompt_id"] == "EDGE-holdout-1", "score"] = np.nan
    (run,) = dials([type(reading)(**{**vars(reading), "scores": holes})])["runs"]
    assert all(side["scores"][1] is None for side in run["base"])
    assert all(column[1] is None for one in run["series"] for column in one["scores"])


def test_controls_beyond_what_a_page_holds_are_left_out_and_counted(reading, monkeypatch):
    monkeypatch.setattr(dial, "MOST_DIAL_SCORES", 60)
    (run,) = dials([reading])["runs"]
    kinds = [one["kind"] for one in run["series"]]
    assert kinds.count("learned") == 1
    assert kinds.count("random") == 1
    assert run["left_out"] == 2


def test_alphas_are_in_norms_where_every_run_knows_them(reading, scores):
    other = scores.assign(alpha_relative=np.nan)
    both = [reading, type(reading)(**{**vars(reading), "scores": other})]
    assert dials([reading])["unit"] == "alpha_relative"
    assert dials(both)["unit"] == "alpha"


def test_a_run_of_another_shape_has_its_tables_and_how_it_was_made(reading, scores):
    steered = scores[scores["direction"] != "baseline"]
    other = type(reading)(**{**vars(reading), "scores": steered})
    assert other.kind == "other"
    assert dials([other])["runs"] == []
    assert "stands in the tables" in verdict_lines(other)[0].effect
    shown = report_page([other])
    assert len(data_of(shown)["tables"][0]["rows"]) == len(reading.summary)
    assert data_of(shown)["figures"] == []


def test_the_verdict_says_what_the_summary_holds(reading):
    first = verdict_lines(reading)[0]
    table = reading.summary
    edge = table[(table["subset"] == "EDGE") & (table["direction"] == "learned")]
    low, high = edge.iloc[0], edge.iloc[-1]
    assert first.about == "EDGE holdout, layer 20, n = 4"
    assert f"{low['refusal_rate']:.2f} [{low['rate_lo']:.2f}, {low['rate_hi']:.2f}]" in first.effect
    assert f"at alpha 0.2 (p = {high['p_corrected']:.3g} among random directions)" in first.effect
    assert first.controls.startswith("the mean of 3 random directions stays within")


def test_words_for_each_way_of_the_dial_come_before_all_numbers(reading):
    slope = {"layer": 20, "n": 100, "p": 0.001, "p_unit": 0.01, "slope": 2.0, "reason": ""}
    tested = type(reading)(**{**vars(reading), "verdict": reading.verdict | {"slope": [slope]}})
    words, numbers, group, *_ = verdict_lines(tested)
    assert (words.about, numbers.about) == ("the dial, layer 20", "turns refusal, layer 20")
    assert words.effect.startswith("turned up, ")
    assert "; turned down, " in words.effect
    assert group.about.startswith("EDGE holdout")


def test_the_table_has_every_row_and_the_interval_beside_its_mean(reading):
    table = summary_table(reading)
    assert len(table["rows"]) == len(reading.summary)
    names = [column["name"] for column in table["columns"]]
    assert "layer" not in names
    assert "layer 20" in table["caption"]
    place = names.index("mean score")
    row = reading.summary.iloc[3]
    expected = [row["score_mean"], row["score_lo"], row["score_hi"]]
    assert table["rows"][3][place] == pytest.approx(expected, rel=1e-5)


def test_the_figures_are_those_of_the_experiment(reading, scores):
    assert set(figures_of(reading)) == {"curves", "pareto", "histograms"}
    edge = type(reading)(
        **{**vars(reading), "summary": reading.summary[reading.summary["subset"] == "EDGE"]}
    )
    assert set(figures_of(edge)) == {"curves", "histograms"}


def test_the_same_run_gives_the_same_page(reading, html):
    assert report_page([reading]) == html


def test_the_page_asks_for_nothing_and_holds_texts_as_data(html):
    data = data_of(html)
    texts = [prompt["text"] for prompt in data["dial"]["runs"][0]["prompts"]]
    assert texts[: len(report_case.HOSTILE)] == report_case.HOSTILE
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert "window.hit" not in outside
    assert "window.hit" not in html
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", outside)
    assert "default-src 'none'" in html


def test_command_versions_hashes_and_settings_are_on_the_page(html, reading, folder):
    assert str(reading.config["command"]) in unescape(html)
    assert reading.settings["data"]["hash"] in html
    assert reading.files["scores.csv"] in html
    for name, version in reading.config["versions"].items():
        assert f"<dt>{name}</dt><dd>{version}</dd>" in html


def test_a_run_that_went_on_under_other_versions_shows_both(reading):
    config = dict(reading.config) | {
        "resumed": [{"started": "later", "versions": {"torch": "9.9"}}]
    }
    html = report_page([replace(reading, config=config)])
    assert f"<dt>torch</dt><dd>{config['versions']['torch']}, then 9.9</dd>" in html


def test_a_command_with_quotes_and_markup_stands_there_as_it_was_typed(reading):
    typed = """python -m pytest -k 'dial and not "slow"' --out <&>"""
    html = report_page([replace(reading, config=dict(reading.config) | {"command": typed})])
    assert typed in unescape(html)
    assert "<&>" not in html


def test_a_name_that_is_markup_is_text(tmp_path, scores):
    run = tmp_path / "made"
    source = report_case.prompts_file(tmp_path)
    report_case.leave_run(run, scores, source, model="<script>window.hit = 4</script>")
    shown = report_page([read_run(run)])
    assert "<script>window.hit" not in shown
    assert "&lt;script&gt;window.hit = 4&lt;/script&gt;" in shown


def test_nothing_and_two_of_one_name_are_refused(reading):
    with pytest.raises(DialError, match="takes one run folder or more"):
        report_page([])
    with pytest.raises(DialError, match="two of the runs are called 'made'"):
        report_page([reading, reading])


@pytest.mark.parametrize("name", OWN)
def test_the_scripts_never_set_markup(name):
    source = files("refusal_dial.report").joinpath(name).read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "http:"):
        assert way not in source.replace("http://www.w3.org/2000/svg", "")


def test_the_script_takes_several_runs_and_says_where_the_page_is(folder, tmp_path, scores, capsys):
    from script_case import load

    other = tmp_path / "other"
    report_case.leave_run(other, scores, Path(read_run(folder).settings["data"]["source"]))
    module = load("report")
    out = tmp_path / "page.html"
    from refusal_dial.cli import command_line as cli

    cli.run(module.main, [str(folder), str(other), "--out", str(out)])
    assert f"report: {out.resolve()}" in capsys.readouterr().out
    assert [run["name"] for run in data_of(out.read_text())["dial"]["runs"]] == ["made", "other"]


def older(folder: Path, to: Path) -> Path:
    """The run as if made before summary.json held hashes: what was altered is read."""
    shutil.copytree(folder, to)
    verdict = json.loads((to / "summary.json").read_text())
    del verdict["sha256"]
    (to / "summary.json").write_text(json.dumps(verdict))
    return to


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("scores", c) for c in ("prompt_id", "score", "alpha", "split", "subset", "layer")),
        *(("summary", c) for c in ("alpha", "refusal_rate", "rate_lo", "layer", "seed")),
    ],
)
def test_a_run_that_lacks_a_column_is_one_line(name, column, folder, tmp_path):
    old = older(folder, tmp_path / "old")
    assert report_page([read_run(old)])
    path = old / f"{name}.csv"
    pd.read_csv(path, dtype=str).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(DialError, match=f"{name}.csv has no column '{column}'"):
        read_run(old)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("refusal_rate", "x", "column 'refusal_rate': expected numbers, not 'x'"),
        ("alpha", "x", "column 'alpha': expected numbers, not 'x'"),
        ("alpha", "inf", "column 'alpha': a number is infinite"),
        ("layer", "9" * 30, "cannot be read"),
        ("seed", "-1", "column 'seed': -1 is less than 0"),
    ],
)
def test_a_run_that_holds_what_no_run_writes_is_one_line(column, value, says, folder, tmp_path):
    old = older(folder, tmp_path / "old")
    path = old / "summary.csv"
    pd.read_csv(path, dtype=str).assign(**{column: value}).to_csv(path, index=False)
    with pytest.raises(DialError, match=re.escape(f"{path}")) as error:
        read_run(old)
    assert says in str(error.value)


def test_rows_without_the_baseline_that_the_summary_has_are_one_line(folder, tmp_path):
    path = older(folder, tmp_path / "old") / "scores.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows[rows["direction"] != "baseline"].to_csv(path, index=False)
    with pytest.raises(DialError, match="no rows of the baseline, and the summary has"):
        read_run(path.parent)


def test_a_table_with_a_column_twice_or_no_rows_is_one_line(folder, tmp_path):
    path = older(folder, tmp_path / "old") / "summary.csv"
    header, rest = path.read_text().split("\n", 1)
    path.write_text(header.replace("direction,seed", "direction,direction") + "\n" + rest)
    with pytest.raises(DialError, match="names the column 'direction' twice"):
        read_run(path.parent)
    path.write_text(header + "\n")
    with pytest.raises(DialError, match="holds no rows"):
        read_run(path.parent)


@pytest.mark.parametrize("left", ["a", [1], {"rows": 3}, {"rows": 1, "of": 2, "reasons": "x"}])
def test_a_verdict_whose_left_out_is_of_another_kind(left, folder, tmp_path):
    old = older(folder, tmp_path / "old")
    verdict = json.loads((old / "summary.json").read_text())
    (old / "summary.json").write_text(json.dumps({**verdict, "left_out": left}))
    with pytest.raises(DialError, match=r"summary\.json: left_out"):
        read_run(old)
