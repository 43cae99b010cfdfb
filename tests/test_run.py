"""A run holds exact rows, survives interruption at any byte, and is never overwritten."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from hashlib import sha256
from subprocess import PIPE

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.run import folder as run_module
from refusal_dial.run.folder import (
    append,
    close_log,
    find_run,
    finish,
    kept_batches,
    open_log,
    open_run,
    read_config,
    read_table,
    read_verdict,
    versions,
    versions_used,
)

LAW = settings(deadline=None, derandomize=True, max_examples=30)
SETTINGS = {"model": {"name": "tiny"}, "seed": 0, "alphas": [-1.0, 0.0, 1.0], "system": None}
log = logging.getLogger("refusal_dial")


@pytest.fixture(autouse=True)
def quiet():
    """Leave the package's log as it was found."""
    level = log.level
    yield
    close_log()
    log.setLevel(level)


def frame(n, start=0, seed=0):
    """n rows of the contract, with the floats and the gaps that real ones have."""
    rng = np.random.default_rng([seed, start])
    learned = [i % 3 != 0 for i in range(start, start + n)]
    return pd.DataFrame(
        {
            "direction": ["learned" if x else "baseline" for x in learned],
            "seed": pd.array([i if i % 3 == 2 else None for i in range(n)], dtype="Int64"),
            "layer": pd.array([20 if x else None for x in learned], dtype="Int64"),
            "site": ["resid_pre" if x else "" for x in learned],
            "pos": pd.array([-1 if x else None for x in learned], dtype="Int64"),
            "alpha": rng.normal(size=n) * 8,
            "prompt_id": [f"{i:04d}" for i in range(start, start + n)],
            "subset": "EDGE",
            "split": "holdout",
            "score": rng.normal(size=n) * 10.0 ** rng.integers(-12, 3, n),
        }
    )


def batches(sizes, seed=0):
    starts = np.cumsum([0, *sizes[:-1]])
    return [frame(n, int(start), seed) for n, start in zip(sizes, starts, strict=True)]


def begun(tmp_path, name="run"):
    return open_run("steer", SETTINGS, out=str(tmp_path / name))


def finished(tmp_path, name="run", experiment="steer"):
    run = open_run(experiment, SETTINGS, out=str(tmp_path / name))
    append(run, frame(4))
    finish(run, pd.DataFrame({"direction": ["learned"], "n": [4]}), {"threshold": 0.0})
    return run


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("one"))


