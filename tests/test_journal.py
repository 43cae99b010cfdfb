"""What the journal vouches for is what was written, and nothing else is ever kept."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.run.folder import (
    Batch,
    append,
    close_log,
    cut_after,
    finish,
    kept_batches,
    open_run,
    read_table,
    record_batch,
    trusted_batches,
)

SIZES = [2, 1, 3, 2]
LAW = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def no_open_log(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)  # where bytes go is tested, not the disk
    yield
    close_log()


def batches():
    numbers = iter(range(100))
    return [
        pd.DataFrame([{"prompt_id": f"p{next(numbers)}", "score": 0.1 * n} for n in range(size)])
        for size in SIZES
    ]


@pytest.fixture
def run(tmp_path):
    return open_run("journal", {"seed": 0}, out=str(tmp_path / "run"))


@pytest.fixture
def whole(run):
    """(scores.csv, journal.txt) of a run with all its rows."""
    for batch in batches():
        append(run, batch)
    return run.scores.read_bytes(), (run.folder / "journal.txt").read_bytes()


def resumed(run):
    """The run goes on to its end: how many batches were kept, and scores.csv."""
    kept = kept_batches(run, SIZES)
    for batch in batches()[kept:]:
        append(run, batch)
    return kept, run.scores.read_bytes()


def put(run, table, journal):
    run.scores.write_bytes(table)
    (run.folder / "journal.txt").write_bytes(journal)


def ends(table):
    """Where each batch ends, counted in bytes."""
    lines = table.splitlines(keepends=True)
    return [sum(map(len, lines[: 1 + sum(SIZES[:n])])) for n in range(1, 1 + len(SIZES))]


def test_all_that_was_written_is_trusted(run, whole):
    found = trusted_batches(run.scores, run.key)
    assert [batch.rows for batch in found.batches] == SIZES
    assert [batch.stop for batch in found.batches] == ends(whole[0])
    assert found.fault == ""
    assert resumed(run) == (len(SIZES), whole[0])


def test_any_altered_byte_of_a_row_is_found_and_its_batch_computed_again(run, whole):
    table, journal = whole
    for i in range(len(table)):
        for byte in {table[i] ^ 1, ord("7"), ord("\n")} - {table[i]}:
            put(run, table[:i] + bytes([byte]) + table[i + 1 :], journal)
            kept, after = resumed(run)
            assert kept == sum(end <= i for end in ends(table))
            assert after == table


def test_any_altered_byte_of_the_journal_loses_no_more_than_what_follows(run, whole):
    table, journal = whole
    starts = [0, *(i + 1 for i, c in enumerate(journal) if c == ord("\n"))]
    for i in range(0, len(journal), 3):
        for byte in {journal[i] ^ 1, ord("0")} - {journal[i]}:
            put(run, table, journal[:i] + bytes([byte]) + journal[i + 1 :])
            kept, after = resumed(run)
            assert kept <= sum(start <= i for start in starts) - 1
            assert after == table


@LAW
@given(data=st.data())
def test_whatever_becomes_of_both_files_the_bytes_end_the_same(run, whole, data):
    table, journal = whole
    torn = [
        text[: data.draw(st.integers(0, len(text)))] + data.draw(st.binary(max_size=30))
        for text in (table, journal)
    ]
    put(run, *torn)
    kept, after = resumed(run)
    assert after == table
    assert all(torn[0][:end] == table[:end] for end in ends(table)[:kept])


def test_rows_that_no_journal_vouches_for_are_not_guessed_at(run, whole):
    (run.folder / "journal.txt").unlink()
    assert resumed(run) == (0, whole[0])
    close_log()
    assert "scores.csv: its journal is not there; what follows is computed again" in log_of(run)


def log_of(run):
    return (run.folder / "log.txt").read_text()


def test_the_log_says_which_rows_were_altered(run, whole):
    table, journal = whole
    put(run, table.replace(b"p4", b"p5"), journal)
    assert resumed(run)[0] == 2
    assert "rows 4 to 6 were altered, or are of another run" in log_of(run)
    put(run, table[:-1], journal)
    assert resumed(run)[0] == 3
    assert "its last rows are torn" in log_of(run)
    put(run, table, journal.replace(b"\n", b"\nx", 1))
    assert resumed(run)[0] == 1
    assert "line 2 of its journal was altered" in log_of(run)


def test_rows_of_another_run_are_not_taken_for_ones_own(run, whole, tmp_path):
    other = open_run("journal", {"seed": 1}, out=str(tmp_path / "other"))
    for name in ("scores.csv", "journal.txt"):
        shutil.copy(run.folder / name, other.folder / name)
    assert kept_batches(other, SIZES) == 0


def test_batches_in_another_order_are_not_kept(run, whole):
    table, journal = whole
    lines = journal.splitlines(keepends=True)
    put(run, table, b"".join([lines[0], lines[2], lines[1], lines[3]]))
    assert kept_batches(run, SIZES) == 1


def test_a_batch_of_another_size_and_what_follows_are_computed_again(run, whole):
    assert kept_batches(run, [2, 1, 4, 1]) == 2
    assert len(read_table(run.folder, "scores")) == 3


def test_more_rows_than_the_run_has_are_refused_and_left_alone(run, whole):
    with pytest.raises(DialError, match="has 8 rows where this run has 7"):
        kept_batches(run, [2, 1, 3, 1])
    assert run.scores.read_bytes() == whole[0]


def test_a_run_folder_that_was_moved_goes_on_where_it_stopped(tmp_path):
    def described(place):
        return {
            "seed": 0,
            "prompts": f"/{place}/p.jsonl",
            "data": {"source": f"/{place}/p.jsonl", "hash": "abc", "n_prompts": 3},
            "model": {"name": f"/{place}/model", "revision": "0123", "device": "cpu"},
        }

    here = open_run("journal", described("home"), out=str(tmp_path / "here"))
    for batch in batches():
        append(here, batch)
    table = here.scores.read_bytes()
    here.scores.write_bytes(table[:-3])
    close_log()
    there = tmp_path / "deep" / "there"
    there.parent.mkdir()
    shutil.move(here.folder, there)
    moved = open_run("journal", described("elsewhere"), out=str(there))
    assert resumed(moved) == (3, table)
    for part, value in (("data", "xyz"), ("model", "4567")):
        other = described("home")
        other[part] |= {"hash": value} if part == "data" else {"revision": value}
        with pytest.raises(DialError, match=rf"holds a run with {part}\.\w+ = .*{value}"):
            open_run("journal", other, out=str(there))
    nameless = described("home")
    nameless["model"]["revision"] = ""
    with pytest.raises(DialError, match=r'holds a run with model\.revision = "0123"'):
        open_run("journal", nameless, out=str(there))


def test_a_finished_run_keeps_its_journal(run, whole):
    finish(run, pd.DataFrame({"n": [8]}), {})
    config = json.loads((run.folder / "config.json").read_text())
    assert config["settings"] == {"seed": 0}
    assert trusted_batches(run.scores, run.key).stop == len(whole[0])


def test_a_table_of_its_own(tmp_path):
    table = tmp_path / "rows.csv"
    record_batch(table, "key", b"a,b\n1,2\n", 1)
    record_batch(table, "key", b"3,4\n", 1)
    found = trusted_batches(table, "key")
    assert found.batches == (Batch(0, 8, 1), Batch(8, 12, 1))
    assert (found.fault, found.stop) == ("", 12)
    assert trusted_batches(table, "other").batches == ()
    cut_after(table, found.batches[:1])
    assert table.read_bytes() == b"a,b\n1,2\n"
    assert trusted_batches(table, "key").fault == ""


@pytest.mark.parametrize("left", [None, b""])
def test_rows_that_are_gone_are_reported(left, run, whole):
    run.scores.unlink()
    if left is not None:
        run.scores.write_bytes(left)
    assert resumed(run) == (0, whole[0])
    assert "scores.csv: its rows are gone; what follows is computed again" in log_of(run)


def test_a_number_of_thousands_of_digits_is_an_altered_line(run, whole):
    table, journal = whole
    first, *rest = journal.splitlines(keepends=True)
    put(run, table, first + b"9" * 5000 + b" 1 1 x\n" + b"".join(rest))
    assert resumed(run) == (1, table)
    assert "line 2 of its journal was altered" in log_of(run)
