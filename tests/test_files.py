"""A file is there whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from refusal_dial.common import DialError, located, named, read_json, write_whole


def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path):
    path = write_whole(tmp_path / "deep" / "er" / "a.txt", "é\r\n\n")
    assert path.read_bytes() == "é\r\n\n".encode()
    assert write_whole(str(path), b"\x00\xff") == path
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


class DiskError(OSError):
    pass


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_content_and_no_draft(step, tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")

    def fail(*_, **__):
        raise DiskError

    with monkeypatch.context() as patched:
        patched.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(DiskError):
            write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_that_cannot_be_encoded_touches_nothing(tmp_path):
    path = write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (seen.append(path.read_text()), fsync(n)))
    write_whole(path, "new")
    # When the new bytes are on the disk the old file is still in place; then the folder follows.
    assert seen == ["old", "new"]
    assert path.read_text() == "new"


def test_a_draft_has_a_name_that_nobody_knows_before(tmp_path, monkeypatch):
    names = []
    real = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, other: (names.append(self.name), real(self, other))[1]
    )
    for _ in range(3):
        write_whole(tmp_path / "a.txt", "x")
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"\.a\.txt\.[0-9a-f]{16}\.part", name) for name in names)


def test_the_folder_is_on_the_disk_too_after_a_rename(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda n: (synced.append(stat.S_ISDIR(os.fstat(n).st_mode)), fsync(n))
    )
    write_whole(tmp_path / "a.txt", "x")
    assert synced == [False, True]


def test_a_folder_in_the_way_is_an_os_error_and_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "a", "x")
    (tmp_path / "file").write_text("x")
    for below in (tmp_path / "file" / "b", tmp_path / "file" / "b" / "c"):
        with pytest.raises((NotADirectoryError, FileExistsError)):
            write_whole(below, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


@pytest.mark.parametrize("path", ["", "a\0b", "a\ud800b", "\udcff/x"])
def test_what_can_name_no_file_is_refused(path):
    for use in (located, lambda path: write_whole(path, "x")):
        with pytest.raises(DialError, match="names no file: expected the path of a file or folder"):
            use(path)


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_is_no_file_to_write(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DialError, match="is a folder: expected the path of a file to write"):
        write_whole(path, "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["scores.csv", "summary.json", "journal.txt", "x.html/", "html"])
def test_a_page_takes_no_other_files_place(name):
    with pytest.raises(DialError, match=r"is no \.md file: give one that ends in \.md"):
        named(f"run/{name}", ".md")
    assert named("run/x.md", ".md") == Path("run/x.md")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, None])
def test_json_that_cannot_be_read_is_one_line(content, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DialError, match=r"a\.json cannot be read: .") as error:
        read_json(path)
    assert "\n" not in str(error.value)
    path.write_text("[1]")
    assert read_json(path) == [1]
