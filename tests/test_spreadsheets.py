"""No cell of ours is a formula, and every text comes back as it was."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.run.folder import (
    append,
    as_cell,
    as_meant,
    close_log,
    finish,
    meant,
    open_run,
    read_table,
    to_show,
)

STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
BLANKS = " \n\v\u00a0\u2003\u3000\u200b\ufeff\x00\x1f"
TEXTS = ["=1+1", "-1", "+x", "@me", "\tx", "'=1", "''=1", "'tis", "'", "", "a=b", "1-2", "＝1"]
TEXTS += [" =1+1", "\u00a0=1", "' =1", "\ufeff＝1", "- a list", " -- ", "\n@x", "  x", "' x"]
texts = st.one_of(st.text(), st.text("='+-@\t\r ax" + BLANKS, max_size=6))


def runs(cell):
    """Whether some spreadsheet would run the cell: by its first character, or the first it sees."""
    return cell.startswith(STARTS) or cell.lstrip(BLANKS + "\t\r").startswith(STARTS)


@given(texts)
def test_nothing_that_is_shown_is_run_and_it_means_what_it_meant(text):
    assert not runs(as_cell(text))
    assert meant(as_cell(text)) == text


@given(texts)
def test_a_text_that_nothing_runs_is_written_as_it_is(text):
    if not runs(text.lstrip("'")) and text.isascii() and text.isprintable():
        assert as_cell(text) == text


@given(st.lists(texts, unique=True, max_size=8))
def test_different_texts_stay_different(some):
    assert len({as_cell(text) for text in some}) == len(some)


def test_numbers_and_gaps_are_left_alone():
    frame = pd.DataFrame({"a": [-1.5, 2.0], "b": ["=1", None], "c": pd.array([-1, None], "Int64")})
    out = to_show(frame)
    assert out["b"].iloc[0] == "'=1"
    assert out[["a", "c"]].equals(frame[["a", "c"]])
    pd.testing.assert_frame_equal(as_meant(out), frame)


@pytest.mark.parametrize("column", ["prompt_id", "token", "subset"])
def test_a_run_keeps_no_formula_and_reads_its_texts_back(column, tmp_path):
    run = open_run("cells", {}, out=str(tmp_path / "run"))
    frame = pd.DataFrame({column: TEXTS, "score": [-1.0 * i for i in range(len(TEXTS))]})
    append(run, frame)
    finish(run, frame, {})
    close_log()
    for name in ("scores", "summary"):
        raw = pd.read_csv(run.folder / f"{name}.csv", dtype=str, keep_default_na=False)
        assert not any(map(runs, raw[column]))
        assert list(read_table(run.folder, name)[column]) == TEXTS
        assert read_table(run.folder, name)["score"].equals(frame["score"])