@pytest.fixture
def no_fsync(monkeypatch):
    """What is tested is where bytes go, thousands of times; not that the disk has them."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# --- rows


def test_rows_come_back_exactly_as_they_went_in(tmp_path):
    run, parts = begun(tmp_path), batches([5, 400, 1])
    for part in parts:
        append(run, part)
    whole = pd.concat(parts, ignore_index=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table(run.folder, "scores")
    pd.testing.assert_frame_equal(read_table(run.folder, "scores"), whole, check_exact=True)
    assert run.scores.read_text().splitlines()[0] == ",".join(whole.columns)


@LAW
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=20,
    )
)
def test_every_float_keeps_every_digit(one_run, values):
    run = one_run
    run.scores.unlink(missing_ok=True)
    append(run, pd.DataFrame({"alpha": values, "score": values[::-1]}))
    back = read_table(run.folder, "scores")
    assert [x.hex() for x in back["alpha"].astype(float)] == [float(x).hex() for x in values]
    assert [x.hex() for x in back["score"].astype(float)] == [float(x).hex() for x in values[::-1]]


ODD_IDS = [
    "0001",
    "1e5",
    "007",
    "NA",
    "nan",
    "None",
    "True",
    "-0",
    "a,b",
    'say "hi"',
    " pad ",
    "é🙂",
]


def test_ids_come_back_as_the_text_they_are(tmp_path):
    run = begun(tmp_path)
    append(run, frame(len(ODD_IDS)).assign(prompt_id=ODD_IDS))
    assert list(read_table(run.folder, "scores")["prompt_id"]) == ODD_IDS


def test_numbers_that_are_missing_come_back_missing_and_not_as_text(tmp_path):
    run = begun(tmp_path)
    summary = pd.DataFrame(
        {
            "direction": ["learned", "learned"],
            "seed": pd.array([None, None], dtype="Int64"),
            "site": ["resid_pre", ""],
            "alpha": [1.0, 2.0],
            "n": [1, 1],
            "score_mean": [0.5, np.nan],
            "score_lo": [np.nan, np.nan],
            "rate_lo": [0.1, np.nan],
            "p_value": [np.nan, 0.05],
            "alpha_relative": [0.1, np.nan],
        }
    )
    finish(run, summary, {})
    pd.testing.assert_frame_equal(read_table(run.folder, "summary"), summary, check_exact=True)


def test_rows_are_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    run, synced = begun(tmp_path), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (synced.append(run.scores.stat().st_size), fsync(n)))
    append(run, frame(3))
    append(run, frame(3, 3))
    assert len(synced) == 5  # the rows, then their line in the journal, and once their names
    assert synced[-2] == run.scores.stat().st_size


# --- interruption


def written(run, parts):
    for name in ("scores.csv", "journal.txt"):
        (run.folder / name).unlink(missing_ok=True)
    for part in parts:
        append(run, part)
    return run


@settings(LAW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    cut=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_a_run_cut_at_any_byte_goes_on_to_the_same_bytes(one_run, no_fsync, sizes, cut, seed):
    parts = batches(sizes, seed)
    run = written(one_run, parts)
    whole = run.scores.read_bytes()
    run.scores.write_bytes(whole[: round(cut * len(whole))])
    kept = kept_batches(run, sizes)
    assert run.scores.read_bytes() == b"".join(
        part.to_csv(index=False, header=not i).encode() for i, part in enumerate(parts[:kept])
    )
    for part in parts[kept:]:
        append(run, part)
    assert run.scores.read_bytes() == whole


def test_every_single_byte_is_a_safe_place_to_stop(one_run, no_fsync):
    sizes = [2, 1, 3, 1]
    parts = batches(sizes)
    after = [b""]  # scores.csv after 0, 1, 2 ... whole batches
    run = written(one_run, [])
    for part in parts:
        append(run, part)
        after.append(run.scores.read_bytes())
    ends, journal = np.cumsum([0, *sizes]), (run.folder / "journal.txt").read_bytes()
    for cut in range(len(after[-1]) + 1):
        run.scores.write_bytes(after[-1][:cut])
        (run.folder / "journal.txt").write_bytes(journal)
        lines = after[-1][:cut].count(b"\n") - 1
        kept = kept_batches(run, sizes)
        assert kept == (ends <= max(lines, 0)).sum() - 1  # no whole batch is thrown away
        assert run.scores.read_bytes() == after[kept]


def test_resuming_twice_is_resuming_once(tmp_path):
    sizes = [2, 2]
    run = written(begun(tmp_path), batches(sizes)[:1])
    assert [kept_batches(run, sizes) for _ in range(3)] == [1, 1, 1]


def test_a_run_without_rows_keeps_none_and_creates_none(tmp_path):
    run = begun(tmp_path)
    assert kept_batches(run, [3, 3]) == 0
    assert not run.scores.exists()


def test_more_rows_than_the_run_has_are_of_some_other_run(tmp_path):
    run = written(begun(tmp_path), batches([3, 3]))
    before = run.scores.read_bytes()
    with pytest.raises(DialError, match="has 6 rows where this run has 5"):
        kept_batches(run, [3, 2])
    assert run.scores.read_bytes() == before


# --- which folder


def test_an_unfinished_run_of_the_same_settings_is_resumed(tmp_path):
    first = open_run("steer", SETTINGS, root=tmp_path)
    reordered = dict(reversed(SETTINGS.items()))
    assert open_run("steer", reordered, root=tmp_path).folder == first.folder
    assert first.folder.parent == tmp_path / "steer"
    assert not first.finished


@pytest.mark.parametrize(
    ("experiment", "changed"),
    [("steer", {"seed": 1}), ("steer", {"new": 0}), ("steer", {"system": "x"}), ("score", {})],
)
def test_other_settings_or_another_experiment_get_a_folder_of_their_own(
    experiment, changed, tmp_path
):
    first = open_run("steer", SETTINGS, root=tmp_path)
    other = open_run(experiment, {**SETTINGS, **changed}, root=tmp_path)
    assert other.folder != first.folder
    assert other.folder.parent == tmp_path / experiment


def test_a_finished_run_is_left_alone_and_a_new_one_begun(tmp_path):
    runs = [open_run("steer", SETTINGS, root=tmp_path)]
    finish(runs[0], frame(1), {})
    before = {p: p.read_bytes() for p in runs[0].folder.iterdir()}
    for _ in range(3):  # within one second, too
        runs.append(open_run("steer", SETTINGS, root=tmp_path))
        finish(runs[-1], frame(1), {})
    assert len({run.folder for run in runs}) == 4
    assert {p: p.read_bytes() for p in runs[0].folder.iterdir()} == before


def test_a_finished_run_named_by_out_is_returned_and_not_written(tmp_path):
    run = finished(tmp_path)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.folder.iterdir()}
    again = begun(tmp_path)
    log.warning("this must not land in a finished run")
    assert again.finished
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 7}, "with seed = 0, and this one has 7"),
        ({"seed": 7, "alphas": [1.0]}, "with seed = 0, and this one has 7"),
        ({"alphas": [2.0]}, r"with alphas = [-1.0, 0.0, 1.0], and this one has [2.0]"),
        ({"system": "Refuse."}, 'with system = null, and this one has "Refuse."'),
        ({"model": {"name": "x" * 500}}, 'with model.name = "tiny", and this one has "xxxx'),
        ({"added": 1}, "with added = null, and this one has 1"),
    ],
)
def test_out_with_other_settings_names_the_first_that_differs(changed, says, tmp_path):
    run = begun(tmp_path)
    with pytest.raises(DialError) as error:
        open_run("steer", {**SETTINGS, **changed}, out=str(run.folder))
    message = str(error.value)
    assert says in message
    assert message.startswith(f"{run.folder} holds a run ")
    assert message.endswith(": choose another --out")
    assert len(message) < len(str(run.folder)) + 250


def test_out_with_a_setting_taken_away_names_it(tmp_path):
    run = begun(tmp_path)
    fewer = {name: value for name, value in SETTINGS.items() if name != "seed"}
    with pytest.raises(DialError, match="with seed = 0, and this one has null"):
        open_run("steer", fewer, out=str(run.folder))


@pytest.mark.parametrize("is_finished", [True, False])
def test_out_of_another_experiment_is_refused_though_the_settings_agree(is_finished, tmp_path):
    run = finished(tmp_path) if is_finished else begun(tmp_path)
    with pytest.raises(DialError, match='with experiment = "steer", and this one has "balanced"'):
        open_run("balanced", SETTINGS, out=str(run.folder))


def test_out_may_be_new_nested_or_empty(tmp_path):
    assert open_run("steer", SETTINGS, out=str(tmp_path / "a" / "b")).folder.is_dir()
    (tmp_path / "empty").mkdir()
    run = open_run("steer", SETTINGS, out=str(tmp_path / "empty"))
    assert read_config(run.folder)["settings"] == SETTINGS


def test_out_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(DialError, match=r"photos is not a run folder: it has no config\.json"):
        begun(tmp_path, "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DialError, match=r"file' is a file: give a folder for the run"):
        begun(tmp_path, "file")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"{not json", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1, 2]", "is not a run's config: it has no settings"),
        (b"{}", "is not a run's config: it has no settings"),
        (b'{"settings": 3}', "is not a run's config: it has no settings"),
        (b'{"settings": {}}', "is not a run's config: it has no experiment"),
        (b"[" * 100_000, "cannot be read: maximum recursion depth"),
        (b'{"n": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (
            b'{"experiment": "a", "settings": {}, "versions": [1, 2]}',
            "versions is [1, 2]: expected",
        ),
        (b'{"experiment": "a", "settings": {}, "versions": "abc"}', "versions is 'abc': expected"),
        (b'{"experiment": "a", "settings": {"model": "a"}}', "settings.model is 'a': expected an"),
        (b'{"experiment": "a", "settings": {"model": {}}}', "settings.model has no name"),
        (b'{"experiment": "a", "settings": {"data": [1]}}', "settings.data is [1]: expected an"),
    ],
)
def test_a_broken_config_is_one_clear_line(content, says, tmp_path):
    run = begun(tmp_path)
    (run.folder / "config.json").write_bytes(content)
    for call in (lambda: begun(tmp_path), lambda: read_table(run.folder, "scores")):
        with pytest.raises(DialError) as error:
            call()
        assert str(run.folder / "config.json") in str(error.value)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_the_config_says_what_was_run_with_what(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["steer.py", "--system", "two words"])
    config = read_config(begun(tmp_path).folder)
    assert config["experiment"] == "steer"
    assert config["settings"] == SETTINGS
    assert config["command"].endswith("steer.py --system 'two words'")
    assert config["versions"]["numpy"] == np.__version__
    assert config["versions"]["pandas"] == pd.__version__
    assert set(config["versions"]) >= {"python", "torch", "transformer-lens", "refusal-dial"}
    assert config["started"]


# --- the end of a run


def test_the_summary_json_is_written_last(tmp_path, monkeypatch):
    run = begun(tmp_path)
    summary = pd.DataFrame({"alpha": [0.1 + 0.2], "n": [1]})
    order = []
    write = run_module.write_whole
    monkeypatch.setattr(
        run_module, "write_whole", lambda p, c: (order.append(p.name), write(p, c))[1]
    )
    finish(run, summary, {"verdict": [{"p_value": None}]})
    assert order == ["summary.csv", "summary.json"]
    assert run.finished
    ended = read_verdict(run.folder)
    assert ended.pop("sha256") == {
        "summary.csv": sha256((run.folder / "summary.csv").read_bytes()).hexdigest(),
        "verdict": sha256(b'{"verdict": [{"p_value": null}]}').hexdigest(),
    }
    assert ended == {"verdict": [{"p_value": None}]}
    assert read_table(run.folder, "summary")["alpha"][0] == 0.1 + 0.2


def test_a_table_that_is_not_there_says_what_to_do(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(DialError, match=r"has no summary\.csv: run the experiment to its end"):
        read_table(run.folder, "summary")
    run.scores.touch()
    with pytest.raises(DialError, match=r"has no scores\.csv"):
        read_table(run.folder, "scores")
    with pytest.raises(DialError, match="is not a run folder"):
        read_table(tmp_path, "scores")


@pytest.mark.parametrize(
    "content",
    [
        b"alpha,score\n1,2\n3,4,5\n",
        b"seed,score\nx,1\n",
        b"layer,score\n1.5,1\n",
        b'score\n"1\n',
        b"score\n\xff\n",
    ],
)
def test_a_broken_table_is_one_clear_line(content, tmp_path):
    run = begun(tmp_path)
    run.scores.write_bytes(content)
    with pytest.raises(DialError, match=r"scores\.csv cannot be read") as error:
        read_table(run.folder, "scores")
    assert "\n" not in str(error.value)


def test_find_run_takes_a_run_or_the_newest_finished_one(tmp_path):
    started = {"zzz": "2024-01-01", "20250101-000000-aa": "2025-01-01", "mine": "2025-06-01"}
    for name, date in started.items():
        run = finished(tmp_path, name)
        config = json.loads((run.folder / "config.json").read_text())
        (run.folder / "config.json").write_text(json.dumps({**config, "started": date}))
    newer = begun(tmp_path, "unfinished").folder
    assert find_run(tmp_path) == tmp_path / "mine"
    assert find_run(newer) == newer
    assert find_run(str(tmp_path / "zzz")) == tmp_path / "zzz"


def test_find_run_without_a_run_says_so(tmp_path):
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DialError, match="is neither a run folder nor holds a finished run"):
            find_run(where)


# --- damage to a finished run


def altered(name):
    """One digit of a file is another."""

    def damage(folder):
        data = (folder / name).read_bytes()
        at = max(data.rfind(b"%d" % digit) for digit in range(10))
        (folder / name).write_bytes(data[:at] + (b"%d" % (9 - data[at] + 48)) + data[at + 1 :])

    return damage


def gone(name):
    return lambda folder: (folder / name).unlink()


def holding(name, content):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGES = {
    "a digit of the rows": (altered("scores.csv"), "scores.csv was altered since"),
    "no rows": (gone("scores.csv"), "has no scores.csv, and had one"),
    "no bytes": (holding("scores.csv", b""), "scores.csv was altered since"),
    "no journal": (gone("journal.txt"), "scores.csv: its journal is not there"),
    "a journal cut short": (holding("journal.txt", b"0 9"), "scores.csv: its journal is not there"),
    "no summary": (gone("summary.csv"), "has no summary.csv"),
    "a short summary": (holding("summary.csv", b"direction,n\n"), "summary.csv was altered since"),
    "a digit of the summary": (altered("summary.csv"), "summary.csv was altered since"),
    "an empty verdict": (holding("summary.json", b""), "summary.json cannot be read"),
    "no JSON": (holding("summary.json", b"{"), "summary.json cannot be read"),
    "a list": (holding("summary.json", b"[1]"), "summary.json is no summary: expected an object"),
    "another verdict": (
        lambda folder: (folder / "summary.json").write_text(
            (folder / "summary.json").read_text().replace("0.25", "0.75")
        ),
        "summary.json was altered since",
    ),
}


def to_the_end(folder):
    """The run as its experiment carries it out: how many of its batches were kept."""
    sizes = [2, 3, 1]
    run = open_run("steer", SETTINGS, out=str(folder))
    if run.finished:
        return None
    kept = kept_batches(run, sizes)
    for part in batches(sizes)[kept:]:
        append(run, part)
    finish(run, pd.DataFrame({"direction": ["learned"], "n": [6]}), {"threshold": 0.25})
    return kept


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    to_the_end(folder)
    return folder


def results_of(folder):
    names = ("scores.csv", "journal.txt", "summary.csv", "summary.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_finished_run_says_so_and_is_mended(damage, whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    spoil, says = DAMAGES[damage]
    spoil(folder)
    assert to_the_end(folder) is not None
    logged = (folder / "log.txt").read_text()
    assert "WARNING this run was finished, and " in logged
    assert says in logged
    assert results_of(folder) == results_of(whole_run)
    assert to_the_end(folder) is None  # whole again, and left alone


def test_only_the_batches_that_were_damaged_are_computed_again(whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    altered("scores.csv")(folder)  # a digit of the last batch
    assert to_the_end(folder) == 2
    gone("summary.csv")(folder)
    assert to_the_end(folder) == 3


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "journal" not in name])
def test_of_a_damaged_run_nothing_is_read(damage, whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    DAMAGES[damage][0](folder)
    with pytest.raises(DialError) as error:
        read_verdict(folder), read_table(folder, "scores"), read_table(folder, "summary")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(
        f"the run's files are damaged: the experiment's command with --out {folder} mends them"
    )


def test_a_run_from_before_there_were_hashes_is_read_and_left_alone(whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    verdict = read_verdict(folder)
    del verdict["sha256"]
    (folder / "summary.json").write_text(json.dumps(verdict))
    assert to_the_end(folder) is None
    assert read_verdict(folder) == {"threshold": 0.25}
    altered("scores.csv")(folder)
    assert len(read_table(folder, "scores")) == 6
    assert to_the_end(folder) == 2  # its journal knows
    assert results_of(folder) == results_of(whole_run)


@pytest.mark.parametrize("name", ["scores.csv", "journal.txt", "log.txt", ".lock"])
def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(name, whole_run, tmp_path):
    folder, other = shutil.copytree(whole_run, tmp_path / "run"), tmp_path / "elsewhere"
    (folder / "summary.json").unlink()
    other.write_text("keep me")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(other)
    with pytest.raises(
        DialError, match=rf"{name} is a symbolic link, and a run writes into its own"
    ):
        open_run("steer", SETTINGS, out=str(folder))
    assert other.read_text() == "keep me"


def test_a_link_that_comes_after_the_look_is_not_followed_either(tmp_path):
    (tmp_path / "elsewhere").write_text("keep me")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"log\.txt"):
        open_log(tmp_path / "run")
    assert (tmp_path / "elsewhere").read_text() == "keep me"
    (tmp_path / "run" / "log.txt").unlink()
    open_log(tmp_path / "run")  # the lock was let go


@pytest.mark.parametrize("name", ["scores.csv", "journal.txt", "summary.json", "log.txt"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_nothing_touched(name, make, whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    (folder / "summary.json").unlink()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(DialError, match=rf"{name} is no file \(a folder, a pipe, a broken link\)"):
        open_run("steer", SETTINGS, out=str(folder))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


# --- the log


def lines_of(run):
    return (run.folder / "log.txt").read_text().splitlines()


def test_the_log_goes_to_the_run_that_was_opened_last(tmp_path):
    one = begun(tmp_path, "one")
    log.info("first")
    two = begun(tmp_path, "two")
    log.info("second")
    again = begun(tmp_path, "one")
    log.warning("third")
    assert [line.split()[-1] for line in lines_of(one)] == ["first", "third"]
    assert [line.split()[-1] for line in lines_of(two)] == ["second"]
    assert again.folder == one.folder
    assert " INFO first" in lines_of(one)[0]


def test_a_resumed_run_says_so_in_its_log(tmp_path):
    run = written(begun(tmp_path), batches([2, 2])[:1])
    kept_batches(run, [2, 2])
    assert "resumed after 2 rows" in lines_of(run)[-1]


def test_a_nan_is_no_number_in_json_and_not_written_silently(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        finish(run, frame(1), {"rate": math.nan})
    assert not run.finished


HOLD = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
try:
    lock.acquire(timeout=0)
    print("held", flush=True)
except filelock.Timeout:
    print("refused", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder):
    """Another process that asks for a run's lock, and holds it for as long as this lasts."""
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def test_a_second_process_on_one_run_is_refused(tmp_path):
    out = str(tmp_path / "run")
    run = open_run("a", {"x": 1}, out)
    with another_process(run.folder) as got:
        assert got == "refused"
    assert open_run("a", {"x": 1}, out).folder == run.folder  # this process goes on
    close_log()
    with another_process(run.folder) as got:
        assert got == "held"
        with pytest.raises(DialError, match=f"{out} is being written by another process: wait for"):
            open_run("a", {"x": 1}, out)
        finish(run, pd.DataFrame({"n": [1]}), {})
        assert open_run("a", {"x": 1}, out).finished  # a finished run may be read


