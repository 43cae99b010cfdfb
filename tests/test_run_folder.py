"""A run's folder: where none can be, one line says so, and nothing is written by looking."""

from __future__ import annotations

import pytest

from refusal_dial.common import DialError
from refusal_dial.run.folder import open_run, planned_run


def a_loop(path):
    path.symlink_to(path)


def dangling(path):
    path.symlink_to(path.with_name("nothing"))


def a_file(path):
    path.write_text("x")


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_loop, "is a link that leads nowhere: give a folder for the run"),
        (dangling, "is a link that leads nowhere: give a folder for the run"),
        (a_file, "is a file: give a folder for the run"),
    ],
)
def test_out_where_no_folder_can_be(make, says, below, tmp_path):
    make(tmp_path / "odd")
    out = str(tmp_path / "odd" / below)
    for ask in (planned_run, open_run):
        with pytest.raises(DialError) as error:
            ask("steer", {}, out)
        given = f"--out {out!r}: {tmp_path / 'odd'}" if below else f"--out {out!r}"
        assert str(error.value) == f"{given} {says}"
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_out_that_is_deeper_than_folders_are(tmp_path):
    out = str(tmp_path.joinpath(*["a"] * 1000))
    for ask in (planned_run, open_run):
        with pytest.raises(DialError, match=r"--out is 1\d\d\d folders deep: expected at most 200"):
            ask("steer", {}, out)
    assert not list(tmp_path.iterdir())


def test_out_that_names_nothing():
    with pytest.raises(DialError, match="'' names no file: expected the path of a file or folder"):
        planned_run("steer", {}, "")


def test_runs_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("x")
    with pytest.raises(DialError, match=r"steer: .*/runs is a file: give a folder for the run"):
        planned_run("steer", {}, root=tmp_path / "runs")


def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    open_run("steer", {}, str(tmp_path / "link" / "run"))
    assert (tmp_path / "there" / "run" / "config.json").is_file()


def test_what_a_process_leaves_that_ends_before_its_config_is_no_run_of_another(tmp_path):
    (tmp_path / "log.txt").touch()
    (tmp_path / ".config.json.123.part").write_text("{")
    assert open_run("steer", {}, str(tmp_path)).folder == tmp_path


def test_a_log_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "log.txt").write_text("dear diary")
    with pytest.raises(DialError, match=r"is not a run folder: it has no config\.json"):
        open_run("steer", {}, str(tmp_path))
    assert (tmp_path / "log.txt").read_text() == "dear diary"


def test_a_folder_in_the_place_of_a_direction_is_named(tmp_path):
    run = open_run("steer", {}, str(tmp_path / "run"))
    (run.folder / "direction.safetensors").mkdir()
    with pytest.raises(DialError, match=r"direction\.safetensors is no file \(a folder, "):
        planned_run("steer", {}, str(run.folder))