def test_of_two_processes_that_begin_a_run_one_wins_and_the_other_writes_nothing(tmp_path):
    """The first has the lock, and has not written its config yet."""
    with another_process(tmp_path) as got:
        assert got == "held"
        with pytest.raises(DialError, match="is being written by another process"):
            open_run("a", {"x": 1}, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert open_run("a", {"x": 1}, str(tmp_path)).folder == tmp_path


@pytest.mark.parametrize(("settings", "same"), [({"x": 1}, True), ({"x": 2}, False)])
def test_a_run_that_another_process_began_meanwhile_is_taken_for_what_it_is(
    settings, same, tmp_path, monkeypatch
):
    """Its config came between this process's look at the folder and its lock."""
    real = run_module.open_log

    def late(folder):
        monkeypatch.setattr(run_module, "open_log", real)
        open_run("a", {"x": 1}, str(folder))
        real(folder)

    monkeypatch.setattr(run_module, "open_log", late)
    if same:
        assert open_run("a", settings, str(tmp_path)).folder == tmp_path
    else:
        with pytest.raises(DialError, match="holds a run with x = 1, and this one has 2"):
            open_run("a", settings, str(tmp_path))
    assert read_config(tmp_path)["settings"] == {"x": 1}


def test_a_home_that_is_nobodys(tmp_path):
    with pytest.raises(DialError, match="'~nobody-at-all/run': there is no such user's home"):
        open_run("a", {}, "~nobody-at-all/run")


def test_a_run_resumed_with_other_packages_says_so(tmp_path, caplog):
    out = tmp_path / "run"
    open_run("a", {}, str(out))
    config = json.loads((out / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (out / "config.json").write_text(json.dumps(config))
    open_run("a", {}, str(out))
    here = versions()["torch"]
    assert f"begun with other versions: torch 1.0 -> {here}" in (out / "log.txt").read_text()
    config = read_config(out)
    assert config["versions"]["torch"] == "1.0"
    assert [one["versions"]["torch"] for one in config["resumed"]] == [here]
    assert versions_used(config)["torch"] == f"1.0, then {here}"
    assert versions_used(config)["numpy"] == np.__version__
    open_run("a", {}, str(out))
    assert read_config(out) == config  # the same versions again are no news


def test_a_run_resumed_with_the_same_packages_keeps_its_config(tmp_path):
    run = begun(tmp_path)
    before = (run.folder / "config.json").read_bytes()
    begun(tmp_path)
    assert (run.folder / "config.json").read_bytes() == before
